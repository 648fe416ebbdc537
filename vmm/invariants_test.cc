// A checker that cannot fail is worth nothing: each invariant is broken by hand and must be named.

#include "vmm/invariants.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/attachments.h"
#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/node_allocator.h"
#include "vmm/page_table.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kBase = uint64_t{1} << 30;

class InvariantsTest : public testing::Test {
 protected:
  InvariantsTest() {
    segment_.tables.MapRegion(guest_, {.va = GuestAddr(kBase),
                                       .length = PageCount(8 * kPagesPerBlock),
                                       .mm = mm_,
                                       .file_page = FilePage(0),
                                       .access = AccessSet::ReadWrite()});
    segment_.tables.SetBlockCollapsed(mm_, BlockIndex(3));
    const FaultDecision decision =
        Decide(segment_.tables, {.guest = guest_, .addr = GuestAddr(kBase)}, {});
    Commit(segment_.tables, decision, Outcome::kDone, decision.grain);
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  const Segment& segment() { return segment_.tables.segment(); }
  MmRecord* mm() { return segment().Find(mm_); }
  GuestRecord* guest() { return segment().Find(guest_); }
  RegionRecord* region() { return segment().region(guest()->regions.LoadLow()); }
  AttachmentRecord* attachment() { return segment().attachment(guest()->attachments.LoadLow()); }
  // The pte table of block 0.
  HostOffset small_table() {
    return PageTable(segment(), mm()).FindBlock(BlockIndex(0)).entry.table();
  }

  // Some problem must contain `words`.
  void ExpectProblem(const std::string& words) {
    const std::vector<std::string> problems = CheckInvariants(segment_.reader());
    EXPECT_FALSE(problems.empty()) << "not noticed: " << words;
    std::string all;
    for (const std::string& problem : problems) {
      if (problem.find(words) != std::string::npos) return;
      all += problem + "\n";
    }
    ADD_FAILURE() << "no problem says \"" << words << "\", but:\n" << all;
  }

  TestSegment segment_{{.max_guests = 4, .max_mms = 4, .max_regions = 8, .max_nodes = 32}};
  GuestId guest_ = segment_.AddGuest();
  MmId mm_ = segment_.AddMm(PageCount(8 * kPagesPerBlock));
};

TEST_F(InvariantsTest, RegionWithAnImpossibleRange) {
  region()->va.Store(kBase + 1);
  ExpectProblem("impossible range");
}

TEST_F(InvariantsTest, RegionsThatOverlap) {
  segment_.tables.MapRegion(guest_, {.va = GuestAddr(2 * kBase),
                                     .length = PageCount(1),
                                     .mm = mm_,
                                     .file_page = FilePage(0),
                                     .access = Access::kRead});
  for (RecordIndex i = 1; i <= 2; ++i) {
    if (segment().region(i)->va.Load() == kBase) segment().region(i)->pages.Store(kBase);
  }
  ExpectProblem("overlaps");
}

TEST_F(InvariantsTest, RegionsThatShouldBeOne) {
  segment_.tables.MapRegion(guest_, {.va = GuestAddr(2 * kBase),
                                     .length = PageCount(1),
                                     .mm = mm_,
                                     .file_page = FilePage(8 * kPagesPerBlock),
                                     .access = AccessSet::ReadWrite()});
  for (RecordIndex i = 1; i <= 2; ++i) {
    if (segment().region(i)->va.Load() == 2 * kBase) {
      segment().region(i)->va.Store(kBase + 8 * kBlockSize);
    }
  }
  ExpectProblem("should be one");
}

TEST_F(InvariantsTest, RegionOfAnotherGuest) {
  region()->guest.StoreLow(3);
  ExpectProblem("belongs to another guest");
}

TEST_F(InvariantsTest, RegionOfADeadMm) {
  region()->mm.StoreHigh(99);
  ExpectProblem("dead mm");
}

TEST_F(InvariantsTest, RegionMissingInTheRmap) {
  mm()->lists.StoreLow(kNullRecord);
  ExpectProblem("rmap");
}

TEST_F(InvariantsTest, RegionCounts) {
  guest()->regions.StoreHigh(7);
  ExpectProblem("number of regions");
}

TEST_F(InvariantsTest, RegionTreeWithACycle) {
  region()->tree.StoreLow(guest()->regions.LoadLow());
  ExpectProblem("wrongly or twice");
}

TEST_F(InvariantsTest, AttachmentCounts) {
  attachment()->regions.Store(2);
  ExpectProblem("regions of its attachment");
}

TEST_F(InvariantsTest, AttachmentMissing) {
  guest()->attachments.Store(kNullRecord);
  ExpectProblem("without an attachment");
}

TEST_F(InvariantsTest, MapperCount) {
  mm()->mappers.Store(5);
  ExpectProblem("number of mappers");
}

TEST_F(InvariantsTest, SharedEntryMissing) {
  segment().entries(HostOffset(attachment()->top.Load()))[0].Store(0);
  ExpectProblem("shared entry");
}

TEST_F(InvariantsTest, UseCount) {
  const Pte entry = Pte::FromRaw(segment().entries(HostOffset(mm()->top.Load()))[0].Load());
  NodeAllocator(segment()).RaiseUse(entry.table());
  ExpectProblem("(I5)");
}

TEST_F(InvariantsTest, UseCountOfALowerTable) {
  NodeAllocator(segment()).RaiseUse(small_table());
  ExpectProblem("(I5)");
}

TEST_F(InvariantsTest, LiveCount) {
  NodeRecord* node = NodeAllocator(segment()).RecordOf(small_table());
  NodeFill fill = NodeFill::Load(*node);
  ++fill.live;
  fill.StoreTo(node);
  ExpectProblem("live entries");
}

TEST_F(InvariantsTest, EntryBehindTheFile) {
  mm()->length.Store(kPagesPerBlock + 5);
  ExpectProblem("(I3)");
}

TEST_F(InvariantsTest, EntryThatAllowsTooMuch) {
  MmTraits traits = MmTraits::Load(*mm());
  traits.access = Access::kRead;
  mm()->traits.Store(traits.Pack());
  ExpectProblem("(I4)");
}

TEST_F(InvariantsTest, EntryWithAnotherFrame) {
  segment().entries(small_table())[0].Store(
      Pte::Present(LeafSize::kSmall, FrameNumber(3), AccessSet::ReadWrite()).raw());
  ExpectProblem("has frame 3");
}

TEST_F(InvariantsTest, HugeLeafAmongSmallOnes) {
  segment().entries(small_table())[0].Store(
      Pte::Present(LeafSize::kHuge, FrameNumber(0), AccessSet::ReadWrite()).raw());
  ExpectProblem("cannot be at level");
}

TEST_F(InvariantsTest, DamagedEntry) {
  segment().entries(small_table())[9].Store(~uint64_t{0});
  ExpectProblem("damaged");
}

TEST_F(InvariantsTest, TableWithTwoParents) {
  const PteSlot block = PageTable(segment(), mm()).FindBlock(BlockIndex(0));
  segment().entries(block.table)[5].Store(block.entry.raw());
  ExpectProblem("reached twice");
}

TEST_F(InvariantsTest, LeakedNode) {
  NodeAllocator(segment()).Allocate(0, NodeKind::kTable);
  ExpectProblem("leak");
}

TEST_F(InvariantsTest, PageCounts) {
  mm()->small_pages.Add(1);
  mm()->huge_blocks.Add(1);
  ExpectProblem("small pages");
  ExpectProblem("huge blocks");
}

// Two guests that map the same pages opt-in.
class AgreementTest : public InvariantsTest {
 protected:
  AgreementTest() {
    MapOptIn(guest_, 20, 10);
    MapOptIn(other_, 25, 10);
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }
  void MapOptIn(GuestId guest, uint64_t first, uint64_t pages) {
    EXPECT_EQ(segment_.tables.MapRegion(guest, {.va = GuestAddr(2 * kBase + first * kPageSize),
                                                .length = PageCount(pages),
                                                .mm = mm_,
                                                .file_page = FilePage(first),
                                                .access = AccessSet::ReadWrite(),
                                                .flags = kSharedPt}),
              TableStatus::kOk);
  }
  RegionRecord* others() { return segment().region(segment().Find(other_)->regions.LoadLow()); }
  void SetAccess(AccessSet access, AccessSet mapped_access) {
    RegionAttributes attributes = RegionAttributes::Unpack(others()->attributes.Load());
    attributes.access = access;
    attributes.mapped_access = mapped_access;
    attributes.flags |= kSettled;
    others()->attributes.Store(attributes.Pack());
  }

