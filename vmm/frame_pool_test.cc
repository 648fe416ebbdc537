#include "vmm/frame_pool.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace hostmm {
namespace {

// One table less, and its memory is given back at once. RETURNS: whether that was the last.
bool Free(FramePool* pool, uint64_t frame) {
  if (!pool->Drop(FrameNumber(frame))) return false;
  pool->Recycle(FrameNumber(frame), 1);
  return true;
}

TEST(FramePoolTest, FramesAreReusedFromTheFront) {
  FramePool pool;
  EXPECT_EQ(pool.Allocate(1), FrameNumber(0));
  EXPECT_EQ(pool.Allocate(1), FrameNumber(1));
  EXPECT_EQ(pool.Allocate(3), FrameNumber(2));
  for (uint64_t i = 0; i < 5; ++i) pool.SetUses(FrameNumber(i), 1, 1);
  EXPECT_EQ(pool.end(), 5u);
  EXPECT_TRUE(Free(&pool, 0));
  EXPECT_TRUE(Free(&pool, 2));
  EXPECT_EQ(pool.used(), 3u);
  EXPECT_EQ(pool.end(), 5u);
  EXPECT_EQ(pool.Allocate(1), FrameNumber(0));
  EXPECT_EQ(pool.Allocate(1), FrameNumber(2));
  EXPECT_EQ(pool.Allocate(1), FrameNumber(5));
}

TEST(FramePoolTest, RunsThatTouchBecomeOne) {
  FramePool pool;
  ASSERT_EQ(pool.Allocate(5), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 5, 1);
  for (uint64_t frame : {0, 2, 1}) EXPECT_TRUE(Free(&pool, frame));
  EXPECT_EQ(pool.Allocate(3), FrameNumber(0));
}

TEST(FramePoolTest, AFrameIsFreeWhenItsLastTableGoes) {
  FramePool pool;
  ASSERT_EQ(pool.Allocate(2), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 2, 2);
  EXPECT_FALSE(pool.Drop(FrameNumber(1)));
  EXPECT_EQ(pool.used(), 2u);
  EXPECT_TRUE(pool.Drop(FrameNumber(1)));
  EXPECT_EQ(pool.used(), 1u);
}

TEST(FramePoolTest, WhatWasNotNeededIsFree) {
  FramePool pool;
  ASSERT_EQ(pool.Allocate(4), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 4, 0);
  EXPECT_EQ(pool.used(), 0u);
  EXPECT_EQ(pool.end(), 4u);
  pool.Recycle(FrameNumber(0), 4);
  EXPECT_EQ(pool.end(), 0u);
}

TEST(FramePoolTest, TheLimitIsOfFramesInUse) {
  FramePool pool(4);
  ASSERT_EQ(pool.Allocate(3), FrameNumber(0));
  EXPECT_EQ(pool.Allocate(2), std::nullopt);
  EXPECT_EQ(pool.used(), 3u);
  ASSERT_EQ(pool.Allocate(1), FrameNumber(3));
  EXPECT_EQ(pool.Allocate(1), std::nullopt);
  pool.SetUses(FrameNumber(0), 3, 1);
  EXPECT_TRUE(Free(&pool, 1));
  EXPECT_EQ(pool.Allocate(1), FrameNumber(1));
}

// Whoever gives its memory back does not take the next content with it; and until then it has
// memory.
TEST(FramePoolTest, AFrameIsNotReusedBeforeItIsRecycled) {
  FramePool pool(3);
  ASSERT_EQ(pool.Allocate(2), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 2, 1);
  EXPECT_TRUE(pool.Drop(FrameNumber(0)));
  EXPECT_EQ(pool.used(), 1u);
  EXPECT_EQ(pool.Allocate(1), FrameNumber(2));
  EXPECT_EQ(pool.used(), 2u);
  EXPECT_EQ(pool.Allocate(1), std::nullopt);
  pool.Recycle(FrameNumber(0), 1);
  EXPECT_EQ(pool.Allocate(1), FrameNumber(0));
}

TEST(FramePoolTest, TheEndShrinks) {
  FramePool pool;
  ASSERT_EQ(pool.Allocate(3), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 3, 1);
  Free(&pool, 1);
  EXPECT_EQ(pool.end(), 3u);
  Free(&pool, 2);
  EXPECT_EQ(pool.end(), 1u);
}

// Against a set of used frames.
TEST(FramePoolTest, RandomUse) {
  std::mt19937_64 random(7);
  FramePool pool(300);
  std::set<uint64_t> used;
  for (int i = 0; i < 20000; ++i) {
    if (random() % 2 == 0) {
      const uint64_t count = 1 + random() % 8;
      const auto first = pool.Allocate(count);
      ASSERT_EQ(first.has_value(), used.size() + count <= 300);
      if (!first.has_value()) continue;
      for (uint64_t frame = first->value(); frame < first->value() + count; ++frame) {
        ASSERT_TRUE(used.insert(frame).second);
      }
      pool.SetUses(*first, count, 1);
    } else if (!used.empty()) {
      const auto at = used.lower_bound(random() % 400);
      if (at == used.end()) continue;
      ASSERT_TRUE(Free(&pool, *at));
      used.erase(at);
    }
    ASSERT_EQ(pool.used(), used.size());
    ASSERT_EQ(pool.end(), used.empty() ? 0 : *used.rbegin() + 1);
  }
}

TEST(FramePoolDeathTest, MoreDropsThanTables) {
  FramePool pool;
  ASSERT_EQ(pool.Allocate(2), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 2, 1);
  pool.Drop(FrameNumber(0));
  EXPECT_DEATH(pool.Drop(FrameNumber(0)), "uses_");
}

TEST(FramePoolDeathTest, AFrameThatIsUsedIsNotRecycled) {
  FramePool pool;
  ASSERT_EQ(pool.Allocate(2), FrameNumber(0));
  pool.SetUses(FrameNumber(0), 2, 1);
  EXPECT_DEATH(pool.Recycle(FrameNumber(1), 1), "uses == 0");
}

}  // namespace
}  // namespace hostmm
