// Windows of one file: A and B map its beginning, C maps more of it. What they have in common is
// shared, wherever each has it; use counts say by how many.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/fault_policy.h"
#include "vmm/host_mm.h"
#include "vmm/invariants.h"
#include "vmm/node_allocator.h"
#include "vmm/page_table.h"
#include "vmm/table_sharing.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr PageCount Blocks(uint64_t count) { return PageCount(count * kPagesPerBlock); }

// pte tables below a top at pmd level: where a guest's own entries name pte tables.
constexpr Geometry kPteTables{.page_shift = 12,
                              .bits = {9, 9, 9, 9},
                              .huge_leaf_level = Geometry::kNoHugeLeaf,
                              .share_level = 0,
                              .levels = 4};

class WindowsTest : public testing::Test {
 protected:
  explicit WindowsTest(const Geometry& geometry = kX8664)
      : segment_({.max_guests = 16,
                  .max_mms = 4,
                  .max_regions = 64,
                  .max_nodes = 128,
                  .geometry = geometry}) {}
  ~WindowsTest() override {
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  TableStatus Map(GuestId guest, uint64_t va, uint64_t blocks, uint64_t first_block = 0,
                  uint32_t flags = kSharedPt) {
    return tables_.MapRegion(guest, {.va = GuestAddr(va),
                                     .length = Blocks(blocks),
                                     .mm = mm_,
                                     .file_page = FirstPageOf(BlockIndex(first_block)),
                                     .access = AccessSet::ReadWrite(),
                                     .flags = flags});
  }
  TableStatus Protect(GuestId guest, uint64_t va, PageCount pages, AccessSet access) {
    return tables_.ProtectRange(guest, GuestAddr(va), pages, access);
  }
  TableStatus Unmap(GuestId guest, uint64_t va, uint64_t blocks) {
    return tables_.UnmapRange(guest, GuestAddr(va), Blocks(blocks), &released_);
  }
  // One page comes to be, by a fault.
  void Fault(GuestId guest, uint64_t va) {
    const FaultDecision decision =
        Decide(tables_, {.guest = guest, .addr = GuestAddr(va)}, Climate());
    ASSERT_EQ(decision.action, FaultAction::kPopulate);
    ASSERT_EQ(decision.grain, Grain::kSmall);
    Commit(tables_, decision, Outcome::kDone, Grain::kSmall);
  }
  // Use counts of the tables on the way from the canonical top to the page, top excluded. What a
  // guest's own top names is the first: that is shared. The rest is reached through it.
  std::vector<uint32_t> Uses(uint64_t block) {
    const Segment& segment = tables_.segment();
    const MmRecord* mm = segment.Find(mm_);
    HostOffset table(mm->top.Load());
    std::vector<uint32_t> uses;
    for (int level = MmTraits::Load(*mm).top_level; level > 0; --level) {
      const uint64_t index = segment.geometry().IndexAt(level, FirstPageOf(BlockIndex(block)));
      const Pte entry = Pte::FromRaw(segment.entries(table)[index].Load());
      if (!entry.is_table()) break;
      table = entry.table();
      uses.push_back(NodeUse::Load(*segment.node(segment.NodeAt(table))).count);
    }
    return uses;
  }
  bool Shares(GuestId guest, uint64_t va) {
    return segment_.reader().IsShared(guest, GuestAddr(va)) == TableReader::Sharing::kShared;
  }
  PageState SeenBy(GuestId guest, uint64_t block, uint64_t page = 0) {
    return segment_.reader()
        .LookupFrom(guest, mm_, FirstPageOf(BlockIndex(block)) + PageCount(page))
        .state;
  }

  TestSegment segment_;
  HostTables& tables_ = segment_.tables;
  ReleasedMms released_;
  GuestId a_ = segment_.AddGuest();
  GuestId b_ = segment_.AddGuest();
  GuestId c_ = segment_.AddGuest();
  MmId mm_;
};

using Counts = std::vector<uint32_t>;

// Sharing at pmd level: a guest's entry names what covers 1 GiB. One canonical use, one for each
// mapper; the pte table below has one, that of its one upper entry, and all reach it.
TEST_F(WindowsTest, SpansOfOneGib) {
  mm_ = segment_.AddMm(Blocks(4 * 512));
  ASSERT_EQ(Map(a_, 8 * kGib, 2 * 512), TableStatus::kOk);
  ASSERT_EQ(Map(b_, 16 * kGib + 6 * kBlockSize, 2 * 512), TableStatus::kOk);
  ASSERT_EQ(Map(c_, 32 * kGib, 4 * 512), TableStatus::kOk);
  for (uint64_t gib = 0; gib < 4; ++gib) Fault(c_, 32 * kGib + gib * kGib);
  EXPECT_EQ(Uses(0), Counts({1 + 3, 1}));
  EXPECT_EQ(Uses(512), Counts({1 + 3, 1}));
  EXPECT_EQ(Uses(2 * 512), Counts({1 + 1, 1}));
  EXPECT_EQ(Uses(3 * 512), Counts({1 + 1, 1}));
  for (GuestId guest : {a_, b_, c_}) EXPECT_EQ(SeenBy(guest, 512), PageState::kPresentSmall);
  // The canonical top, three private ones, four pmd tables and four pte tables: each once.
  EXPECT_EQ(segment_.reader().Pools().nodes, 1u + 3u + 4u + 4u);

  ASSERT_EQ(Unmap(a_, 9 * kGib, 512), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 3, 1}));
  EXPECT_EQ(Uses(512), Counts({1 + 2, 1}));
  ASSERT_EQ(tables_.RemoveGuest(c_, &released_), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 2, 1}));
  EXPECT_EQ(Uses(3 * 512), Counts({1, 1}));  // its data stays with the file
}

