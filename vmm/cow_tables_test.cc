// Snapshots on the tables alone: what is copied when, who shares what, and that nothing is done by
// halves. The runtime's part (copying bytes, talking to guests) is played by a pool of frame
// numbers.

#include "vmm/cow_tables.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/cow_fixture.h"

namespace hostmm {
namespace {

TEST_F(CowTablesTest, ASnapshotIsOneTopAndSharesTheRest) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const uint32_t before = nodes();
  const MmId snapshot = Take();
  EXPECT_EQ(nodes(), before + 1);
  EXPECT_EQ(Counter(FaultCounter::kTablesCopiedAtTake), 1u);
  EXPECT_EQ(Counter(FaultCounter::kSnapshotsTaken), 1u);
  EXPECT_EQ(Find(snapshot, 700), Live(700));
  EXPECT_TRUE(IsShared(700));
  EXPECT_EQ(cow().SnapshotsOf(file_), std::vector<MmId>({snapshot}));
  EXPECT_EQ(cow().Sharing(file_, FilePage(700)), std::vector<MmId>({snapshot}));
  EXPECT_EQ(cow().SourceOf(snapshot), file_);
  EXPECT_FALSE(cow().SourceOf(file_).valid());
  const MmInfo info = tables().Info(snapshot);
  EXPECT_EQ(info.frames, FrameKind::kSnapshot);
  EXPECT_EQ(info.length, PageCount(8 * kPagesPerBlock));
  EXPECT_EQ(info.source, file_);
  EXPECT_EQ(tables().Info(file_).snapshots, 1u);
  EXPECT_EQ(tables().Info(file_).pins, 2u);  // ours and the snapshot's
  ExpectSound();
  Drop(snapshot);
  EXPECT_EQ(nodes(), before);
  EXPECT_FALSE(IsShared(700));
}

TEST_F(CowTablesTest, TheFirstWriteCopiesTheTablesThenThePage) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId snapshot = Take();
  const uint32_t before = nodes();
  const FrameNumber frame = Write(700);
  EXPECT_EQ(nodes(), before + 2);  // the pmd table, and the pte table of block 1
  EXPECT_EQ(Counter(FaultCounter::kTablesCopiedLater), 2u);
  EXPECT_EQ(Counter(FaultCounter::kPagesCopied), 1u);
  EXPECT_EQ(Find(snapshot, 700), Copy(frame));
  EXPECT_EQ(Find(snapshot, 701), Live(701));
  EXPECT_FALSE(IsShared(700));
  EXPECT_TRUE(IsShared(701));
  EXPECT_EQ(tables().Info(snapshot).pages_copied, 1u);
  // In the same table, then in another one of the same pmd table.
  Write(701);
  EXPECT_EQ(nodes(), before + 2);
  Write(3 * kPagesPerBlock);
  EXPECT_EQ(nodes(), before + 3);
  Drop(snapshot);
  EXPECT_EQ(drops_, 3u);
  EXPECT_EQ(pool_.used(), 0u);
}

TEST_F(CowTablesTest, APageThatNobodySharesNeedsNoFrame) {
  AddFile(PageCount(4 * kPagesPerBlock));
  const MmId snapshot = Take();
  Write(5);
  uint32_t uses = 99;
  EXPECT_EQ(cow().Privatize(file_, FilePage(5), PageCount(1), FrameNumber(77), &uses),
            TableStatus::kOk);
  EXPECT_EQ(uses, 0u);
  EXPECT_EQ(Counter(FaultCounter::kPagesCopied), 1u);
  Drop(snapshot);
}

TEST_F(CowTablesTest, SnapshotsThatShareATableGetOneCopy) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId first = Take();
  const MmId second = Take();
  const uint32_t before = nodes();
  const FrameNumber frame = Write(700, 1, 1);  // one table names the frame
  EXPECT_EQ(nodes(), before + 2);
  EXPECT_EQ(Find(first, 700), Copy(frame));
  EXPECT_EQ(Find(second, 700), Copy(frame));
  EXPECT_EQ(tables().Info(first).pages_copied, 1u);
  EXPECT_EQ(tables().Info(second).pages_copied, 1u);
  EXPECT_EQ(Counter(FaultCounter::kPagesCopied), 1u);
  Drop(first);
  EXPECT_EQ(drops_, 0u);
  EXPECT_EQ(Find(second, 700), Copy(frame));
  Drop(second);
  EXPECT_EQ(drops_, 1u);
}

