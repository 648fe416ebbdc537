// What the memory saving rests on: who shares which table, and what use counts say about it.

#include "vmm/table_sharing.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/node_allocator.h"
#include "vmm/page_table.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr PageCount Blocks(uint64_t count) { return PageCount(count * kPagesPerBlock); }

class TableSharingTest : public testing::Test {
 protected:
  explicit TableSharingTest(const Geometry& geometry = kX8664)
      : segment_({.max_guests = 64,
                  .max_mms = 8,
                  .max_regions = 256,
                  .max_nodes = 512,
                  .geometry = geometry}) {}
  ~TableSharingTest() override {
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  TableStatus Map(GuestId guest, MmId mm, uint64_t va, PageCount length, uint64_t file_page = 0) {
    return tables().MapRegion(guest, {.va = GuestAddr(va),
                                      .length = length,
                                      .mm = mm,
                                      .file_page = FilePage(file_page),
                                      .access = AccessSet::ReadWrite()});
  }
  HostTables& tables() { return segment_.tables; }
  bool Shares(GuestId guest, uint64_t va) {
    return segment_.reader().IsShared(guest, GuestAddr(va)) == TableReader::Sharing::kShared;
  }
  // Use count of the table that the canonical top names for the page.
  uint32_t UseCount(MmId mm, uint64_t file_page = 0) {
    const Segment& segment = tables().segment();
    const MmRecord* record = segment.Find(mm);
    const int level = MmTraits::Load(*record).top_level;
    const uint64_t index = segment.geometry().IndexAt(level, FilePage(file_page));
    const Pte entry = Pte::FromRaw(segment.entries(HostOffset(record->top.Load()))[index].Load());
    if (!entry.is_table()) return 0;
    return NodeUse::Load(*segment.node(segment.NodeAt(entry.table()))).count;
  }
  // Makes the table of the block's span exist.
  void Touch(MmId mm, uint64_t block) {
    ASSERT_EQ(tables().SetBlockCollapsed(mm, BlockIndex(block)), TableStatus::kOk);
  }

  TestSegment segment_;
  ReleasedMms released_;
};

TEST_F(TableSharingTest, AGuestGetsTheTablesThatExist) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  Touch(mm, 0);
  EXPECT_EQ(UseCount(mm), 1u);
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(1024)), TableStatus::kOk);
  EXPECT_TRUE(Shares(guest, kGib));
  EXPECT_EQ(UseCount(mm), 2u);
}

TEST_F(TableSharingTest, ATableThatComesLaterIsOfferedToAll) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  const GuestId a = segment_.AddGuest();
  const GuestId b = segment_.AddGuest();
  ASSERT_EQ(Map(a, mm, kGib, Blocks(1024)), TableStatus::kOk);
  ASSERT_EQ(Map(b, mm, 7 * kGib, Blocks(512)), TableStatus::kOk);
  EXPECT_FALSE(Shares(a, kGib));
  Touch(mm, 600);  // second span: only a maps it
  EXPECT_EQ(UseCount(mm, 600 * kPagesPerBlock), 2u);
  Touch(mm, 5);
  EXPECT_EQ(UseCount(mm), 3u);
  EXPECT_TRUE(Shares(b, 7 * kGib));
}

TEST_F(TableSharingTest, OtherWindowsShareWhatTheyHaveInCommon) {
  const MmId mm = segment_.AddMm(Blocks(1536));
  Touch(mm, 0);
  Touch(mm, 1024);
  const GuestId a = segment_.AddGuest();
  const GuestId b = segment_.AddGuest();
  ASSERT_EQ(Map(a, mm, kGib, Blocks(1024)), TableStatus::kOk);
  ASSERT_EQ(Map(b, mm, kGib, Blocks(1024), 512 * kPagesPerBlock), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm, 0), 2u);
  EXPECT_EQ(UseCount(mm, 1024 * kPagesPerBlock), 2u);
}

TEST_F(TableSharingTest, WhatDoesNotAlignOrIsTooSmallIsNotShared) {
  const MmId mm = segment_.AddMm(Blocks(64));
  Touch(mm, 0);
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib + kPageSize, Blocks(16)), TableStatus::kOk);
  ASSERT_EQ(Map(guest, mm, 2 * kGib, Blocks(kMinSharedBlocks) - PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm), 1u);
  ASSERT_EQ(Map(guest, mm, 3 * kGib, Blocks(kMinSharedBlocks)), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm), 2u);
}

TEST_F(TableSharingTest, ASpanWithoutAWholeBlockIsNotShared) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  Touch(mm, 0);
  Touch(mm, 512);
  const GuestId guest = segment_.AddGuest();
  // Ends one page into the second span.
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(512) + PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm, 0), 2u);
  EXPECT_EQ(UseCount(mm, 512 * kPagesPerBlock), 1u);
}

