#include "runtime/cli/host_features.h"

#include <unistd.h>

#include <fstream>

#include "gtest/gtest.h"
#include "runtime/cli/proc_file.h"
#include "runtime/cli/testing_dir.h"

namespace hostmm {
namespace {

TEST(ParseKernelReleaseTest, ReadsTheNumbers) {
  EXPECT_EQ(ParseKernelRelease("6.18.44-x").major, 6);
  EXPECT_EQ(ParseKernelRelease("6.18.44-x").minor, 18);
  EXPECT_EQ(ParseKernelRelease("7.0-rc1").minor, 0);
  EXPECT_EQ(ParseKernelRelease("strange").major, 0);
  EXPECT_EQ(ParseKernelRelease("6").major, 0);
}

TEST(ActiveWordTest, IsTheOneInBrackets) {
  EXPECT_EQ(ActiveWord("always within_size advise [never] deny force\n"), "never");
  EXPECT_EQ(ActiveWord("[deny]"), "deny");
  EXPECT_EQ(ActiveWord("never"), "");
  EXPECT_EQ(ActiveWord("]["), "");
}

TEST(ProcFileTest, FindsWholeNamesOnly) {
  const std::string text = "VmPTEx:\t  1 kB\nVmPTE:\t    96 kB\nBad:\tword\nHugePages_Free:  7";
  EXPECT_EQ(KilobytesOf(text, "VmPTE"), 96u * 1024);
  EXPECT_EQ(NumberOf(text, "HugePages_Free"), 7u);
  EXPECT_EQ(NumberOf(text, "Bad"), std::nullopt);
  EXPECT_EQ(NumberOf(text, "Vm"), std::nullopt);
  EXPECT_EQ(NumberOf("", "Vm"), std::nullopt);
}

TEST(ProcFileTest, ReadsNumbersAndFilesThatAreNotThere) {
  const TestingDir dir;
  EXPECT_EQ(ReadProcNumber(dir.Write("n", "-1\n")), -1);
  EXPECT_EQ(ReadProcNumber(dir.Write("w", "word\n")), std::nullopt);
  EXPECT_EQ(ReadProcNumber(dir.Under("absent")), std::nullopt);
}

TEST(ProcFileTest, OwnPageTables) {
  EXPECT_GT(PageTableBytesOf(getpid()).value_or(0), 0u);
  EXPECT_EQ(PageTableBytesOf(0), std::nullopt);
}

// Whatever this host can do: every probe comes to an answer, and the answers agree with each other.
TEST(ProbeHostTest, AnswersAreComplete) {
  const HostFeatures host = ProbeHost();
  EXPECT_GT(host.kernel.major, 0);
  EXPECT_NE(host.userfaultfd.device.state, Attempt::State::kNotTried);
  EXPECT_NE(host.userfaultfd.system_call.state, Attempt::State::kNotTried);
  EXPECT_NE(host.io_uring.setup.state, Attempt::State::kNotTried);
  EXPECT_EQ(host.userfaultfd.passed_descriptor.state == Attempt::State::kNotTried,
            !host.userfaultfd.device.works());
  EXPECT_EQ(host.huge.user_namespace.state == Attempt::State::kNotTried, host.user == 0);
  if (host.huge.huge_bytes != 0) {
    EXPECT_TRUE(host.huge.tmpfs.works());
    EXPECT_TRUE(host.huge.shmem_enabled.has_value());
  }
  EXPECT_GT(host.limits.open_files_hard, 0u);
  EXPECT_GE(host.limits.open_files_hard, host.limits.open_files_soft);
  EXPECT_GT(host.available_bytes, 0u);
}

TEST(ProbeHostTest, LeavesNoProcessAndNoDescriptorBehind) {
  const auto descriptors = [] {
    int count = 0;
    for (int fd = 0; fd < 1024; ++fd) count += dup2(fd, fd) == fd ? 1 : 0;
    return count;
  };
  const int before = descriptors();
  ProbeHost();
  EXPECT_EQ(descriptors(), before);
}

}  // namespace
}  // namespace hostmm
