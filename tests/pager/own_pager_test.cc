// A program's own pager (hostmm_open): started in the background by the hostmm program, gone with
// its last guest, and nothing of it left. The first argument is the hostmm program.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/pager/raw_guest.h"
#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"

namespace hostmm::test {
namespace {

std::string hostmm_program;

// The pager as a child of the test, which a program's own pager is not: so its end can be awaited.
class OwnPager {
 public:
  explicit OwnPager(const std::string& folder_name) {
    char base[] = "/tmp/own-pager-XXXXXX";
    if (mkdtemp(base) == nullptr) return;
    base_ = base;
    folder_ = base_ + "/" + folder_name;
    mkdir(folder_.c_str(), 0700);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return;
    ready_ = ScopedFd(ends[0]);
    const ScopedFd says(ends[1]);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(says.get(), 9);
      const std::string path = socket();
      execl(hostmm_program.c_str(), "hostmm", "pager", "--socket", path.c_str(), "--frames=base",
            "--until-last-guest", "--ready-fd=9", nullptr);
      _exit(127);
    }
  }
  ~OwnPager() {
    if (pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    std::error_code ignored;
    std::filesystem::remove_all(base_, ignored);
  }

  std::string socket() const { return folder_ + "/s"; }
  const std::string& folder() const { return folder_; }
  pid_t pid() const { return pid_; }
  // All that it says on its descriptor, up to the end of file.
  std::string Says() const {
    const Deadline deadline(kStepDeadline);
    std::string text;
    char byte;
    pollfd waiting = {ready_.get(), POLLIN, 0};
    while (poll(&waiting, 1, deadline.remaining_ms()) > 0 && read(ready_.get(), &byte, 1) == 1) {
      text += byte;
    }
    return text;
  }
  // Its exit status; -1 if it does not end in time.
  int AwaitEnd(std::chrono::milliseconds patience) {
    int status = -1;
    const bool ended =
        PollUntil(Deadline(patience), [&] { return waitpid(pid_, &status, WNOHANG) == pid_; });
    if (!ended) return -1;
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  std::string base_;
  std::string folder_;
  ScopedFd ready_;
  pid_t pid_ = -1;
};

TEST(OwnPagerTest, EndsWithItsLastGuestAndLeavesNothing) {
  OwnPager pager("hostmm-test");
  EXPECT_THAT(pager.Says(), ::testing::StartsWith("mode="));
  EXPECT_EQ(getsid(pager.pid()), pager.pid()) << "it is not of our session";
  {
    RawGuest first(pager.socket());
    ASSERT_TRUE(first.Enter());
    {
      RawGuest second(pager.socket());
      ASSERT_TRUE(second.Enter());
    }
    const ScopedMapping region = first.NewRegion(8 * kBlock);
    ASSERT_TRUE(region.ok()) << "the other's end is not its end";
  }
  EXPECT_EQ(pager.AwaitEnd(kStepDeadline), 0);
  EXPECT_FALSE(std::filesystem::exists(pager.folder()));
}

TEST(OwnPagerTest, AFolderOfAnotherNameStays) {
  OwnPager pager("mine");
  EXPECT_THAT(pager.Says(), ::testing::StartsWith("mode="));
  {
    RawGuest guest(pager.socket());
    ASSERT_TRUE(guest.Enter());
  }
  EXPECT_EQ(pager.AwaitEnd(kStepDeadline), 0);
  EXPECT_TRUE(std::filesystem::is_empty(pager.folder()));
}

TEST(OwnPagerTest, EndsIfNobodyComes) {
  OwnPager pager("hostmm-test");
  EXPECT_THAT(pager.Says(), ::testing::StartsWith("mode="));
  EXPECT_EQ(pager.AwaitEnd(std::chrono::seconds(20)), 0);
  EXPECT_FALSE(std::filesystem::exists(pager.folder()));
}

TEST(OwnPagerTest, SaysWhyItCannot) {
  OwnPager first("hostmm-test");
  EXPECT_THAT(first.Says(), ::testing::StartsWith("mode="));
  const std::string path = first.socket();
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  ScopedFd ready(ends[0]);
  const pid_t second = fork();
  if (second == 0) {
    dup2(ends[1], 9);
    execl(hostmm_program.c_str(), "hostmm", "pager", "--socket", path.c_str(), "--until-last-guest",
          "--ready-fd=9", nullptr);
    _exit(127);
  }
  close(ends[1]);
  char line[256] = {};
  EXPECT_GT(read(ready.get(), line, sizeof(line) - 1), 0);
  EXPECT_THAT(std::string(line), ::testing::StartsWith("error="));
  int status = 0;
  EXPECT_EQ(waitpid(second, &status, 0), second);
  EXPECT_NE(WEXITSTATUS(status), 0);
  RawGuest guest(path);
  EXPECT_TRUE(guest.Enter()) << "the first one serves on";
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 2) return 2;
  hostmm::test::hostmm_program = argv[1];
  return RUN_ALL_TESTS();
}