// The windows of the proposal: A and B map blocks 0-2, C maps 0-4. On x86-64 one table holds all.
TEST_F(WindowsTest, BlocksInOneSpan) {
  mm_ = segment_.AddMm(Blocks(8));
  ASSERT_EQ(Map(a_, kGib, 2), TableStatus::kOk);
  ASSERT_EQ(Map(b_, 5 * kGib + 3 * kBlockSize, 2), TableStatus::kOk);
  ASSERT_EQ(Map(c_, kGib, 4), TableStatus::kOk);
  Fault(a_, kGib);
  EXPECT_EQ(Uses(0), Counts({1 + 3, 1}));
  EXPECT_EQ(SeenBy(b_, 0), PageState::kPresentSmall);
  EXPECT_EQ(SeenBy(c_, 0), PageState::kPresentSmall);
}

class PteTablesTest : public WindowsTest {
 protected:
  PteTablesTest() : WindowsTest(kPteTables) { mm_ = segment_.AddMm(Blocks(8)); }
};

// The same, counted at pte level.
TEST_F(PteTablesTest, BlocksOfTheirOwn) {
  ASSERT_EQ(Map(a_, kGib, 2), TableStatus::kOk);
  ASSERT_EQ(Map(b_, 5 * kGib + 3 * kBlockSize, 2), TableStatus::kOk);
  Fault(a_, kGib);
  Fault(b_, 5 * kGib + 4 * kBlockSize);
  EXPECT_EQ(Uses(0), Counts({1 + 2}));
  EXPECT_EQ(Uses(1), Counts({1 + 2}));
  // C finds both tables, and makes two that the others do not reach to.
  ASSERT_EQ(Map(c_, 7 * kGib, 4), TableStatus::kOk);
  for (uint64_t block : {2, 3}) Fault(c_, 7 * kGib + block * kBlockSize);
  EXPECT_EQ(Uses(0), Counts({1 + 3}));
  EXPECT_EQ(Uses(1), Counts({1 + 3}));
  EXPECT_EQ(Uses(2), Counts({1 + 1}));
  EXPECT_EQ(Uses(3), Counts({1 + 1}));
  ASSERT_EQ(Unmap(b_, 5 * kGib + 3 * kBlockSize, 1), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 2}));
  EXPECT_EQ(Uses(1), Counts({1 + 3}));
}

