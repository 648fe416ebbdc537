// The preload library from outside: what it needs, what it exports, which programs it leaves alone,
// and what a pager of another build says.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <sstream>

#include "gtest/gtest.h"
#include "runtime/protocol.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

constexpr char kUnmanaged[] = "agent 0";
constexpr char kManaged[] = "agent 1";

std::string TellsWhetherManaged(const Environment& environment) {
  const Ended ended = RunToEnd({Built::guest, "TellsWhetherManaged"}, environment);
  EXPECT_EQ(ended.status, 0) << ended.err;
  return ended.out + ended.err;
}

// Sends `question` as a guest's first packet and waits for the answer.
protocol::Message FirstAnswer(const std::string& path, const protocol::Message& question) {
  protocol::Message answer = {};
  const ScopedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  int reply[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, reply), 0);
  const ScopedFd mine(reply[0]);
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec iov = {const_cast<protocol::Message*>(&question), sizeof(question)};
  msghdr header = {};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = SCM_RIGHTS;
  cmsg->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(cmsg), &reply[1], sizeof(int));
  EXPECT_EQ(sendmsg(fd.get(), &header, 0), static_cast<ssize_t>(sizeof(question)));
  close(reply[1]);
  const timeval patience = {10, 0};
  setsockopt(mine.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  EXPECT_EQ(recv(mine.get(), &answer, sizeof(answer), 0), static_cast<ssize_t>(sizeof(answer)));
  return answer;
}

TEST(PreloadLibraryTest, NeedsOnlyLibc) {
  const Ended ended = RunToEnd({"readelf", "-d", "-W", Built::library});
  if (ended.status == 200) GTEST_SKIP() << "readelf is missing: install binutils";
  ASSERT_EQ(ended.status, 0) << ended.err;
  std::istringstream lines(ended.out);
  int needed = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.find("(NEEDED)") == std::string::npos) continue;
    ++needed;
    EXPECT_TRUE(line.find("[libc.so") != std::string::npos ||
                line.find("[ld-linux") != std::string::npos)
        << line;
  }
  EXPECT_GT(needed, 0);
}

TEST(PreloadLibraryTest, ExportsExactlyItsHooksAndTheApi) {
  const Ended ended = RunToEnd({"nm", "-D", "--defined-only", Built::library});
  if (ended.status == 200) GTEST_SKIP() << "nm is missing: install binutils";
  ASSERT_EQ(ended.status, 0) << ended.err;
  std::set<std::string> names;
  std::istringstream lines(ended.out);
  for (std::string address, kind, name; lines >> address >> kind >> name;) {
    // The linker lists its own names of thread-local data, in lower case; nobody can link with
    // them.
    if (kind != "b") names.insert(name);
  }
  const std::set<std::string> wanted = {
      // Hooks.
      "mmap", "mmap64", "munmap", "mremap", "mprotect", "madvise", "shmat", "shmdt", "setuid",
      "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups",
      "initgroups",
      // runtime/hostmm_c.h.
      "hostmm_open", "hostmm_close", "hostmm_mmap", "hostmm_munmap", "hostmm_mremap",
      "hostmm_mprotect", "hostmm_madvise", "hostmm_granule", "hostmm_is_shared", "hostmm_shm_open",
      "hostmm_shm_unlink", "hostmm_error", "hostmm_snapshot", "hostmm_snapshot_info",
      "hostmm_snapshot_map", "hostmm_snapshot_export", "hostmm_image_load"};
  EXPECT_EQ(names, wanted);
}

TEST(PreloadLibraryTest, DoesNothingWithoutASocket) {
  const std::string plain = TellsWhetherManaged({});
  EXPECT_NE(plain.find(kUnmanaged), std::string::npos) << plain;
  EXPECT_EQ(TellsWhetherManaged({{"LD_PRELOAD", Built::library}}), plain);
}

TEST(PreloadLibraryTest, SocketPathTooLong) {
  const Environment environment = {{"LD_PRELOAD", Built::library},
                                   {"HOSTMM_SOCKET", "/" + std::string(200, 'x')}};
  EXPECT_EQ(TellsWhetherManaged(environment), TellsWhetherManaged({}));
}

class PreloadTest : public testing::Test {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(WhyNoUserfaultfd()); }

  std::string WithOnly(const std::string& names) {
    Environment environment = pager_.GuestEnvironment();
    environment.emplace_back("HOSTMM_ONLY", names);
    return TellsWhetherManaged(environment);
  }

  ServicePager pager_;
};

TEST_F(PreloadTest, OnlyChosenProgramsAreManaged) {
  const std::string name = std::filesystem::path(Built::guest).filename();
  const std::string plain = TellsWhetherManaged({});
  EXPECT_NE(WithOnly(name).find(kManaged), std::string::npos);
  EXPECT_NE(WithOnly("postgres:" + name + ":other").find(kManaged), std::string::npos);
  EXPECT_NE(WithOnly("").find(kManaged), std::string::npos);
  EXPECT_EQ(WithOnly("postgres"), plain);
  EXPECT_EQ(WithOnly(name + "x:x" + name), plain);
  EXPECT_EQ(WithOnly(name.substr(0, name.size() - 1)), plain);
}

TEST_F(PreloadTest, HelloOfAnotherVersionIsRefused) {
  protocol::Message hello = {};
  hello.magic = protocol::kMagic;
  hello.version = protocol::kVersion + 1;
  hello.kind = protocol::Kind::kHello;
  const protocol::Message answer = FirstAnswer(pager_.socket(), hello);
  EXPECT_EQ(answer.status, protocol::Status::kVersion);
  EXPECT_NE(std::string(answer.text).find("different builds"), std::string::npos) << answer.text;
  pager_.ExpectNoTrace();
}

TEST_F(PreloadTest, HelloOfThisVersionIsWelcome) {
  protocol::Message hello = {};
  hello.magic = protocol::kMagic;
  hello.version = protocol::kVersion;
  hello.kind = protocol::Kind::kHello;
  EXPECT_EQ(FirstAnswer(pager_.socket(), hello).status, protocol::Status::kOk);
  // It has hung up without attaching.
  pager_.ExpectNoTrace();
}

TEST_F(PreloadTest, RunManagesItsCommand) {
  const Ended ended = RunToEnd({Built::hostmm, "run", "--", Built::guest, "TellsWhetherManaged"});
  EXPECT_EQ(ended.status, 0) << ended.err;
  EXPECT_NE(ended.out.find(kManaged), std::string::npos) << ended.out << ended.err;
  EXPECT_NE(ended.err.find("managed 1 regions"), std::string::npos) << ended.err;
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