  GuestId other_ = segment_.AddGuest();
};

TEST_F(AgreementTest, OptInRegionsThatDiffer) {
  SetAccess(Access::kRead, Access::kRead);
  ExpectProblem("differ in access at page 25 (I13)");
}

TEST_F(AgreementTest, RegionsThatOnlyTouchMayDiffer) {
  others()->file_page.Store(30);
  SetAccess(Access::kRead, Access::kRead);
  EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
}

TEST_F(AgreementTest, OptInRegionThatRemembersAnotherAccess) {
  SetAccess(AccessSet::ReadWrite(), Access::kRead);
  ExpectProblem("has another access than it was mapped with");
}

// Two snapshots of the file: the older one has page 1 for itself, both have page 0.
class SnapshotInvariantsTest : public InvariantsTest {
 protected:
  SnapshotInvariantsTest() {
    older_ = Take();
    Privatize(1, 7);
    newer_ = Take();
    Privatize(0, 8);
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }
  MmId Take() {
    MmId id;
    EXPECT_EQ(CowTables(&segment_.tables).Take(mm_, {.min_shared_tables = 1}, &id),
              TableStatus::kOk);
    EXPECT_EQ(segment_.tables.PinMm(id), TableStatus::kOk);
    return id;
  }
  void Privatize(uint64_t page, uint64_t frame) {
    uint32_t uses = 0;
    EXPECT_EQ(CowTables(&segment_.tables)
                  .Privatize(mm_, FilePage(page), PageCount(1), FrameNumber(frame), &uses),
              TableStatus::kOk);
  }
  MmRecord* older() { return segment().Find(older_); }
  MmRecord* newer() { return segment().Find(newer_); }
  SharedWord& TopEntry(MmRecord* snapshot) {
    return segment().entries(HostOffset(snapshot->top.Load()))[0];
  }
  SharedWord* PmdTable(MmRecord* snapshot) {
    return segment().entries(Pte::FromRaw(TopEntry(snapshot).Load()).table());
  }
  HostOffset SmallTable(MmRecord* snapshot) {
    return Pte::FromRaw(PmdTable(snapshot)[0].Load()).table();
  }
  SharedWord* Pages(MmRecord* snapshot) { return segment().entries(SmallTable(snapshot)); }