TEST_F(CowTablesTest, NestedOverTimeEachSeesItsOwnMoment) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId first = Take();
  const FrameNumber at_first = Write(700);
  const MmId second = Take();
  const FrameNumber at_second = Write(700);
  // Written after both: both need it, and each has a table of its own by now.
  const FrameNumber at_both = Write(701, 1, 2);
  const MmId third = Take();
  EXPECT_EQ(Find(first, 700), Copy(at_first));
  EXPECT_EQ(Find(second, 700), Copy(at_second));
  EXPECT_EQ(Find(third, 700), Live(700));
  EXPECT_EQ(Find(first, 701), Copy(at_both));
  EXPECT_EQ(Find(second, 701), Copy(at_both));
  EXPECT_EQ(Find(third, 701), Live(701));
  EXPECT_EQ(cow().SnapshotsOf(file_), std::vector<MmId>({third, second, first}));
  EXPECT_EQ(cow().Sharing(file_, FilePage(700)), std::vector<MmId>({third}));
  EXPECT_EQ(cow().Sharing(file_, FilePage(702)), std::vector<MmId>({third, second, first}));
  Drop(second);  // from the middle
  EXPECT_EQ(cow().SnapshotsOf(file_), std::vector<MmId>({third, first}));
  EXPECT_EQ(Find(first, 700), Copy(at_first));
  EXPECT_EQ(Find(first, 701), Copy(at_both));
  EXPECT_EQ(pool_.used(), 2u);
  Drop(first);
  EXPECT_EQ(pool_.used(), 0u);
  Drop(third);
}

