#include "vmm/node_allocator.h"

#include <gtest/gtest.h>

#include <set>

#include "vmm/test_segment.h"

namespace hostmm {
namespace {

class NodeAllocatorTest : public testing::Test {
 protected:
  const Segment& segment() { return segment_.tables.segment(); }

  TestSegment segment_{{.max_guests = 2, .max_mms = 2, .max_regions = 2, .max_nodes = 4}};
  NodeAllocator nodes_{segment_.tables.segment()};
};

TEST_F(NodeAllocatorTest, HandsOutEveryNodeOnce) {
  std::set<HostOffset> tables;
  for (int i = 0; i < 4; ++i) tables.insert(nodes_.Allocate(0, NodeKind::kTable));
  EXPECT_EQ(tables.size(), 4u);
  EXPECT_FALSE(tables.contains(kNullOffset));
  EXPECT_EQ(nodes_.available(), 0u);
  EXPECT_EQ(nodes_.Allocate(0, NodeKind::kTable), kNullOffset);
}

TEST_F(NodeAllocatorTest, AReusedNodeIsEmpty) {
  const HostOffset table = nodes_.Allocate(0, NodeKind::kTable);
  for (int i = 0; i < 512; ++i) segment().entries(table)[i].Store(~uint64_t{0});
  nodes_.DropUse(table);
  nodes_.Free(table);
  EXPECT_EQ(nodes_.available(), 4u);
  ASSERT_EQ(nodes_.Allocate(1, NodeKind::kPrivateTop), table);
  for (int i = 0; i < 512; ++i) ASSERT_EQ(segment().entries(table)[i].Load(), 0u) << i;
  const NodeUse use = NodeUse::Load(*nodes_.RecordOf(table));
  EXPECT_EQ(use.count, 1u);
  EXPECT_EQ(use.level, 1);
  EXPECT_EQ(use.kind, NodeKind::kPrivateTop);
  EXPECT_EQ(NodeFill::Load(*nodes_.RecordOf(table)).live, 0);
}

TEST_F(NodeAllocatorTest, FreeingMovesTheEpoch) {
  const HostOffset table = nodes_.Allocate(0, NodeKind::kTable);
  const uint64_t before = segment().header().free_epoch.Load();
  nodes_.DropUse(table);
  EXPECT_EQ(segment().header().free_epoch.Load(), before);
  nodes_.Free(table);
  EXPECT_GT(segment().header().free_epoch.Load(), before);
}

TEST_F(NodeAllocatorTest, UseCounts) {
  const HostOffset table = nodes_.Allocate(0, NodeKind::kTable);
  nodes_.RaiseUse(table);
  EXPECT_EQ(nodes_.DropUse(table), 1u);
  EXPECT_EQ(nodes_.DropUse(table), 0u);
}

TEST_F(NodeAllocatorTest, FillKeepsItsParts) {
  const HostOffset table = nodes_.Allocate(0, NodeKind::kTable);
  NodeFill{.live = 512, .in_flight = 511, .touches = 255}.StoreTo(nodes_.RecordOf(table));
  const NodeFill fill = NodeFill::Load(*nodes_.RecordOf(table));
  EXPECT_EQ(fill.live, 512);
  EXPECT_EQ(fill.in_flight, 511);
  EXPECT_EQ(fill.touches, 255);
}

}  // namespace
}  // namespace hostmm
