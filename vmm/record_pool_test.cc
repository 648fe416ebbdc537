#include "vmm/record_pool.h"

#include <gtest/gtest.h>

#include <set>

#include "vmm/test_segment.h"

namespace hostmm {
namespace {

TEST(RecordPoolTest, HandsOutEachRecordOnceAndAgainAfterGiveBack) {
  TestSegment segment({.max_guests = 3, .max_mms = 1, .max_regions = 1, .max_nodes = 1});
  auto pool = GuestPool(segment.tables.segment());
  std::set<RecordIndex> taken = {pool.Take(), pool.Take(), pool.Take()};
  EXPECT_EQ(taken, (std::set<RecordIndex>{1, 2, 3}));
  EXPECT_EQ(pool.Take(), kNullRecord);
  EXPECT_EQ(pool.available(), 0u);
  pool.GiveBack(2);
  pool.GiveBack(1);
  EXPECT_EQ(pool.available(), 2u);
  EXPECT_EQ(pool.Take(), 1u);
  EXPECT_EQ(pool.Take(), 2u);
  EXPECT_EQ(pool.Take(), kNullRecord);
}

TEST(RecordPoolTest, GenerationsSkipNull) {
  TestSegment segment({.max_guests = 1, .max_mms = 1, .max_regions = 1, .max_nodes = 1});
  SharedWord& identity = segment.tables.segment().guest(1)->identity;
  EXPECT_EQ(NextGeneration(identity), 1u);
  identity.StoreLow(~uint32_t{0});
  EXPECT_EQ(NextGeneration(identity), 1u);
}

}  // namespace
}  // namespace hostmm