TEST_F(CowTablesTest, AnyOrderOfDropsLeavesNothing) {
  const int orders[][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const uint32_t before = nodes();
  for (const auto& order : orders) {
    MmId ids[3];
    for (uint64_t i = 0; i < 3; ++i) {
      ids[i] = Take();
      Write(700 + i, 1, i + 1);
      Write(2000, 1, 1);
    }
    for (int which : order) Drop(ids[which]);
    EXPECT_EQ(nodes(), before);
    EXPECT_EQ(pool_.used(), 0u);
    EXPECT_EQ(pool_.end(), 0u);
  }
}

TEST_F(CowTablesTest, AHugeLeafSplitsOnTheSnapshotsSideOnly) {
  AddFile(PageCount(4 * kPagesPerBlock));
  ASSERT_EQ(tables().SetBlockCollapsed(file_, BlockIndex(1)), TableStatus::kOk);
  const MmId snapshot = Take();
  const FrameNumber frame = Write(kPagesPerBlock + 5);
  EXPECT_EQ(tables().Info(file_).huge_blocks, 1u);
  EXPECT_EQ(segment_->reader().Lookup(file_, FilePage(kPagesPerBlock + 5)).state,
            PageState::kPresentHuge);
  EXPECT_EQ(Find(snapshot, kPagesPerBlock + 5), Copy(frame));
  EXPECT_EQ(Find(snapshot, kPagesPerBlock + 6), Live(kPagesPerBlock + 6));
  Drop(snapshot);
}

TEST_F(CowTablesTest, HugetlbIsCopiedByTheBlock) {
  AddFile(PageCount(3 * kPagesPerBlock + 7), FrameKind::kHugetlb);  // the last block is a tail
  ASSERT_EQ(tables().PunchRange(file_, FilePage(0), PageCount(1)), TableStatus::kOk);
  const MmId snapshot = Take();
  uint32_t uses = 0;
  EXPECT_EQ(cow().Privatize(file_, FilePage(512), PageCount(1), FrameNumber(0), &uses),
            TableStatus::kBadRange);
  EXPECT_EQ(cow().Privatize(file_, FilePage(513), PageCount(512), FrameNumber(0), &uses),
            TableStatus::kBadRange);
  const FrameNumber frame = Write(kPagesPerBlock, kPagesPerBlock);
  EXPECT_EQ(Find(snapshot, kPagesPerBlock), Copy(frame));
  EXPECT_EQ(Find(snapshot, kPagesPerBlock + 511), Copy(frame, 511));
  EXPECT_EQ(Find(snapshot, 511), Live(511));
  EXPECT_FALSE(IsShared(kPagesPerBlock + 300));
  const FrameNumber tail = Write(3 * kPagesPerBlock, kPagesPerBlock);
  EXPECT_EQ(Find(snapshot, 3 * kPagesPerBlock + 6), Copy(tail, 6));
  EXPECT_EQ(tables().Info(snapshot).pages_copied, 2 * kPagesPerBlock);
  EXPECT_EQ(Changes(snapshot, file_), Runs({{512, 512}, {1536, 7}}));
  Drop(snapshot);
  EXPECT_EQ(drops_, 2 * kPagesPerBlock);
}

TEST_F(CowTablesTest, ATailBlockHasOnlyItsPages) {
  AddFile(PageCount(kPagesPerBlock + 3));
  Touch(2);
  const MmId snapshot = Take();
  Write(kPagesPerBlock + 2);
  EXPECT_FALSE(IsShared(kPagesPerBlock + 3));  // behind the end
  EXPECT_EQ(Changes(snapshot, file_), Runs({{kPagesPerBlock + 2, 1}}));
  Drop(snapshot);
}

TEST_F(CowTablesTest, SeveralPagesAtOnceIfAllAreSharedByTheSame) {
  AddFile(PageCount(4 * kPagesPerBlock));
  const MmId first = Take();
  Write(5);
  const MmId second = Take();
  uint32_t uses = 99;
  EXPECT_EQ(cow().Privatize(file_, FilePage(4), PageCount(3), FrameNumber(100), &uses),
            TableStatus::kBadRange);
  EXPECT_EQ(Find(second, 4), Live(4));
  const FrameNumber frame = Write(6, 4, 2);
  EXPECT_EQ(Find(first, 8), Copy(frame, 2));
  EXPECT_EQ(Find(second, 9), Copy(frame, 3));
  EXPECT_EQ(Find(second, 10), Live(10));
  Drop(first);
  Drop(second);
  EXPECT_EQ(pool_.used(), 0u);
}

TEST_F(CowTablesTest, RangesThatMakeNoSense) {
  AddFile(PageCount(4 * kPagesPerBlock));
  const MmId snapshot = Take();
  uint32_t uses = 0;
  const auto privatize = [&](MmId mm, uint64_t first, uint64_t count) {
    return cow().Privatize(mm, FilePage(first), PageCount(count), FrameNumber(0), &uses);
  };
  EXPECT_EQ(privatize(MmId{9, 9}, 0, 1), TableStatus::kNoSuchMm);
  EXPECT_EQ(privatize(snapshot, 0, 1), TableStatus::kNoSuchMm);
  EXPECT_EQ(privatize(file_, 0, 0), TableStatus::kBadRange);
  EXPECT_EQ(privatize(file_, 511, 2), TableStatus::kBadRange);
  EXPECT_EQ(privatize(file_, ~uint64_t{0}, 2), TableStatus::kBadRange);
  MmId id;
  EXPECT_EQ(cow().Take(MmId{9, 9}, {}, &id), TableStatus::kNoSuchMm);
  EXPECT_EQ(cow().Take(snapshot, {}, &id), TableStatus::kBadRange);
  EXPECT_EQ(cow().Take(segment_->AddMm(PageCount(512), FrameKind::kAdopted), {}, &id),
            TableStatus::kBadRange);
  EXPECT_EQ(tables().GrowMm(snapshot, PageCount(5 * kPagesPerBlock)), TableStatus::kBadRange);
  EXPECT_EQ(tables().PunchRange(snapshot, FilePage(0), PageCount(1)), TableStatus::kBadRange);
  EXPECT_EQ(tables().SetBlockCollapsed(snapshot, BlockIndex(0)), TableStatus::kBadRange);
  EXPECT_EQ(tables().CreateMm({.length = PageCount(1), .frames = FrameKind::kSnapshot}, &id),
            TableStatus::kBadRange);
  Drop(snapshot);
}

// What does not change what the file holds goes on in tables that snapshots share, and takes freed
// ones out of those that are the snapshots' own.
TEST_F(CowTablesTest, LiveTablesComeAndGoUnderASnapshot) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId before_writes = Take();
  const FrameNumber frame =
      Write(2 * kPagesPerBlock);  // an own pmd table, which shares 7 pte tables
  const MmId after_writes = Take();
  ASSERT_EQ(tables().SetBlockCollapsed(file_, BlockIndex(1)), TableStatus::kOk);
  ExpectSound();
  ASSERT_EQ(tables().PunchRange(file_, FilePage(3 * kPagesPerBlock), PageCount(kPagesPerBlock)),
            TableStatus::kOk);
  ExpectSound();
  ASSERT_EQ(tables().PunchRange(file_, FilePage(kPagesPerBlock + 5), PageCount(1)),
            TableStatus::kOk);  // splits
  ExpectSound();
  ASSERT_EQ(tables().PunchRange(file_, FilePage(0), PageCount(8 * kPagesPerBlock)),
            TableStatus::kOk);  // frees the pmd table too
  ExpectSound();
  ASSERT_EQ(tables().SetBlockCollapsed(file_, BlockIndex(4)), TableStatus::kOk);
  ExpectSound();
  for (uint64_t page : {0, 513, 1537, 2048}) {
    EXPECT_EQ(Find(before_writes, page), Live(page));
    EXPECT_TRUE(IsShared(page));
  }
  EXPECT_EQ(Find(before_writes, 2 * kPagesPerBlock), Copy(frame));
  // Where a table has been withdrawn the copy starts empty, one for both.
  const FrameNumber again = Write(3 * kPagesPerBlock + 1, 1, 1);
  EXPECT_EQ(Find(before_writes, 3 * kPagesPerBlock + 1), Copy(again));
  EXPECT_EQ(Find(after_writes, 3 * kPagesPerBlock + 1), Copy(again));
  Drop(after_writes);
  Drop(before_writes);
}