  MmId older_;
  MmId newer_;
};

TEST_F(SnapshotInvariantsTest, TimeOrder) {
  newer()->taken.Store(older()->taken.Load());
  ExpectProblem("not in time order (I14)");
}

TEST_F(SnapshotInvariantsTest, ListWithACycle) {
  older()->snapshots.StoreLow(newer_.slot);
  ExpectProblem("listed twice (I14)");
}

TEST_F(SnapshotInvariantsTest, BackLink) {
  older()->snapshots.StoreHigh(kNullRecord);
  ExpectProblem("back link of snapshot");
}

TEST_F(SnapshotInvariantsTest, CountOfSnapshots) {
  mm()->snapshots.StoreHigh(5);
  ExpectProblem("number of snapshots");
}

TEST_F(SnapshotInvariantsTest, SnapshotInNoList) {
  newer()->snapshots.StoreLow(kNullRecord);
  ExpectProblem("must be in the list of its source (I14)");
}

TEST_F(SnapshotInvariantsTest, ListNamesALiveFile) {
  older()->snapshots.StoreLow(mm_.slot);
  ExpectProblem("which is no snapshot of it (I14)");
}

TEST_F(SnapshotInvariantsTest, PinMissing) {
  mm()->regions_pins.StoreHigh(1);
  ExpectProblem("not pinned by each snapshot");
}

TEST_F(SnapshotInvariantsTest, SnapshotOfNothing) {
  newer()->source.StoreHigh(77);
  ExpectProblem("is no snapshot of mm");
}

TEST_F(SnapshotInvariantsTest, UseOfASharedTable) {
  // One more than the entries that name it.
  NodeAllocator(segment()).RaiseUse(SmallTable(older()));
  ExpectProblem("(I5)");
}

TEST_F(SnapshotInvariantsTest, TableOfNobody) {
  // Back to the live table, in a place where it does not belong.
  PmdTable(newer())[5].Store(Pte::Table(small_table()).raw());
  ExpectProblem("neither a snapshot's nor the live file's (I14)");
}

TEST_F(SnapshotInvariantsTest, OwnTableAtTwoPlaces) {
  PmdTable(newer())[5].Store(Pte::Table(SmallTable(newer())).raw());
  ExpectProblem("stands at two places (I14)");
}

TEST_F(SnapshotInvariantsTest, EntryInFlightInACopy) {
  Pages(newer())[9].Store(
      Pte::InFlight(LeafSize::kSmall, FrameNumber(9), AccessSet::ReadWrite()).raw());
  ExpectProblem("in flight in a snapshot (I6)");
}

TEST_F(SnapshotInvariantsTest, CopiedEntryInTheLiveFile) {
  segment().entries(small_table())[1].Store(Pte::Copied(LeafSize::kSmall, FrameNumber(1)).raw());
  ExpectProblem("is copied in the live file");
}

TEST_F(SnapshotInvariantsTest, CopiedBlockWhereFramesAreSmall) {
  PmdTable(newer())[6].Store(Pte::Copied(LeafSize::kHuge, FrameNumber(600)).raw());
  ExpectProblem("cannot be at level 1");
}

TEST_F(SnapshotInvariantsTest, OneFrameForTwoPages) {
  Pages(older())[1].Store(Pte::Copied(LeafSize::kSmall, FrameNumber(8)).raw());
  ExpectProblem("have one pre-image frame (I5)");
}

TEST_F(SnapshotInvariantsTest, PagesCopied) {
  older()->pages_copied.Add(1);
  ExpectProblem("pages copied");
}

TEST_F(SnapshotInvariantsTest, OnlyTheNewerHasAPage) {
  Pages(older())[0].Store(0);
  NodeRecord* node = NodeAllocator(segment()).RecordOf(SmallTable(older()));
  NodeFill fill = NodeFill::Load(*node);
  --fill.live;
  fill.StoreTo(node);
  older()->pages_copied.Subtract(1);
  ExpectProblem("but not in an older snapshot (I14)");
}

TEST_F(SnapshotInvariantsTest, LiveCountOfAnOwnTable) {
  Pages(older())[0].Store(0);
  ExpectProblem("live entries of table");
}

TEST_F(SnapshotInvariantsTest, DamagedEntryOfASnapshot) {
  Pages(older())[0].Store(~uint64_t{0});
  ExpectProblem("is damaged");
}

TEST_F(InvariantsTest, FreeListWithACycle) {
  segment().guest(2)->link.Store(2);
  segment().header().guests.free_head.Store(2);
  segment().header().guests.watermark.Store(3);
  ExpectProblem("guest pool");
}

TEST_F(InvariantsTest, InFlightWithoutAFault) {
  const FaultDecision decision =
      Decide(segment_.tables, {.guest = guest_, .addr = GuestAddr(kBase + 2 * kBlockSize)}, {});
  EXPECT_EQ(decision.action, FaultAction::kPopulate);
  segment().header().outstanding_faults.Store(0);
  ExpectProblem("(I6)");
}

TEST_F(InvariantsTest, InFlightCount) {
  segment().header().in_flight_entries.Add(1);
  ExpectProblem("(I6)");
}

TEST_F(InvariantsTest, EventRecordedTwice) {
  segment().header().stats[StatIndex(FaultCause::kRefill)].Add(1);
  ExpectProblem("(I7)");
}

TEST_F(InvariantsTest, ProblemsAreLimited) {
  for (int i = 0; i < 512; ++i) segment().entries(small_table())[i].Store(~uint64_t{0});
  EXPECT_EQ(CheckInvariants(segment_.reader()).size(), kMaxProblems);
}

}  // namespace
}  // namespace hostmm
