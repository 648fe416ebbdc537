#include "vmm/page_table.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/invariants.h"
#include "vmm/node_allocator.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr PageCount Blocks(uint64_t count) { return PageCount(count * kPagesPerBlock); }

class PageTableTest : public testing::Test {
 protected:
  PageTableTest() : PageTableTest(kX8664) {}
  explicit PageTableTest(const Geometry& geometry)
      : segment_({.max_guests = 2,
                  .max_mms = 2,
                  .max_regions = 2,
                  .max_nodes = 5,
                  .geometry = geometry}) {}
  ~PageTableTest() override {
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  PageTable Table(PageCount length) {
    mm_ = segment_.AddMm(length);
    return PageTable(segment_.tables.segment(), segment_.tables.segment().Find(mm_));
  }
  uint32_t Nodes() { return segment_.reader().Pools().nodes; }
  // Makes the page present, as a fault would.
  void Install(PageTable& table, uint64_t page) {
    const HostOffset small = table.MakeSmallTable(BlockFloor(FilePage(page)));
    ASSERT_NE(small, kNullOffset);
    table.Replace(small, IndexInBlock(FilePage(page)),
                  table.Leaf(LeafSize::kSmall, FilePage(page)));
  }

  TestSegment segment_;
  MmId mm_;
};

TEST_F(PageTableTest, AnUntouchedTableHasNoSlots) {
  const PageTable table = Table(Blocks(4));
  EXPECT_FALSE(table.FindBlock(BlockIndex(0)).exists());
  EXPECT_FALSE(table.FindPage(FilePage(3)).exists());
  EXPECT_EQ(Nodes(), 1u);
}

TEST_F(PageTableTest, TablesComeWithTheFirstEntryAndGoWithTheLast) {
  PageTable table = Table(Blocks(4));
  Install(table, 3);
  Install(table, 4);
  EXPECT_EQ(Nodes(), 3u);  // top, pmd table, pte table
  EXPECT_TRUE(table.FindPage(FilePage(3)).entry.is_present());
  ASSERT_EQ(table.Punch(FilePage(3), PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(Nodes(), 3u);
  ASSERT_EQ(table.Punch(FilePage(4), PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(Nodes(), 1u);
}

TEST_F(PageTableTest, AHugeLeafTakesNoPteTable) {
  PageTable table = Table(Blocks(4));
  const PteSlot slot = table.MakeBlock(BlockIndex(2));
  table.Replace(slot.table, slot.index, table.Leaf(LeafSize::kHuge, FirstPageOf(BlockIndex(2))));
  EXPECT_EQ(Nodes(), 2u);
  ASSERT_EQ(table.SplitHuge(BlockIndex(2)), TableStatus::kOk);
  EXPECT_EQ(Nodes(), 3u);
  EXPECT_EQ(segment_.tables.Info(mm_).small_pages, Blocks(1));
  table.MergeIntoHuge(BlockIndex(2), table.Leaf(LeafSize::kHuge, FirstPageOf(BlockIndex(2))));
  EXPECT_EQ(Nodes(), 2u);
  EXPECT_EQ(segment_.tables.Info(mm_).huge_blocks, 1u);
  EXPECT_EQ(segment_.tables.Info(mm_).small_pages, PageCount(0));
}

TEST_F(PageTableTest, RunningOutOfTablesChangesNothing) {
  PageTable table = Table(Blocks(4));
  for (uint64_t block = 0; block < 3; ++block) Install(table, block * kPagesPerBlock);
  EXPECT_EQ(Nodes(), 5u);
  EXPECT_EQ(table.MakeSmallTable(BlockIndex(3)), kNullOffset);
  const PteSlot slot = table.MakeBlock(BlockIndex(3));
  ASSERT_TRUE(slot.exists());
  table.Replace(slot.table, slot.index, table.Leaf(LeafSize::kHuge, FirstPageOf(BlockIndex(3))));
  EXPECT_EQ(table.Punch(FirstPageOf(BlockIndex(3)), PageCount(1)), TableStatus::kNoSpace);
  EXPECT_EQ(segment_.tables.Info(mm_).huge_blocks, 1u);
  // The whole block needs no table.
  EXPECT_EQ(table.Punch(FirstPageOf(BlockIndex(3)), Blocks(1)), TableStatus::kOk);
}

TEST_F(PageTableTest, APunchThatNeedsTwoSplitsNeedsTwoTables) {
  PageTable table = Table(Blocks(4));
  for (uint64_t block = 0; block < 4; ++block) {
    const PteSlot slot = table.MakeBlock(BlockIndex(block));
    table.Replace(slot.table, slot.index,
                  table.Leaf(LeafSize::kHuge, FirstPageOf(BlockIndex(block))));
  }
  NodeAllocator nodes(segment_.tables.segment());
  std::vector<HostOffset> eaten;
  while (nodes.available() > 1) eaten.push_back(nodes.Allocate(0, NodeKind::kTable));
  EXPECT_EQ(table.Punch(FilePage(1), Blocks(2)), TableStatus::kNoSpace);
  EXPECT_EQ(segment_.tables.Info(mm_).huge_blocks, 4u);
  for (HostOffset table_node : eaten) nodes.Free(table_node);
  EXPECT_EQ(table.Punch(FilePage(1), Blocks(2)), TableStatus::kOk);
  EXPECT_EQ(segment_.tables.Info(mm_).huge_blocks, 1u);
  EXPECT_EQ(segment_.tables.Info(mm_).small_pages, PageCount(1 + 511));
}

TEST_F(PageTableTest, LongFilesHaveAHigherTop) {
  // 600 GiB: more than one pud table covers.
  PageTable table = Table(PageCount(uint64_t{600} << 18));
  EXPECT_EQ(table.traits().top_level, 3);
  Install(table, (uint64_t{599} << 18) + 7);
  EXPECT_EQ(Nodes(), 4u);
  EXPECT_TRUE(table.FindPage(FilePage((uint64_t{599} << 18) + 7)).entry.is_present());
  EXPECT_FALSE(table.FindPage(FilePage(7)).exists());
}

TEST_F(PageTableTest, TailsAreSeen) {
  const PageTable table = Table(Blocks(1) + PageCount(1));
  EXPECT_FALSE(table.IsTail(BlockIndex(0)));
  EXPECT_TRUE(table.IsTail(BlockIndex(1)));
}

TEST_F(PageTableTest, TouchesSaturate) {
  PageTable table = Table(Blocks(1));
  Install(table, 0);
  const HostOffset small = table.MakeSmallTable(BlockIndex(0));
  for (int i = 0; i < 300; ++i) table.CountTouch(small);
  EXPECT_EQ(table.FillOf(small).touches, 255);
}

// A geometry whose middle level is wider than a page: nodes are larger, indices go further.
class WidePageTableTest : public PageTableTest {
 protected:
  WidePageTableTest() : PageTableTest(Geometry{.bits = {9, 11, 3, 3}}) {}
};

TEST_F(WidePageTableTest, WideTables) {
  PageTable table = Table(Blocks(4000));
  EXPECT_EQ(table.traits().top_level, 2);
  Install(table, Blocks(2047).value());
  Install(table, Blocks(2048).value());
  EXPECT_EQ(Nodes(), 5u);  // top, two pmd tables, two pte tables
  EXPECT_EQ(table.FindBlock(BlockIndex(2047)).index, 2047u);
  EXPECT_EQ(table.FindBlock(BlockIndex(2048)).index, 0u);
}

}  // namespace
}  // namespace hostmm