TEST_F(CowTablesTest, EntriesInFlightAreNotCopied) {
  AddFile(PageCount(4 * kPagesPerBlock));
  Touch(1);
  const FaultDecision running =
      Decide(tables(), {.guest = guest_, .addr = GuestAddr(kBase + 100 * kPageSize)}, {});
  ASSERT_EQ(running.action, FaultAction::kPopulate);
  const MmId snapshot = Take(CowPolicy{});  // one lowest table: copied at once
  ExpectSound();
  Write(3);
  EXPECT_EQ(tables().Stats().in_flight_entries, running.count.value());
  Commit(tables(), running, Outcome::kDone, running.grain);
  ExpectSound();
  Drop(snapshot);
}

TEST_F(CowTablesTest, BelowTheThresholdAllTablesAreCopiedAtOnce) {
  for (uint64_t blocks = 1; blocks <= 6; ++blocks) {
    Format({.max_guests = 2, .max_mms = 4, .max_regions = 8, .max_nodes = 64});
    AddFile(PageCount(8 * kPagesPerBlock));
    Touch(blocks);
    const MmId snapshot = Take(CowPolicy{});
    // Top, pmd table, and the pte tables; or the top.
    EXPECT_EQ(Counter(FaultCounter::kTablesCopiedAtTake), blocks < 4 ? blocks + 2 : 1);
    ExpectSound();
    for (uint64_t block = 0; block < blocks; ++block) Write(block * kPagesPerBlock);
    EXPECT_EQ(Counter(FaultCounter::kTablesCopiedLater), blocks < 4 ? 0 : blocks + 1);
    Drop(snapshot);
    EXPECT_EQ(pool_.used(), 0u);
  }
}

// Pmd tables full of huge leaves are lowest tables as well.
TEST_F(CowTablesTest, TheThresholdCountsTablesOfHugeLeaves) {
  SegmentConfig config{.max_guests = 2, .max_mms = 4, .max_regions = 8, .max_nodes = 64};
  config.geometry = kSmallSpans;  // 4 blocks to a pmd table
  Format(config);
  AddFile(PageCount(20 * kPagesPerBlock));
  for (uint64_t block = 0; block < 12; ++block) {
    ASSERT_EQ(tables().SetBlockCollapsed(file_, BlockIndex(block)), TableStatus::kOk);
  }
  const MmId three = Take(CowPolicy{});
  EXPECT_EQ(Counter(FaultCounter::kTablesCopiedAtTake), 4u);
  ASSERT_EQ(tables().SetBlockCollapsed(file_, BlockIndex(12)), TableStatus::kOk);
  const MmId four = Take(CowPolicy{});
  EXPECT_EQ(Counter(FaultCounter::kTablesCopiedAtTake), 5u);
  Write(0);  // their pmd tables share the new pte table
  Drop(three);
  Drop(four);
  EXPECT_EQ(pool_.used(), 0u);
}

