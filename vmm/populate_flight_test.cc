#include "vmm/populate_flight.h"

#include <gtest/gtest.h>

#include "vmm/test_segment.h"

namespace hostmm {
namespace {

class PopulateFlightTest : public testing::Test {
 protected:
  Pte At(uint64_t index) { return table_.EntryAt(small_, index); }

  TestSegment segment_{{.max_guests = 1, .max_mms = 1, .max_regions = 1, .max_nodes = 4}};
  MmId mm_ = segment_.AddMm(PageCount(2 * kPagesPerBlock));
  PageTable table_{segment_.tables.segment(), segment_.tables.segment().Find(mm_)};
  HostOffset small_ = table_.MakeSmallTable(BlockIndex(1));
  PopulateFlight flight_{&table_, BlockIndex(1)};
};

TEST_F(PopulateFlightTest, TakesOffHolesOnlyAndLandsThem) {
  flight_.TakeOffHoles(small_, {4, 8});
  EXPECT_EQ(flight_.Land({4, 8}), 4u);
  flight_.TakeOffHoles(small_, {0, 16});
  EXPECT_TRUE(At(5).is_present());
  EXPECT_TRUE(At(0).is_in_flight());
  EXPECT_EQ(At(0).frame(), FrameNumber(kPagesPerBlock));
  EXPECT_EQ(flight_.Land({0, 16}), 12u);
}

TEST_F(PopulateFlightTest, AbandonGoesBack) {
  flight_.TakeOffHoles(small_, {0, 2});
  flight_.Land({0, 2});
  flight_.TakeOffWholeBlock(small_);
  EXPECT_TRUE(At(0).was_present());
  EXPECT_TRUE(At(511).is_in_flight());
  flight_.Abandon({0, kPagesPerBlock});
  EXPECT_TRUE(At(0).is_present());
  EXPECT_TRUE(At(2).is_empty());
}

TEST_F(PopulateFlightTest, ClearAroundStopsAtWhatIsInFlight) {
  flight_.TakeOffHoles(small_, {10, 12});
  flight_.TakeOffHoles(small_, {20, 21});
  const IndexRange between = flight_.ClearAround(small_, 15, {0, 64});
  EXPECT_EQ(between.begin, 12u);
  EXPECT_EQ(between.end, 20u);
  const IndexRange above = flight_.ClearAround(small_, 30, {0, 64});
  EXPECT_EQ(above.begin, 21u);
  EXPECT_EQ(above.end, 64u);
}

TEST_F(PopulateFlightTest, LastHole) {
  EXPECT_FALSE(flight_.ClosesLastHole(small_, {0, 511}));
  EXPECT_TRUE(flight_.ClosesLastHole(small_, {0, 512}));
  flight_.TakeOffHoles(small_, {0, 500});
  EXPECT_FALSE(flight_.ClosesLastHole(small_, {500, 512}));  // those may still fail
  flight_.Land({0, 500});
  EXPECT_TRUE(flight_.ClosesLastHole(small_, {500, 512}));
}

TEST_F(PopulateFlightTest, ABlockWithoutATableIsLeftAlone) {
  PopulateFlight other(&table_, BlockIndex(0));
  EXPECT_EQ(other.Land({0, kPagesPerBlock}), 0u);
  other.Abandon({0, kPagesPerBlock});
}

}  // namespace
}  // namespace hostmm