class SegmentWindowsTest : public WindowsTest {
 protected:
  SegmentWindowsTest() : WindowsTest(kPowerPcSegments) { mm_ = segment_.AddMm(Blocks(4 * 128)); }
};

// PowerPC: segments of 256 MiB (128 blocks); an address inside one is not aligned for it.
TEST_F(SegmentWindowsTest, SegmentsOf256Mib) {
  constexpr uint64_t kSegment = 128 * kBlockSize;
  ASSERT_EQ(Map(a_, 8 * kSegment, 2 * 128), TableStatus::kOk);
  ASSERT_EQ(Map(b_, 17 * kSegment, 2 * 128), TableStatus::kOk);
  ASSERT_EQ(Map(c_, 32 * kSegment, 4 * 128), TableStatus::kOk);
  const GuestId d = segment_.AddGuest();
  ASSERT_EQ(Map(d, 64 * kSegment + kBlockSize, 4 * 128), TableStatus::kOk);
  for (uint64_t segment = 0; segment < 4; ++segment)
    Fault(d, (64 + segment) * kSegment + kBlockSize);
  EXPECT_EQ(Uses(0), Counts({1 + 3, 1}));
  EXPECT_EQ(Uses(128), Counts({1 + 3, 1}));
  EXPECT_EQ(Uses(2 * 128), Counts({1 + 1, 1}));
  EXPECT_FALSE(Shares(d, 64 * kSegment + kBlockSize));
  EXPECT_EQ(SeenBy(d, 0), PageState::kPresentSmall);  // through the file's own top
}

TEST_F(WindowsTest, SeveralWindowsOfOneGuest) {
  mm_ = segment_.AddMm(Blocks(1024));
  ASSERT_EQ(Map(a_, 8 * kGib, 4), TableStatus::kOk);
  ASSERT_EQ(Map(a_, 16 * kGib, 4, 100), TableStatus::kOk);
  ASSERT_EQ(Map(a_, 24 * kGib, 4, 2), TableStatus::kOk);  // overlaps the first in the file
  ASSERT_EQ(Map(a_, 32 * kGib, 4, 600), TableStatus::kOk);
  Fault(a_, 8 * kGib);
  Fault(a_, 32 * kGib);
  EXPECT_EQ(Uses(0), Counts({1 + 1, 1}));  // a guest counts once
  EXPECT_EQ(Uses(600), Counts({1 + 1, 1}));
  for (uint64_t gib : {8, 16, 24, 32}) EXPECT_TRUE(Shares(a_, gib * kGib));
  ASSERT_EQ(Unmap(a_, 8 * kGib, 4), TableStatus::kOk);
  ASSERT_EQ(Unmap(a_, 24 * kGib, 4), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 1, 1}));  // the second window is in it, too
  ASSERT_EQ(Unmap(a_, 16 * kGib, 4), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1, 1}));
}

TEST_F(WindowsTest, WhatIsNotAlignedIsNotShared) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  ASSERT_EQ(Map(b_, kGib + kPageSize, 64), TableStatus::kOk);
  Fault(b_, kGib + kPageSize);
  EXPECT_EQ(Uses(0), Counts({1 + 1, 1}));
  EXPECT_TRUE(Shares(a_, kGib));
  EXPECT_FALSE(Shares(b_, kGib + kPageSize));
  EXPECT_EQ(SeenBy(b_, 0), PageState::kPresentSmall);
}

// From one granule on, where a mapping that did not opt in shares from 8 MiB on.
TEST_F(WindowsTest, OptInSharesSmallWindows) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 1), TableStatus::kOk);
  ASSERT_EQ(Map(b_, kGib, kMinSharedBlocks - 1, 0, 0), TableStatus::kOk);
  ASSERT_EQ(Map(c_, kGib, kMinSharedBlocks, 0, 0), TableStatus::kOk);
  Fault(a_, kGib);
  EXPECT_TRUE(Shares(a_, kGib));
  EXPECT_FALSE(Shares(b_, kGib));
  EXPECT_TRUE(Shares(c_, kGib));
}