TEST_F(CowTablesTest, NoMmRecordLeft) {
  Format({.max_guests = 1, .max_mms = 1, .max_regions = 1, .max_nodes = 8});
  AddFile(PageCount(512));
  MmId id;
  EXPECT_EQ(cow().Take(file_, {}, &id), TableStatus::kNoSpace);
  EXPECT_EQ(nodes(), 1u);
  EXPECT_EQ(tables().Info(file_).pins, 1u);
}

TEST_F(CowTablesTest, ASnapshotOutlivesTheLastUserOfItsFile) {
  AddFile(PageCount(4 * kPagesPerBlock));
  const MmId snapshot = Take();
  const FrameNumber frame = Write(3);
  ReleasedMms released;
  ASSERT_EQ(tables().UnpinMm(file_, &released), TableStatus::kOk);
  EXPECT_TRUE(released.empty());
  EXPECT_EQ(Find(snapshot, 3), Copy(frame));
  ASSERT_EQ(tables().UnpinMm(snapshot, &released), TableStatus::kOk);
  EXPECT_EQ(released, ReleasedMms({snapshot, file_}));
  EXPECT_EQ(pool_.used(), 0u);
  EXPECT_EQ(nodes(), 0u);
}

TEST_F(CowTablesTest, ViewsAreRegionsOfTheSnapshot) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  MmId snapshot;
  ASSERT_EQ(cow().Take(file_, {}, &snapshot), TableStatus::kOk);
  const RegionSpec view{.va = GuestAddr(4 * kBase),
                        .length = PageCount(8 * kPagesPerBlock),
                        .mm = snapshot,
                        .file_page = FilePage(0),
                        .access = AccessSet::ReadWrite(),
                        .flags = kView | kViewWritable};
  ASSERT_EQ(tables().MapRegion(guest_, view), TableStatus::kOk);
  // A view shares no table with other guests' tops: what it sees is decided page by page.
  EXPECT_EQ(segment_->reader().IsShared(guest_, view.va), TableReader::Sharing::kNotShared);
  Write(9);
  EXPECT_EQ(segment_->reader().LookupFrom(guest_, snapshot, FilePage(9)).state, PageState::kCopied);
  EXPECT_EQ(segment_->reader().LookupFrom(guest_, snapshot, FilePage(0)).state,
            PageState::kPresentSmall);
  ASSERT_EQ(tables().FlagRange(guest_, view.va, PageCount(8), kCopyOnly, 0), TableStatus::kOk);
  EXPECT_EQ(tables().FindRegion(guest_, view.va)->flags, kView | kViewWritable | kCopyOnly);
  GuestId child;
  ASSERT_EQ(tables().ForkGuest(guest_, &child), TableStatus::kOk);
  EXPECT_TRUE(tables().FindRegion(child, view.va).has_value());
  ReleasedMms released;
  ASSERT_EQ(tables().RemoveGuest(guest_, &released), TableStatus::kOk);
  EXPECT_TRUE(released.empty());
  ASSERT_EQ(tables().RemoveGuest(child, &released), TableStatus::kOk);
  EXPECT_EQ(released, ReleasedMms({snapshot}));
  EXPECT_EQ(pool_.used(), 0u);
}

TEST_F(CowTablesTest, AChildHasNoRegionOfPrivateMemory) {
  AddFile(PageCount(8 * kPagesPerBlock));
  ASSERT_EQ(tables().MapRegion(guest_, {.va = GuestAddr(kBase),
                                        .length = PageCount(8 * kPagesPerBlock),
                                        .mm = file_,
                                        .file_page = FilePage(0),
                                        .access = AccessSet::ReadWrite(),
                                        .flags = kCow}),
            TableStatus::kOk);
  GuestId child;
  ASSERT_EQ(tables().ForkGuest(guest_, &child), TableStatus::kOk);
  EXPECT_FALSE(tables().FindRegion(child, GuestAddr(kBase)).has_value());
  EXPECT_TRUE(tables().FindRegion(guest_, GuestAddr(kBase)).has_value());
}

