// Snapshots on tables of every shape: tops at level 1, 2 and 3, small and huge frames, shared
// segments.

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "vmm/cow_fixture.h"

namespace hostmm {
namespace {

// No huge leaf and pte tables shared: tops stand at level 1, right above them.
constexpr Geometry kLowTop{.page_shift = 12,
                           .bits = {9, 5, 4, 4},
                           .huge_leaf_level = Geometry::kNoHugeLeaf,
                           .share_level = 0,
                           .levels = 4};

struct Shape {
  const char* name;
  Geometry geometry;
  FrameKind frames;
  uint64_t blocks;
  int top_level;
};

class CowShapeTest : public CowTablesTest, public testing::WithParamInterface<Shape> {
 protected:
  bool huge() const { return GetParam().frames == FrameKind::kHugetlb; }
  uint64_t unit() const { return huge() ? kPagesPerBlock : 1; }
  void Start(uint32_t max_nodes) {
    SegmentConfig config{.max_guests = 2, .max_mms = 8, .max_regions = 8, .max_nodes = max_nodes};
    config.geometry = GetParam().geometry;
    Format(config);
    AddFile(PageCount(GetParam().blocks * kPagesPerBlock), GetParam().frames);
  }
};

INSTANTIATE_TEST_SUITE_P(
    Shapes, CowShapeTest,
    testing::Values(Shape{"LowTop", kLowTop, FrameKind::kBase, 16, 1},
                    Shape{"X8664", kX8664, FrameKind::kHuge, 600, 2},
                    Shape{"X8664Hugetlb", kX8664, FrameKind::kHugetlb, 600, 2},
                    Shape{"HighTop", kSmallSpans, FrameKind::kHuge, 80, 3},
                    Shape{"HighTopHugetlb", kSmallSpans, FrameKind::kHugetlb, 80, 3},
                    Shape{"PowerPc", kPowerPcSegments, FrameKind::kHuge, 300, 2}),
    [](const auto& info) { return std::string(info.param.name); });

// Three snapshots, writes all over the file, each seen by those that were there.
TEST_P(CowShapeTest, EverySnapshotFindsItsMoment) {
  Start(512);
  Touch(GetParam().frames == FrameKind::kHugetlb ? 1 : 8);
  const uint32_t before = nodes();
  const uint64_t pages = GetParam().blocks * kPagesPerBlock;
  std::map<std::pair<int, uint64_t>, CowTables::Page> wanted;  // by snapshot and first page
  std::vector<MmId> ids;
  const std::vector<uint64_t> places = {0, 5 * kPagesPerBlock, pages / 2, pages - unit()};
  for (int i = 0; i < 3; ++i) {
    ids.push_back(Take());
    for (uint64_t place : places) {
      const uint64_t page = place / unit() * unit();
      // Snapshot i is the only one that shares it: the older have it from the rounds before.
      const FrameNumber frame = Write(page, unit(), 1);
      wanted[{i, page}] = Copy(frame);
    }
  }
  for (const auto& [key, page] : wanted) EXPECT_EQ(Find(ids[key.first], key.second), page);
  for (int which : {1, 0, 2}) Drop(ids[which]);
  EXPECT_EQ(nodes(), before);
  EXPECT_EQ(pool_.used(), 0u);
}

// The whole or nothing: with every number of nodes short of enough, Take and Privatize change
// nothing.
TEST_P(CowShapeTest, OutOfNodesChangesNothing) {
  for (const CowPolicy& policy : {CowPolicy{}, kAlwaysShare}) {
    uint32_t refused = 0;
    for (uint32_t max_nodes = 2; max_nodes < 40; ++max_nodes) {
      Start(max_nodes);
      if (!huge()) tables().SetBlockCollapsed(file_, BlockIndex(1));
      MmId snapshots[2];
      for (MmId& snapshot : snapshots) {
        const PoolUse before = segment_->reader().Pools();
        const TableStatus status = cow().Take(file_, policy, &snapshot);
        ExpectSound();
        if (status == TableStatus::kOk) {
          ASSERT_EQ(tables().PinMm(snapshot), TableStatus::kOk);
        } else {
          ASSERT_EQ(status, TableStatus::kNoSpace);
          EXPECT_EQ(segment_->reader().Pools().nodes, before.nodes);
          EXPECT_EQ(segment_->reader().Pools().mms, before.mms);
          EXPECT_FALSE(snapshot.valid());
          ++refused;
        }
        const std::vector<MmId> sharing = cow().Sharing(file_, FilePage(0));
        const uint32_t nodes_before = nodes();
        const FrameNumber frame = *pool_.Allocate(unit());
        uint32_t uses = 0;
        const TableStatus wrote =
            cow().Privatize(file_, FilePage(0), PageCount(unit()), frame, &uses);
        pool_.SetUses(frame, unit(), uses);
        if (uses == 0) pool_.Recycle(frame, unit());
        ExpectSound();
        if (wrote != TableStatus::kOk) {
          ASSERT_EQ(wrote, TableStatus::kNoSpace);
          EXPECT_EQ(uses, 0u);
          EXPECT_EQ(nodes(), nodes_before);
          EXPECT_EQ(cow().Sharing(file_, FilePage(0)), sharing);
          ++refused;
        }
      }
      for (MmId snapshot : snapshots) {
        if (snapshot.valid()) Drop(snapshot);
      }
      EXPECT_EQ(pool_.used(), 0u);
    }
    EXPECT_GT(refused, 0u);
  }
}

}  // namespace
}  // namespace hostmm