TEST_F(TableSharingTest, TheEndOfTheFileEndsABlock) {
  const MmId mm = segment_.AddMm(Blocks(512) + PageCount(3));
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(512) + PageCount(3)), TableStatus::kOk);
  const FaultDecision decision =
      Decide(tables(), {.guest = guest, .addr = GuestAddr(2 * kGib)}, Climate());
  Commit(tables(), decision, Outcome::kDone, decision.grain);
  EXPECT_EQ(UseCount(mm, 512 * kPagesPerBlock), 2u);
}

TEST_F(TableSharingTest, SeveralWindowsOfOneProcess) {
  const MmId mm = segment_.AddMm(Blocks(512));
  Touch(mm, 0);
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(256)), TableStatus::kOk);
  ASSERT_EQ(Map(guest, mm, 4 * kGib, Blocks(256)), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm), 2u);  // one private top, one entry
  EXPECT_TRUE(Shares(guest, kGib));
  EXPECT_TRUE(Shares(guest, 4 * kGib));
  ASSERT_EQ(tables().UnmapRange(guest, GuestAddr(kGib), Blocks(256), &released_), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm), 2u);  // the other window still shares
}

TEST_F(TableSharingTest, UnmappingDropsTheUse) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  ASSERT_EQ(tables().PinMm(mm), TableStatus::kOk);
  Touch(mm, 0);
  Touch(mm, 512);
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(1024)), TableStatus::kOk);
  ASSERT_EQ(tables().UnmapRange(guest, GuestAddr(kGib), Blocks(512), &released_), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm, 0), 1u);
  EXPECT_EQ(UseCount(mm, 512 * kPagesPerBlock), 2u);
  ASSERT_EQ(tables().RemoveGuest(guest, &released_), TableStatus::kOk);
  EXPECT_EQ(UseCount(mm, 512 * kPagesPerBlock), 1u);
  EXPECT_TRUE(released_.empty());  // pinned
}

TEST_F(TableSharingTest, ForkCopiesTheTopAndNothingBelow) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  Touch(mm, 0);
  Touch(mm, 512);
  const GuestId parent = segment_.AddGuest();
  ASSERT_EQ(Map(parent, mm, kGib, Blocks(1024)), TableStatus::kOk);
  const uint32_t nodes = segment_.reader().Pools().nodes;
  GuestId child;
  ASSERT_EQ(tables().ForkGuest(parent, &child), TableStatus::kOk);
  EXPECT_EQ(segment_.reader().Pools().nodes, nodes + 1);
  EXPECT_EQ(UseCount(mm, 0), 3u);
  EXPECT_EQ(UseCount(mm, 512 * kPagesPerBlock), 3u);
  EXPECT_TRUE(Shares(child, kGib));
}

TEST_F(TableSharingTest, ProtectingUnsharesTheCallerOnlyAndTheSpanOnly) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  Touch(mm, 0);
  Touch(mm, 512);
  const GuestId a = segment_.AddGuest();
  ASSERT_EQ(Map(a, mm, kGib, Blocks(1024)), TableStatus::kOk);
  GuestId b;
  ASSERT_EQ(tables().ForkGuest(a, &b), TableStatus::kOk);
  ASSERT_EQ(tables().ProtectRange(a, GuestAddr(kGib + kBlockSize), PageCount(1), Access::kRead),
            TableStatus::kOk);
  EXPECT_FALSE(Shares(a, kGib));
  EXPECT_TRUE(Shares(b, kGib));
  EXPECT_EQ(UseCount(mm, 0), 2u);
  EXPECT_EQ(UseCount(mm, 512 * kPagesPerBlock), 3u);
  // Back to what it was: shared again, and one region again.
  ASSERT_EQ(
      tables().ProtectRange(a, GuestAddr(kGib + kBlockSize), PageCount(1), AccessSet::ReadWrite()),
      TableStatus::kOk);
  EXPECT_EQ(UseCount(mm, 0), 3u);
  EXPECT_EQ(segment_.reader().Info(a)->regions, 1u);
}

// Race 1: no sharer appears between "unshared" and "mapping changed", also not by fork.
TEST_F(TableSharingTest, AForkOfAnUnsharedSpanDoesNotShareIt) {
  const MmId mm = segment_.AddMm(Blocks(1024));
  Touch(mm, 0);
  Touch(mm, 512);
  const GuestId parent = segment_.AddGuest();
  ASSERT_EQ(Map(parent, mm, kGib, Blocks(1024)), TableStatus::kOk);
  ASSERT_EQ(tables().ProtectRange(parent, GuestAddr(kGib), PageCount(1), Access::kNone),
            TableStatus::kOk);
  GuestId child;
  ASSERT_EQ(tables().ForkGuest(parent, &child), TableStatus::kOk);
  EXPECT_FALSE(Shares(child, kGib));
  EXPECT_TRUE(Shares(child, 2 * kGib));
  EXPECT_EQ(UseCount(mm), 1u);
  // A table that comes now is not offered to them either.
  ASSERT_EQ(tables().PunchRange(mm, FilePage(0), Blocks(512)), TableStatus::kOk);
  Touch(mm, 3);
  EXPECT_FALSE(Shares(child, kGib));
  EXPECT_EQ(UseCount(mm), 1u);
}

