// Random programs of operations against a plain model, on three geometries and on a segment whose
// pools run out all the time.

#include <gtest/gtest.h>

#include <string>

#include "vmm/table_program.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr SegmentConfig kRoomy{
    .max_guests = 64, .max_mms = 64, .max_regions = 4096, .max_nodes = 4096};
// Arbitrary, small enough that every kind of pool is exhausted within a program.
constexpr SegmentConfig kTight{
    .max_guests = 5, .max_mms = 5, .max_regions = 14, .max_nodes = 30, .geometry = kSmallSpans};

// Tables for some of the blocks only.
constexpr SegmentConfig kFewNodes{
    .max_guests = 4, .max_mms = 4, .max_regions = 20, .max_nodes = 6, .geometry = kSmallSpans};

// Regions for the windows of four guests, but often not for the pieces that protections make.
constexpr SegmentConfig kFewRegions{
    .max_guests = 8, .max_mms = 4, .max_regions = 24, .max_nodes = 64, .geometry = kSmallSpans};

SegmentConfig WithGeometry(SegmentConfig config, const Geometry& geometry) {
  config.geometry = geometry;
  return config;
}

void RunSeeds(ProgramMix mix, const SegmentConfig& config, uint64_t first_seed, int programs) {
  constexpr size_t kOperations = 250;
  for (uint64_t seed = first_seed; seed < first_seed + programs; ++seed) {
    const Program program = GenerateProgram(mix, seed, kOperations);
    const auto failure = RunProgram(config, program);
    if (!failure.has_value()) continue;
    const Program small = Shrink(config, program);
    FAIL() << "seed " << seed << ": " << *failure
           << "\nshortest: " << RunProgram(config, small).value_or("(passes?)") << "\n"
           << ToCpp(small);
  }
}

TEST(ProgramTest, SmallSpans) {
  RunSeeds(ProgramMix::kEverything, WithGeometry(kRoomy, kSmallSpans), 1, 25);
}
TEST(ProgramTest, X8664) { RunSeeds(ProgramMix::kEverything, kRoomy, 1000, 15); }
TEST(ProgramTest, Segments) {
  RunSeeds(ProgramMix::kEverything, WithGeometry(kRoomy, kSmallSegments), 2000, 15);
}
TEST(ProgramTest, PoolsRunOut) { RunSeeds(ProgramMix::kEverything, kTight, 3000, 40); }

TEST(ProgramTest, Faults) { RunSeeds(ProgramMix::kFaults, kRoomy, 4000, 40); }
TEST(ProgramTest, FaultsWithoutHugeLeaves) {
  RunSeeds(ProgramMix::kFaults, WithGeometry(kRoomy, kSmallSegments), 5000, 10);
}
TEST(ProgramTest, FaultsWithoutNodes) { RunSeeds(ProgramMix::kFaults, kFewNodes, 6000, 40); }

TEST(ProgramTest, OptIn) {
  RunSeeds(ProgramMix::kOptIn, WithGeometry(kRoomy, kSmallSpans), 7000, 30);
}
TEST(ProgramTest, OptInWithFewRegions) { RunSeeds(ProgramMix::kOptIn, kFewRegions, 8000, 40); }

TEST(ProgramTest, GeneratedProgramsAreNotTrivial) {
  size_t commits = 0;
  size_t faults = 0;
  for (const ProgramOp& op : GenerateProgram(ProgramMix::kEverything, 7, 1000)) {
    commits += std::holds_alternative<CommitOp>(op);
    faults += std::holds_alternative<FaultOp>(op);
  }
  EXPECT_GT(commits, 100u);
  EXPECT_GT(faults, 100u);
}

TEST(ProgramTest, PrintsCpp) {
  const Program program = {AddGuestOp{}, MapOp{1, 2, 3, 4, 5, 6, 7}, CommitOp{1, 2, 0}};
  EXPECT_EQ(ToCpp(program),
            "const Program program = {\n    AddGuestOp{},\n    MapOp{1, 2, 3, 4, 5, 6, 7},\n"
            "    CommitOp{1, 2, 0},\n};\n");
}

}  // namespace
}  // namespace hostmm