TEST_F(WindowsTest, APartlyFilledTableIsFilledByAll) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  Fault(a_, kGib);
  const uint32_t nodes = segment_.reader().Pools().nodes;
  ASSERT_EQ(Map(b_, 3 * kGib, 64), TableStatus::kOk);
  EXPECT_EQ(SeenBy(b_, 0, 300), PageState::kEmpty);
  Fault(b_, 3 * kGib + 300 * kPageSize);
  EXPECT_EQ(SeenBy(a_, 0, 300), PageState::kPresentSmall);
  EXPECT_EQ(SeenBy(b_, 0, 0), PageState::kPresentSmall);
  EXPECT_EQ(segment_.reader().Pools().nodes, nodes + 1);  // b's top
}

TEST_F(WindowsTest, ASharedProtectUnsharesNobody) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  ASSERT_EQ(Map(b_, 3 * kGib, 1), TableStatus::kOk);
  Fault(a_, kGib);
  ASSERT_EQ(Protect(a_, kGib + 5 * kPageSize, PageCount(1), Access::kRead), TableStatus::kOk);
  // No piece of b's window is a whole block now, but the window is.
  EXPECT_EQ(segment_.reader().Info(b_)->regions, 3u);
  EXPECT_TRUE(Shares(a_, kGib));
  EXPECT_TRUE(Shares(b_, 3 * kGib));
  EXPECT_EQ(Uses(0), Counts({1 + 2, 1}));
  GuestId child;
  ASSERT_EQ(tables_.ForkGuest(b_, &child), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 3, 1}));
}

TEST_F(WindowsTest, BothKindsOfMappingShareOneTable) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  ASSERT_EQ(Map(b_, kGib, 64, 0, 0), TableStatus::kOk);
  Fault(a_, kGib);
  EXPECT_EQ(Uses(0), Counts({1 + 2, 1}));
  ASSERT_EQ(Protect(a_, kGib, Blocks(64), Access::kRead), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 2, 1}));  // no affair of b's
  ASSERT_EQ(Protect(b_, kGib, PageCount(1), Access::kNone), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts({1 + 1, 1}));
  EXPECT_TRUE(Shares(a_, kGib));
  EXPECT_FALSE(Shares(b_, kGib));
}

TEST_F(WindowsTest, AMovedWindowSharesAgainWhereItAligns) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  ASSERT_EQ(Map(b_, kGib, 64), TableStatus::kOk);
  Fault(a_, kGib);
  const auto move = [&](uint64_t from, uint64_t to, uint64_t blocks) {
    return tables_.MoveRange(b_, GuestAddr(from), Blocks(64), GuestAddr(to), Blocks(blocks),
                             &released_);
  };
  ASSERT_EQ(move(kGib, 5 * kGib + kPageSize, 64), TableStatus::kOk);
  EXPECT_FALSE(Shares(b_, 5 * kGib + kPageSize));
  EXPECT_EQ(Uses(0), Counts({1 + 1, 1}));
  ASSERT_EQ(move(5 * kGib + kPageSize, 7 * kGib, 64), TableStatus::kOk);
  EXPECT_TRUE(Shares(b_, 7 * kGib));
  ASSERT_EQ(move(7 * kGib, 7 * kGib, 1), TableStatus::kOk);  // shrinks
  EXPECT_EQ(Uses(0), Counts({1 + 2, 1}));
}

// A private, read-only mapping of a file in memory shares like any other; one of a file that is the
// kernel's does not.
TEST_F(WindowsTest, PrivateAndForeign) {
  mm_ = segment_.AddMm(Blocks(64), FrameKind::kAdopted);
  ASSERT_EQ(Map(a_, kGib, 64, 0, kSharedPt | kPrivate | kNeverWrite), TableStatus::kOk);
  ASSERT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(0)), TableStatus::kOk);
  EXPECT_TRUE(Shares(a_, kGib));
  mm_ = segment_.AddMm(Blocks(64), FrameKind::kForeign);
  ASSERT_EQ(Map(b_, kGib, 64), TableStatus::kOk);
  EXPECT_TRUE(SharableSpans(segment_.reader().view(), b_, mm_).none());
}

