// The page-table budget in real programs: VmPTE, as the kernel counts it, at every look.
#include <sys/mman.h>

#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr int64_t kBudgetKib = 256;
// Above the budget, which is of the lowest level: one table of each upper level, a second where the
// region crosses a boundary, and what the threads' own memory grows by.
constexpr int64_t kSlackKib = 24;

struct Tables {
  int64_t baseline;
  int64_t peak;
};

// One for each guest that said it.
std::vector<Tables> TablesIn(const std::string& out) {
  std::vector<Tables> all;
  constexpr char kLabel[] = "VmPTE in KiB: baseline ";
  for (size_t at = out.find(kLabel); at != std::string::npos; at = out.find(kLabel, at + 1)) {
    long baseline = 0;
    long peak = 0;
    if (sscanf(out.c_str() + at + sizeof(kLabel) - 1, "%ld, peak %ld", &baseline, &peak) == 2) {
      all.push_back({baseline, peak});
    }
  }
  return all;
}

std::string WhyNoTableReclaim() {
  constexpr size_t kBytes = 4 << 20;
  void* at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return "no memory";
  for (size_t i = 0; i < kBytes; i += 4096) static_cast<volatile char*>(at)[i] = 1;
  const int64_t before = StatusKib(0, "VmPTE");
  madvise(at, kBytes, MADV_DONTNEED);
  const int64_t after = StatusKib(0, "VmPTE");
  munmap(at, kBytes);
  return after < before ? "" : "a zap frees no page tables: needs CONFIG_PT_RECLAIM (Linux 6.14)";
}

Ended RunOnBaseFrames(const std::vector<std::string>& options, const std::string& guest_case) {
  std::vector<std::string> command = {Built::hostmm, "run", "--frames=base"};
  command.insert(command.end(), options.begin(), options.end());
  command.insert(command.end(), {"--", Built::guest, guest_case});
  const Ended ended = RunToEnd(command);
  EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
  EXPECT_EQ(ended.out.find("#BAD"), std::string::npos) << ended.out << ended.err;
  EXPECT_NE(ended.out.find("all values are right"), std::string::npos) << ended.out << ended.err;
  return ended;
}

class PtBudgetTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    HOSTMM_SKIP_IF(WhyNoTableReclaim());
    HOSTMM_SKIP_IF(WhyNoMemory(2));
  }
};

class PtBudgetSizeTest : public PtBudgetTest, public testing::WithParamInterface<std::string> {};

TEST_P(PtBudgetSizeTest, HoldsAtEveryLook) {
  const Ended ended = RunOnBaseFrames({"--pt-budget=256k"}, GetParam());
  const std::vector<Tables> guests = TablesIn(ended.out);
  ASSERT_EQ(guests.size(), 2u) << ended.out;
  for (const Tables& tables : guests) {
    EXPECT_LE(tables.peak, tables.baseline + kBudgetKib + kSlackKib);
    // A budget of which half is left unused would hold as well.
    EXPECT_GE(tables.peak, tables.baseline + kBudgetKib * 3 / 4);
  }
}

// Not to the whole of what 4 KiB pages need (512 KiB, 2 MiB): blocks that are full are collapsed
// meanwhile, and their tables go.
TEST_P(PtBudgetSizeTest, WithoutOneTheTablesGrowBeyondIt) {
  const Ended ended = RunOnBaseFrames({}, GetParam());
  const std::vector<Tables> guests = TablesIn(ended.out);
  ASSERT_EQ(guests.size(), 2u) << ended.out;
  for (const Tables& tables : guests) {
    EXPECT_GT(tables.peak, tables.baseline + kBudgetKib + kSlackKib);
  }
}

INSTANTIATE_TEST_SUITE_P(Case, PtBudgetSizeTest, testing::Values("Region256MiB", "Region1GiB"),
                         [](const auto& info) { return info.param; });

TEST_F(PtBudgetTest, TheLeastBudgetIsEnoughToGetOn) {
  RunOnBaseFrames({"--pt-budget=4k"}, "InstructionsAcrossBlocks");
}

TEST_F(PtBudgetTest, WhatTheProgramDoesMeanwhileIsNoObstacle) {
  RunOnBaseFrames({"--pt-budget=64k"}, "MapsLocksAndUnmapsMeanwhile");
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
