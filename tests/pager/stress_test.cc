// Every rung under load: 16 processes of 4 threads that fault at random, fork, exit and are killed.
// The content is right, the tables are sound, and of all that nothing is left.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "runtime/frame_store.h"
#include "tests/pager/pager_child.h"
#include "tests/pager/raw_guest.h"
#include "tests/testing/skip.h"
#include "tests/testing/sysctl_guard.h"

namespace hostmm::test {
namespace {

// Paths of what is run, from the command line.
std::string g_guest;
std::string g_library;

// All of one load: finds a hang. The slowest takes 20 s on two idle cores, which nothing else here
// asserts.
constexpr std::chrono::seconds kLoadDeadline(120);

void RunLoad(const PagerChild::Setup& setup, const char* frames) {
  PagerChild pager(setup);
  ASSERT_TRUE(pager.ok()) << pager.ready();
  ASSERT_NE(pager.ready().find(std::string("frames=") + frames), std::string::npos)
      << pager.ready();
  ASSERT_TRUE(HonestGuestIsServed(pager.socket_path()));
  ASSERT_TRUE(pager.BecomesEmpty(1 << 20));
  const int descriptors = pager.OpenDescriptors();
  const uint64_t faults = pager.Take()->faults;
  Child load(Identity::kSame, [&](Channel&) {
    // In a group of its own, so that what a failed run leaves can be killed with it.
    setpgid(0, 0);
    setenv("LD_PRELOAD", g_library.c_str(), 1);
    setenv("HOSTMM_SOCKET", pager.socket_path().c_str(), 1);
    execl(g_guest.c_str(), g_guest.c_str(), nullptr);
    return 127;
  });
  const pid_t group = load.pid();
  const int status = load.Wait(kLoadDeadline);
  kill(-group, SIGKILL);
  EXPECT_EQ(status, 0) << "-1: a fault was not answered";
  EXPECT_TRUE(pager.BecomesEmpty(descriptors));
  const std::optional<Census> census = pager.Take();
  ASSERT_TRUE(census.has_value());
  EXPECT_GT(census->faults, faults) << "the region was not managed";
  for (const std::string& problem : census->problems) ADD_FAILURE() << problem;
}

class StressTest : public testing::Test {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(WhyNoUserfaultfd()); }
};

TEST_F(StressTest, HugeFrames) {
  HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
  RunLoad({.frames = FramesChoice::kHuge}, "huge");
}

TEST_F(StressTest, BaseFrames) { RunLoad({.frames = FramesChoice::kBase}, "base"); }

TEST_F(StressTest, BaseFramesUnderABudget) {
  // 16 of the 48 page-table pages that the region needs.
  RunLoad({.frames = FramesChoice::kBase, .pt_budget_bytes = 64 << 10}, "base");
}

TEST_F(StressTest, HugetlbFrames) {
  // The load's 48, the honest guest's 8, and room for the store's probe.
  constexpr int64_t kPages = 128;
  const SysctlGuard overcommit("/proc/sys/vm/nr_overcommit_hugepages", kPages);
  if (!overcommit.ok()) GTEST_SKIP() << "needs root to raise vm.nr_overcommit_hugepages";
  if (!FrameStore::Open(FrameKind::kHugetlb).ok()) {
    GTEST_SKIP() << "needs 2 MiB hugetlb pages, and there are none";
  }
  RunLoad({.frames = FramesChoice::kHugetlb}, "hugetlb");
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 3) return 2;
  hostmm::test::g_guest = argv[1];
  hostmm::test::g_library = argv[2];
  return RUN_ALL_TESTS();
}