TEST_F(TableSharingTest, AGuestThatDoesNotShareReadsTheSamePages) {
  const MmId mm = segment_.AddMm(Blocks(64));
  const GuestId a = segment_.AddGuest();
  const GuestId b = segment_.AddGuest();
  ASSERT_EQ(Map(a, mm, kGib, Blocks(64)), TableStatus::kOk);
  ASSERT_EQ(Map(b, mm, kGib + kPageSize, Blocks(64)), TableStatus::kOk);
  Touch(mm, 3);
  EXPECT_EQ(segment_.reader().LookupFrom(a, mm, FirstPageOf(BlockIndex(3))).state,
            PageState::kPresentHuge);
  EXPECT_EQ(segment_.reader().LookupFrom(b, mm, FirstPageOf(BlockIndex(3))).state,
            PageState::kPresentHuge);
}

// Race 2: the last table of a span goes while guests share it.
TEST_F(TableSharingTest, AnEmptiedTableLeavesAllTops) {
  const MmId mm = segment_.AddMm(Blocks(512));
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(512)), TableStatus::kOk);
  Touch(mm, 1);
  const uint32_t nodes = segment_.reader().Pools().nodes;
  ASSERT_EQ(tables().PunchRange(mm, FilePage(0), Blocks(512)), TableStatus::kOk);
  EXPECT_EQ(segment_.reader().Pools().nodes, nodes - 1);
  EXPECT_FALSE(Shares(guest, kGib));
}

TEST_F(TableSharingTest, NothingLeaksWhenAllGuestsGo) {
  const uint32_t nodes = segment_.reader().Pools().nodes;
  const MmId mm = segment_.AddMm(Blocks(1024));
  GuestId guest = segment_.AddGuest();
  ASSERT_EQ(Map(guest, mm, kGib, Blocks(1024)), TableStatus::kOk);
  for (uint64_t block = 0; block < 1024; block += 100) Touch(mm, block);
  for (int i = 0; i < 20; ++i) {
    GuestId child;
    ASSERT_EQ(tables().ForkGuest(guest, &child), TableStatus::kOk);
    ASSERT_EQ(tables().RemoveGuest(guest, &released_), TableStatus::kOk);
    guest = child;
  }
  EXPECT_TRUE(released_.empty());
  ASSERT_EQ(tables().RemoveGuest(guest, &released_), TableStatus::kOk);
  EXPECT_EQ(released_, ReleasedMms({mm}));
  const PoolUse use = segment_.reader().Pools();
  EXPECT_EQ(use.nodes, nodes);
  EXPECT_EQ(use.guests + use.mms + use.regions + use.attachments, 0u);
}

class SegmentSharingTest : public TableSharingTest {
 protected:
  SegmentSharingTest() : TableSharingTest(kPowerPcSegments) {}
};

// PowerPC: 256 MiB (128 blocks), aligned, or nothing.
TEST_F(SegmentSharingTest, OnlyWholeAlignedSegmentsAreShared) {
  constexpr uint64_t kSegment = uint64_t{256} << 20;
  const MmId mm = segment_.AddMm(Blocks(512));
  const GuestId a = segment_.AddGuest();
  const GuestId b = segment_.AddGuest();
  const GuestId c = segment_.AddGuest();
  ASSERT_EQ(Map(a, mm, kSegment, Blocks(128)), TableStatus::kOk);
  ASSERT_EQ(Map(b, mm, kSegment, Blocks(127)), TableStatus::kOk);
  ASSERT_EQ(Map(c, mm, kSegment + kBlockSize, Blocks(128)), TableStatus::kOk);
  const FaultDecision decision =
      Decide(tables(), {.guest = a, .addr = GuestAddr(kSegment)}, Climate());
  EXPECT_EQ(decision.grain, Grain::kSmall);
  Commit(tables(), decision, Outcome::kDone, decision.grain);
  EXPECT_TRUE(Shares(a, kSegment));
  EXPECT_FALSE(Shares(b, kSegment));
  EXPECT_FALSE(Shares(c, kSegment + kBlockSize));
  EXPECT_EQ(UseCount(mm), 2u);
  // No huge leaf in this geometry.
  EXPECT_EQ(tables().SetBlockCollapsed(mm, BlockIndex(0)), TableStatus::kBadRange);
}

}  // namespace
}  // namespace hostmm