// Race 1 (McCracken): between "unshared" and "mapping changed" a new sharer appears. Here one
// operation does both, and who comes next finds its result: the new access, and the shared table.
TEST_F(WindowsTest, WhoComesRightAfterAProtectHasItAndShares) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  Fault(a_, kGib);
  ASSERT_EQ(Protect(a_, kGib, Blocks(1), Access::kNone), TableStatus::kOk);
  ASSERT_EQ(Map(b_, 3 * kGib, 64), TableStatus::kOk);
  GuestId child;
  ASSERT_EQ(tables_.ForkGuest(b_, &child), TableStatus::kOk);
  for (GuestId guest : {b_, child}) {
    EXPECT_TRUE(tables_.FindRegion(guest, GuestAddr(3 * kGib))->access.empty());
    EXPECT_TRUE(Shares(guest, 3 * kGib));
  }
  EXPECT_EQ(Uses(0), Counts({1 + 3, 1}));
}

// Race 2 (Dickins): the last sharer goes while another is finding the table. The file's own top
// holds a use as long as there is an entry, so that the count cannot reach zero under a finder.
TEST_F(WindowsTest, TheTableOutlivesItsLastSharer) {
  mm_ = segment_.AddMm(Blocks(64));
  ASSERT_EQ(tables_.PinMm(mm_), TableStatus::kOk);
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  Fault(a_, kGib);
  const uint32_t nodes = segment_.reader().Pools().nodes;
  GuestId guest = a_;
  for (GuestId next : {b_, c_, a_, b_}) {
    ASSERT_EQ(Unmap(guest, kGib, 64), TableStatus::kOk);
    EXPECT_EQ(Uses(0), Counts({1, 1}));
    ASSERT_EQ(Map(next, kGib, 64), TableStatus::kOk);
    EXPECT_EQ(Uses(0), Counts({1 + 1, 1}));
    EXPECT_EQ(SeenBy(next, 0), PageState::kPresentSmall);
    guest = next;
  }
  EXPECT_EQ(segment_.reader().Pools().nodes, nodes);
  // And it does go with its last entry, out of all tops.
  ASSERT_EQ(tables_.PunchRange(mm_, FilePage(0), Blocks(64)), TableStatus::kOk);
  EXPECT_EQ(Uses(0), Counts());
  EXPECT_FALSE(Shares(guest, kGib));
  EXPECT_EQ(segment_.reader().Pools().nodes, nodes - 2);
}

// What a unanimous vote does to the tables: entries go, what is in flight stays, its fault commits.
TEST_F(WindowsTest, AVotedZapLeavesEntriesInFlight) {
  mm_ = segment_.AddMm(Blocks(64), FrameKind::kBase);
  ASSERT_EQ(Map(a_, kGib, 64), TableStatus::kOk);
  ASSERT_EQ(Map(b_, kGib, 64), TableStatus::kOk);
  Fault(a_, kGib);
  const FaultDecision running =
      Decide(tables_, {.guest = b_, .addr = GuestAddr(kGib + 200 * kPageSize)}, Climate());
  ASSERT_EQ(running.action, FaultAction::kPopulate);
  ASSERT_EQ(tables_.PunchRange(mm_, FilePage(0), Blocks(64)), TableStatus::kOk);
  EXPECT_EQ(SeenBy(a_, 0), PageState::kEmpty);
  EXPECT_EQ(SeenBy(a_, 0, 200), PageState::kInFlight);
  EXPECT_TRUE(Shares(a_, kGib));
  Commit(tables_, running, Outcome::kDone, running.grain);
  EXPECT_EQ(SeenBy(a_, 0, 200), PageState::kPresentSmall);
  EXPECT_EQ(SeenBy(b_, 0, 0), PageState::kEmpty);
}

}  // namespace
}  // namespace hostmm