TEST_F(CowTablesTest, ChangesBetweenMoments) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId first = Take();
  EXPECT_EQ(Changes(first, file_), Runs());
  EXPECT_EQ(Changes(first, first), Runs());
  Write(511);
  Write(512);
  const MmId second = Take();
  Write(512);
  Write(2000);
  EXPECT_EQ(Changes(first, second), Runs({{511, 2}}));
  EXPECT_EQ(Changes(second, file_), Runs({{512, 1}, {2000, 1}}));
  EXPECT_EQ(Changes(first, file_), Runs({{511, 2}, {2000, 1}}));
  // Not in order, or not of one file: everything.
  const Runs all = {{0, 8 * kPagesPerBlock}};
  EXPECT_EQ(Changes(second, first), all);
  EXPECT_EQ(Changes(file_, first), all);
  EXPECT_EQ(Changes(MmId{9, 9}, second), all);
  EXPECT_EQ(Changes(first, MmId{9, 9}), Runs());
  Drop(first);
  EXPECT_EQ(Changes(second, file_), Runs({{512, 1}, {2000, 1}}));
  Drop(second);
}

TEST_F(CowTablesTest, TheNextChangeFromAPageOn) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId snapshot = Take();
  Write(511);
  Write(512);
  Write(600, 3);
  const auto next = [&](uint64_t from) {
    const auto run = cow().NextChange(snapshot, file_, FilePage(from));
    return run.has_value() ? Runs({{run->first.value(), run->count.value()}}) : Runs();
  };
  EXPECT_EQ(next(0), Runs({{511, 1}}));
  EXPECT_EQ(next(511), Runs({{511, 1}}));
  EXPECT_EQ(next(512), Runs({{512, 1}}));
  EXPECT_EQ(next(513), Runs({{600, 3}}));
  EXPECT_EQ(next(601), Runs({{601, 2}}));
  EXPECT_EQ(next(603), Runs());
  EXPECT_EQ(next(8 * kPagesPerBlock), Runs());
  EXPECT_EQ(next(kMaxFilePages), Runs());
  Drop(snapshot);
}

TEST_F(CowTablesTest, AFileThatGrowsHasChangedThere) {
  AddFile(PageCount(kPagesPerBlock + 10));
  Touch(2);
  const MmId before = Take();
  ASSERT_EQ(tables().GrowMm(file_, PageCount(3 * kPagesPerBlock)), TableStatus::kOk);
  const MmId after = Take();
  EXPECT_EQ(Changes(before, after), Runs({{522, 1014}}));
  // The older one has neither page nor entry for it, and gets none when the table is its own too.
  const FrameNumber frame = Write(kPagesPerBlock + 9);
  Write(kPagesPerBlock + 10);
  EXPECT_EQ(Find(before, kPagesPerBlock + 9), Copy(frame));
  EXPECT_EQ(Changes(before, after), Runs({{522, 1014}}));
  EXPECT_EQ(Changes(before, file_), Runs({{521, 1015}}));
  Drop(before);
  Drop(after);
  EXPECT_EQ(pool_.used(), 0u);
}

TEST_F(CowTablesTest, ALostSnapshotLetsItsFramesGo) {
  AddFile(PageCount(8 * kPagesPerBlock));
  Touch(8);
  const MmId kept = Take();
  Write(4);
  const MmId lost = Take();
  Write(5, 1, 2);
  Write(6, 1, 2);
  ReleasedMms released;
  cow().Lose(lost, &released);
  ExpectSound();
  EXPECT_TRUE(released.empty());
  EXPECT_EQ(drops_, 2u);
  EXPECT_EQ(Counter(FaultCounter::kSnapshotsLost), 1u);
  EXPECT_FALSE(cow().SourceOf(lost).valid());
  EXPECT_EQ(cow().SnapshotsOf(file_), std::vector<MmId>({kept}));
  EXPECT_FALSE(IsShared(4));  // the lost one had shared it
  EXPECT_FALSE(tables().Info(lost).source.valid());
  cow().Lose(lost, &released);
  cow().Lose(file_, &released);
  EXPECT_EQ(Counter(FaultCounter::kSnapshotsLost), 1u);
  Drop(lost);
  Drop(kept);
  EXPECT_EQ(pool_.used(), 0u);
}

}  // namespace
}  // namespace hostmm
