#include "vmm/density_policy.h"

#include <gtest/gtest.h>

namespace hostmm {
namespace {

// The choice for a block that has been touched `touches` times and has four pages of each.
DensityChoice After(uint32_t touches, DensityInput input = {}) {
  input.touches = touches;
  input.fill = touches == 0 ? BlockFill::kUntouched : BlockFill::kSmall;
  input.present = PageCount(4 * touches);
  return ChooseGrain(input);
}

DensityChoice With(uint64_t present, Order order, FrameKind frames = FrameKind::kHuge) {
  return ChooseGrain({.frames = frames,
                      .fill = BlockFill::kSmall,
                      .touches = 1,
                      .present = PageCount(present),
                      .order = order});
}

TEST(DensityPolicyTest, SequentialFaultsDoubleWhatIsThere) {
  EXPECT_EQ(After(0).window, PageCount(4));
  EXPECT_EQ(After(0).cause, FaultCause::kFirstTouch);
  for (uint64_t present : {4, 8, 16, 32, 64}) {
    const DensityChoice choice = With(present, Order::kSequential);
    EXPECT_EQ(choice.grain, Grain::kSmall);
    EXPECT_EQ(choice.window, PageCount(present));
    EXPECT_EQ(choice.cause, FaultCause::kFillAround);
  }
  EXPECT_EQ(With(127, Order::kSequential).window, PageCount(64));
  // Not a power of two: rounded down, as the caller aligns the window.
  EXPECT_EQ(With(13, Order::kSequential).window, PageCount(8));
}

TEST(DensityPolicyTest, ScatteredFaultsNeverGetMore) {
  for (uint64_t present = 1; present < 128; ++present) {
    EXPECT_EQ(With(present, Order::kScattered).grain, Grain::kSmall);
    EXPECT_EQ(With(present, Order::kScattered).window, PageCount(4));
  }
}

TEST(DensityPolicyTest, AQuarterOfItsPagesMakesABlockDense) {
  for (Order order : {Order::kScattered, Order::kSequential}) {
    EXPECT_EQ(With(127, order).grain, Grain::kSmall);
    EXPECT_EQ(With(128, order).grain, Grain::kCollapse);
    EXPECT_EQ(With(128, order).cause, FaultCause::kDense);
    EXPECT_EQ(With(511, order).grain, Grain::kCollapse);
  }
}

// The promise of section 12 of the design: one page in each block must not cost 512.
TEST(DensityPolicyTest, ASparseToucherPaysFourPagesPerBlock) {
  for (MemoryClimate memory : {MemoryClimate::kAmple, MemoryClimate::kTight}) {
    const DensityChoice choice = After(0, {.memory = memory});
    EXPECT_EQ(choice.grain, Grain::kSmall);
    EXPECT_LE(choice.window, PageCount(4));
  }
}

TEST(DensityPolicyTest, AHugeNeighbourIsFollowedWithAProbe) {
  const DensityChoice choice = After(0, {.neighbour = HugeNeighbour::kBehind});
  EXPECT_EQ(choice.grain, Grain::kHuge);
  EXPECT_EQ(choice.probe, Probe::kNeighbour);
  EXPECT_EQ(choice.window, PageCount(4));  // the fallback
  // A block that has small pages cannot be huge at once.
  EXPECT_EQ(After(1, {.neighbour = HugeNeighbour::kBehind}).grain, Grain::kSmall);
}

TEST(DensityPolicyTest, HintsAreTaken) {
  const DensityChoice huge = After(0, {.hint = HugeHint::kHuge});
  EXPECT_EQ(huge.grain, Grain::kHuge);
  EXPECT_EQ(huge.probe, Probe::kNone);
  EXPECT_EQ(After(1, {.hint = HugeHint::kHuge}).grain, Grain::kCollapse);
  // A hint is the program's own decision about its memory, also when that is tight.
  EXPECT_EQ(After(0, {.hint = HugeHint::kHuge, .memory = MemoryClimate::kTight}).grain,
            Grain::kHuge);
  for (uint32_t touches = 0; touches < 10; ++touches) {
    const DensityChoice small =
        After(touches, {.hint = HugeHint::kSmall, .neighbour = HugeNeighbour::kBefore});
    EXPECT_EQ(small.grain, Grain::kSmall);
    EXPECT_EQ(small.on_full, OnFull::kLeave);
  }
}

TEST(DensityPolicyTest, TightMemoryNeverFillsBlocks) {
  for (uint32_t touches = 0; touches < 10; ++touches) {
    const DensityChoice choice =
        After(touches, {.memory = MemoryClimate::kTight, .neighbour = HugeNeighbour::kBefore});
    EXPECT_EQ(choice.grain, Grain::kSmall);
    EXPECT_EQ(choice.window, PageCount(4));
  }
}

TEST(DensityPolicyTest, TheTailOfAFileIsNeverHuge) {
  for (uint32_t touches = 0; touches < 10; ++touches) {
    for (HugeHint hint : {HugeHint::kNone, HugeHint::kHuge}) {
      const DensityChoice choice = After(touches, {.hint = hint, .place = BlockPlace::kTail});
      EXPECT_EQ(choice.grain, Grain::kSmall);
      EXPECT_EQ(choice.on_full, OnFull::kLeave);
    }
  }
}

TEST(DensityPolicyTest, AGeometryWithoutHugeLeaves) {
  for (uint32_t touches = 0; touches < 10; ++touches) {
    const DensityInput input{.hint = HugeHint::kHuge, .huge_leaves = HugeLeaves::kImpossible};
    EXPECT_EQ(After(touches, input).grain, Grain::kSmall);
  }
}

TEST(DensityPolicyTest, HugetlbIsAlwaysHuge) {
  const DensityInput input{.frames = FrameKind::kHugetlb,
                           .hint = HugeHint::kSmall,
                           .memory = MemoryClimate::kTight,
                           .place = BlockPlace::kTail};
  EXPECT_EQ(After(0, input).grain, Grain::kHuge);
  EXPECT_EQ(After(0, input).window, PageCount(0));  // nothing to fall back to
}

TEST(DensityPolicyTest, BaseFramesGrowInSequenceAndCollapseWhenFull) {
  for (uint64_t present : {4, 16, 64, 256}) {
    const DensityChoice choice = With(present, Order::kSequential, FrameKind::kBase);
    EXPECT_EQ(choice.grain, Grain::kSmall);
    EXPECT_EQ(choice.on_full, OnFull::kCollapse);
    EXPECT_EQ(choice.window, PageCount(present));
    EXPECT_EQ(With(present, Order::kScattered, FrameKind::kBase).window, PageCount(4));
  }
}

TEST(DensityPolicyTest, TrackedRegionsAreExact) {
  for (FrameKind frames : {FrameKind::kBase, FrameKind::kHuge}) {
    for (uint32_t touches = 0; touches < 10; ++touches) {
      const DensityChoice choice = After(touches, {.frames = frames,
                                                   .hint = HugeHint::kHuge,
                                                   .tracking = Tracking::kOn,
                                                   .neighbour = HugeNeighbour::kBefore});
      EXPECT_EQ(choice.grain, Grain::kSmall);
      EXPECT_EQ(choice.window, PageCount(1));
      EXPECT_EQ(choice.on_full, OnFull::kLeave);
    }
  }
}

}  // namespace
}  // namespace hostmm
