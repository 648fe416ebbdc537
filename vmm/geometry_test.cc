#include "vmm/geometry.h"

#include <gtest/gtest.h>

namespace hostmm {
namespace {

constexpr PageCount kMib{256};
constexpr PageCount Gib(uint64_t count) { return PageCount(count << 18); }

TEST(GeometryTest, X8664) {
  ASSERT_TRUE(kX8664.IsValid());
  EXPECT_TRUE(kX8664.HasHugeLeaf());
  EXPECT_EQ(kX8664.MinTopLevel(), 2);
  EXPECT_EQ(kX8664.SpanOf(0), PageCount(1));
  EXPECT_EQ(kX8664.SpanOf(1), PageCount(kPagesPerBlock));
  EXPECT_EQ(kX8664.SpanOf(2), Gib(1));
  EXPECT_EQ(kX8664.ShareUnit(), PageCount(kPagesPerBlock));
  EXPECT_EQ(kX8664.NodeBytes(), 4096u);
  EXPECT_EQ(kX8664.IndexAt(1, FilePage(513)), 1u);
  EXPECT_EQ(kX8664.IndexAt(0, FilePage(513)), 1u);
}

TEST(GeometryTest, X8664TopIsTheLowestLevelThatCovers) {
  EXPECT_EQ(kX8664.TopLevelFor(PageCount(1)), 2);
  EXPECT_EQ(kX8664.TopLevelFor(Gib(512)), 2);
  EXPECT_EQ(kX8664.TopLevelFor(Gib(512) + PageCount(1)), 3);
  EXPECT_EQ(kX8664.TopLevelFor(Gib(512 * 512)), 3);
  EXPECT_EQ(kX8664.TopLevelFor(Gib(512 * 512) + PageCount(1)), 4);  // too long
}

TEST(GeometryTest, PowerPcSharesSegmentsAndNothingBelow) {
  ASSERT_TRUE(kPowerPcSegments.IsValid());
  EXPECT_FALSE(kPowerPcSegments.HasHugeLeaf());
  EXPECT_EQ(kPowerPcSegments.ShareUnit(), PageCount(256 * kMib.value()));
  EXPECT_EQ(kPowerPcSegments.MinTopLevel(), 2);
  // One entry of the top is one segment.
  EXPECT_EQ(kPowerPcSegments.SpanOf(2), kPowerPcSegments.ShareUnit());
  EXPECT_EQ(kPowerPcSegments.EntriesAt(1), 128u);
}

TEST(GeometryTest, NodesAreAsLargeAsTheWidestTable) {
  Geometry geometry = kX8664;
  geometry.bits = {9, 11, 9, 9};
  ASSERT_TRUE(geometry.IsValid());
  EXPECT_EQ(geometry.NodeBytes(), 2048u * 8);
  geometry.bits = {9, 2, 2, 2};
  EXPECT_EQ(geometry.NodeBytes(), 4096u);
}

TEST(GeometryTest, GeometriesThatCannotBe) {
  const auto changed = [](auto change) {
    Geometry geometry = kX8664;
    change(geometry);
    return geometry.IsValid();
  };
  EXPECT_TRUE(changed([](Geometry&) {}));
  EXPECT_FALSE(changed([](Geometry& g) { g.page_shift = 16; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.bits[0] = 8; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.bits[2] = 0; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.bits[3] = 13; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.levels = 5; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.levels = 2; }));  // no room for a top
  EXPECT_FALSE(changed([](Geometry& g) { g.huge_leaf_level = 2; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.share_level = 3; }));
  EXPECT_FALSE(changed([](Geometry& g) { g.share_level = 255; }));
}

}  // namespace
}  // namespace hostmm
