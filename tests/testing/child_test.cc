#include "tests/testing/child.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>

#include "tests/testing/deadline.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

using std::chrono::milliseconds;

TEST(ChildTest, ExitCodeAndSignalAreTold) {
  EXPECT_EQ(Child(Identity::kSame, [](Channel&) { return 7; }).Wait(), 7);
  EXPECT_EQ(Child(Identity::kSame, [](Channel&) { return raise(SIGKILL); }).Wait(), 128 + SIGKILL);
}

TEST(ChildTest, FailedCheckIsExitCodeOne) {
  Child child(Identity::kSame, [](Channel&) {
    CHILD_CHECK(getpid() == 0);
    return 0;
  });
  EXPECT_EQ(child.Wait(), 1);
}

TEST(ChildTest, HangIsKilledAndReaped) {
  Child child(Identity::kSame, [](Channel&) { return pause(); });
  const pid_t pid = child.pid();
  EXPECT_EQ(child.Wait(milliseconds(20)), -1);
  EXPECT_EQ(kill(pid, 0), -1) << "neither running nor a zombie";
}

TEST(ChildTest, DestructorLeavesNoProcess) {
  pid_t pid = -1;
  {
    const Child child(Identity::kSame, [](Channel&) { return pause(); });
    pid = child.pid();
    ASSERT_EQ(kill(pid, 0), 0);
  }
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST(ChildTest, ReceiveEndsWhenThePeerIsGone) {
  Child child(Identity::kSame, [](Channel&) { return 0; });
  EXPECT_FALSE(child.channel().Await());
  EXPECT_FALSE(child.channel().ReceiveFd().valid());
  EXPECT_EQ(child.Wait(), 0);
}

TEST(ChildTest, DescriptorAndValuePass) {
  Child child(Identity::kSame, [](Channel& channel) {
    const ScopedFd file = channel.ReceiveFd();
    struct stat status = {};
    CHILD_CHECK(fstat(file.get(), &status) == 0);
    CHILD_CHECK(channel.SendValue(status.st_size));
    return 0;
  });
  ASSERT_TRUE(child.channel().SendFd(MemfdFile(12345).get()));
  uint64_t size = 0;
  ASSERT_TRUE(child.channel().ReceiveValue(&size));
  EXPECT_EQ(size, 12345u);
  EXPECT_EQ(child.Wait(), 0);
}

TEST(ChildTest, NobodyIsNobody) {
  HOSTMM_SKIP_IF(WhyNoRoot());
  Child child(Identity::kNobody, [](Channel&) {
    CHILD_CHECK(getuid() == kNobody && geteuid() == kNobody && getgid() == kNobody);
    CHILD_CHECK(setuid(0) == -1);
    return 0;
  });
  EXPECT_EQ(child.Wait(), 0);
}

}  // namespace
}  // namespace hostmm::test
