// The calls of the facade, one by one: what they do and what they refuse.

#include "vmm/host_tables.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kBase = uint64_t{1} << 30;
constexpr PageCount Blocks(uint64_t count) { return PageCount(count * kPagesPerBlock); }

class HostTablesTest : public testing::Test {
 protected:
  ~HostTablesTest() override {
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  TableStatus Map(GuestId guest, MmId mm, uint64_t va, uint64_t pages, uint64_t file_page = 0,
                  uint32_t flags = 0) {
    return tables_.MapRegion(guest, {.va = GuestAddr(va),
                                     .length = PageCount(pages),
                                     .mm = mm,
                                     .file_page = FilePage(file_page),
                                     .access = AccessSet::ReadWrite(),
                                     .flags = flags});
  }
  std::vector<Region> Regions(GuestId guest) {
    std::vector<Region> regions;
    tables_.ForEachRegion(guest, [&](const Region& region) { regions.push_back(region); });
    return regions;
  }
  TableStatus Unmap(GuestId guest, uint64_t va, uint64_t pages) {
    return tables_.UnmapRange(guest, GuestAddr(va), PageCount(pages), &released_);
  }

  TestSegment segment_{{.max_guests = 8, .max_mms = 4, .max_regions = 12, .max_nodes = 16}};
  HostTables& tables_ = segment_.tables;
  ReleasedMms released_;
  GuestId guest_ = segment_.AddGuest();
  MmId mm_ = segment_.AddMm(Blocks(8));
};

TEST_F(HostTablesTest, InfoSaysWhatTheMmWasMadeOf) {
  MmSpec spec{.length = PageCount(77), .frames = FrameKind::kBase, .owner_uid = 1000};
  std::strcpy(spec.name, "shared_buffers");
  MmId id;
  ASSERT_EQ(tables_.CreateMm(spec, &id), TableStatus::kOk);
  const MmInfo info = tables_.Info(id);
  EXPECT_EQ(info.id, id);
  EXPECT_EQ(info.length, PageCount(77));
  EXPECT_EQ(info.frames, FrameKind::kBase);
  EXPECT_EQ(info.owner_uid, 1000u);
  EXPECT_STREQ(info.name, "shared_buffers");
  EXPECT_FALSE(tables_.Info(MmId{3, 9}).id.valid());
}

TEST_F(HostTablesTest, ANameWithoutEndIsCut) {
  MmSpec spec{.length = PageCount(1)};
  std::memset(spec.name, 'x', sizeof(spec.name));
  MmId id;
  ASSERT_EQ(tables_.CreateMm(spec, &id), TableStatus::kOk);
  EXPECT_EQ(std::strlen(tables_.Info(id).name), sizeof(spec.name) - 1);
}

TEST_F(HostTablesTest, LengthsThatNoMmCanHave) {
  MmId id;
  EXPECT_EQ(tables_.CreateMm({.length = PageCount(0)}, &id), TableStatus::kBadRange);
  EXPECT_EQ(tables_.CreateMm({.length = PageCount(kX8664.SpanOf(4).value() + 1)}, &id),
            TableStatus::kBadRange);
  EXPECT_EQ(tables_.CreateMm({.length = PageCount(~uint64_t{0})}, &id), TableStatus::kBadRange);
  EXPECT_FALSE(id.valid());
}

TEST_F(HostTablesTest, APinnedMmOutlivesItsLastRegion) {
  ASSERT_EQ(tables_.PinMm(mm_), TableStatus::kOk);
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(Unmap(guest_, kBase, 10), TableStatus::kOk);
  EXPECT_TRUE(released_.empty());
  EXPECT_EQ(tables_.Info(mm_).pins, 1u);
  ASSERT_EQ(tables_.UnpinMm(mm_, &released_), TableStatus::kOk);
  EXPECT_EQ(released_, ReleasedMms({mm_}));
  EXPECT_EQ(tables_.PinMm(mm_), TableStatus::kNoSuchMm);
}

TEST_F(HostTablesTest, ASlotIsUsedAgainUnderAnotherGeneration) {
  ASSERT_EQ(tables_.RemoveGuest(guest_, &released_), TableStatus::kOk);
  const GuestId next = segment_.AddGuest();
  EXPECT_EQ(next.slot, guest_.slot);
  EXPECT_NE(next.generation, guest_.generation);
  EXPECT_EQ(tables_.RemoveGuest(guest_, &released_), TableStatus::kNoSuchGuest);
  EXPECT_EQ(tables_.SetGuestPid(guest_, 5), TableStatus::kNoSuchGuest);
  EXPECT_EQ(Map(guest_, mm_, kBase, 1), TableStatus::kNoSuchGuest);
  GuestId child;
  EXPECT_EQ(tables_.ForkGuest(guest_, &child), TableStatus::kNoSuchGuest);
}

TEST_F(HostTablesTest, PidAndUid) {
  GuestId id;
  ASSERT_EQ(tables_.AddGuest(-1, 65534, &id), TableStatus::kOk);
  GuestId child;
  ASSERT_EQ(tables_.ForkGuest(id, &child), TableStatus::kOk);
  EXPECT_EQ(segment_.reader().Info(child)->pid, 0);
  EXPECT_EQ(segment_.reader().Info(child)->uid, 65534u);
  ASSERT_EQ(tables_.SetGuestPid(child, 4711), TableStatus::kOk);
  EXPECT_EQ(segment_.reader().Info(child)->pid, 4711);
}

TEST_F(HostTablesTest, MapRefusesWhatItCannotMean) {
  EXPECT_EQ(Map(guest_, MmId{9, 9}, kBase, 1), TableStatus::kNoSuchMm);
  EXPECT_EQ(Map(guest_, mm_, kBase + 1, 1), TableStatus::kBadRange);
  EXPECT_EQ(Map(guest_, mm_, kBase, 0), TableStatus::kBadRange);
  EXPECT_EQ(Map(guest_, mm_, kBase, ~uint64_t{0}), TableStatus::kBadRange);
  EXPECT_EQ(Map(guest_, mm_, kBase, 1, kMaxFilePages), TableStatus::kBadRange);
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  EXPECT_EQ(Map(guest_, mm_, kBase + 9 * kPageSize, 1), TableStatus::kOverlap);
  EXPECT_EQ(Map(guest_, mm_, kBase - kPageSize, 2), TableStatus::kOverlap);
  EXPECT_EQ(Map(guest_, mm_, kBase - kPageSize, 1, 500), TableStatus::kOk);
}

TEST_F(HostTablesTest, UnmapSplitsAndIgnoresHoles) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(Unmap(guest_, kBase + 3 * kPageSize, 4), TableStatus::kOk);
  ASSERT_EQ(Unmap(guest_, kBase + 3 * kPageSize, 4), TableStatus::kOk);
  const std::vector<Region> regions = Regions(guest_);
  ASSERT_EQ(regions.size(), 2u);
  EXPECT_EQ(regions[0].length, PageCount(3));
  EXPECT_EQ(regions[1].va, GuestAddr(kBase + 7 * kPageSize));
  EXPECT_EQ(regions[1].file_page, FilePage(7));
  EXPECT_EQ(Unmap(guest_, kBase + 1, 1), TableStatus::kBadRange);
  EXPECT_TRUE(released_.empty());
  ASSERT_EQ(Unmap(guest_, 0, kMaxGuestAddr / kPageSize), TableStatus::kOk);
  EXPECT_TRUE(Regions(guest_).empty());
  EXPECT_EQ(released_, ReleasedMms({mm_}));
}

TEST_F(HostTablesTest, ASplitWithoutARecordChangesNothing) {
  // All 12 regions in use.
  for (uint64_t i = 0; i < 12; ++i) {
    ASSERT_EQ(Map(guest_, mm_, kBase + i * kBlockSize, 10, i * 20), TableStatus::kOk);
  }
  const std::vector<Region> before = Regions(guest_);
  EXPECT_EQ(Unmap(guest_, kBase + kPageSize, 1), TableStatus::kNoSpace);
  EXPECT_EQ(tables_.ProtectRange(guest_, GuestAddr(kBase), PageCount(1), Access::kRead),
            TableStatus::kNoSpace);
  EXPECT_EQ(Map(guest_, mm_, kBase + 20 * kBlockSize, 1), TableStatus::kNoSpace);
  GuestId child;
  EXPECT_EQ(tables_.ForkGuest(guest_, &child), TableStatus::kNoSpace);
  EXPECT_EQ(Regions(guest_), before);
  EXPECT_EQ(Unmap(guest_, kBase, 10), TableStatus::kOk);  // whole regions need no record
}

TEST_F(HostTablesTest, ProtectSplitsAndMergesBack) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(
      tables_.ProtectRange(guest_, GuestAddr(kBase + 4 * kPageSize), PageCount(2), Access::kNone),
      TableStatus::kOk);
  ASSERT_EQ(Regions(guest_).size(), 3u);
  EXPECT_TRUE(Regions(guest_)[1].access.empty());
  ASSERT_EQ(tables_.ProtectRange(guest_, GuestAddr(kBase + 4 * kPageSize), PageCount(2),
                                 AccessSet::ReadWrite()),
            TableStatus::kOk);
  EXPECT_EQ(Regions(guest_).size(), 1u);
}

TEST_F(HostTablesTest, ProtectionOfATransparentRegionIsTheCallersOwn) {
  const GuestId other = segment_.AddGuest();
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(Map(other, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(tables_.ProtectRange(guest_, GuestAddr(kBase), PageCount(10), Access::kRead),
            TableStatus::kOk);
  EXPECT_EQ(Regions(guest_)[0].access, AccessSet(Access::kRead));
  EXPECT_EQ(Regions(other)[0].access, AccessSet::ReadWrite());
}

TEST_F(HostTablesTest, FlagsAreSetAndCleared) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10, 0, kHintSmall), TableStatus::kOk);
  ASSERT_EQ(
      tables_.FlagRange(guest_, GuestAddr(kBase), PageCount(5), kHintHuge | (1u << 31), kHintSmall),
      TableStatus::kOk);
  ASSERT_EQ(Regions(guest_).size(), 2u);
  EXPECT_EQ(Regions(guest_)[0].flags, kHintHuge);  // an unknown flag is not kept
  EXPECT_EQ(Regions(guest_)[1].flags, kHintSmall);
}

TEST_F(HostTablesTest, DontForkStaysWithTheParent) {
  const MmId private_mm = segment_.AddMm(Blocks(1));
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(Map(guest_, private_mm, 2 * kBase, 10, 0, kDontFork), TableStatus::kOk);
  GuestId child;
  ASSERT_EQ(tables_.ForkGuest(guest_, &child), TableStatus::kOk);
  ASSERT_EQ(Regions(child).size(), 1u);
  EXPECT_EQ(Regions(child)[0], Regions(guest_)[0]);
}

TEST_F(HostTablesTest, FindRegionAtItsEdges) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 2), TableStatus::kOk);
  EXPECT_FALSE(tables_.FindRegion(guest_, GuestAddr(kBase - 1)).has_value());
  ASSERT_TRUE(tables_.FindRegion(guest_, GuestAddr(kBase + kPageSize + 17)).has_value());
  EXPECT_FALSE(tables_.FindRegion(guest_, GuestAddr(kBase + 2 * kPageSize)).has_value());
}

TEST_F(HostTablesTest, MoveKeepsTheDataOffset) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10, 100), TableStatus::kOk);
  ASSERT_EQ(tables_.MoveRange(guest_, GuestAddr(kBase + 2 * kPageSize), PageCount(3),
                              GuestAddr(4 * kBase), PageCount(3), &released_),
            TableStatus::kOk);
  const std::vector<Region> regions = Regions(guest_);
  ASSERT_EQ(regions.size(), 3u);
  EXPECT_EQ(regions[2].va, GuestAddr(4 * kBase));
  EXPECT_EQ(regions[2].file_page, FilePage(102));
}

TEST_F(HostTablesTest, MoveOfTheOnlyRegionKeepsTheMm) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(tables_.MoveRange(guest_, GuestAddr(kBase), PageCount(10), GuestAddr(4 * kBase),
                              PageCount(20), &released_),
            TableStatus::kOk);
  EXPECT_TRUE(released_.empty());
  ASSERT_EQ(Regions(guest_).size(), 1u);
  EXPECT_EQ(Regions(guest_)[0].length, PageCount(20));
}

TEST_F(HostTablesTest, MoveReplacesWhatIsAtTheTarget) {
  const MmId victim = segment_.AddMm(Blocks(1));
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  ASSERT_EQ(Map(guest_, victim, 4 * kBase, 5), TableStatus::kOk);
  ASSERT_EQ(tables_.MoveRange(guest_, GuestAddr(kBase), PageCount(10), GuestAddr(4 * kBase),
                              PageCount(10), &released_),
            TableStatus::kOk);
  EXPECT_EQ(released_, ReleasedMms({victim}));
  EXPECT_EQ(Regions(guest_).size(), 1u);
}

TEST_F(HostTablesTest, MoveInPlaceShrinksAndGrows) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  const GuestAddr va(kBase);
  ASSERT_EQ(tables_.MoveRange(guest_, va, PageCount(10), va, PageCount(4), &released_),
            TableStatus::kOk);
  EXPECT_EQ(Regions(guest_)[0].length, PageCount(4));
  ASSERT_EQ(tables_.MoveRange(guest_, va, PageCount(4), va, PageCount(30), &released_),
            TableStatus::kOk);
  EXPECT_EQ(Regions(guest_)[0].length, PageCount(30));
  ASSERT_EQ(Map(guest_, mm_, kBase + 30 * kPageSize, 1, 400), TableStatus::kOk);
  EXPECT_EQ(tables_.MoveRange(guest_, va, PageCount(30), va, PageCount(31), &released_),
            TableStatus::kOverlap);
}

TEST_F(HostTablesTest, AnEmptyOldRangeMapsASecondWindow) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10, 100), TableStatus::kOk);
  ASSERT_EQ(tables_.MoveRange(guest_, GuestAddr(kBase + kPageSize), PageCount(0),
                              GuestAddr(4 * kBase), PageCount(5), &released_),
            TableStatus::kOk);
  ASSERT_EQ(Regions(guest_).size(), 2u);
  EXPECT_EQ(Regions(guest_)[1].file_page, FilePage(101));
}

TEST_F(HostTablesTest, MovesThatMakeNoSense) {
  ASSERT_EQ(Map(guest_, mm_, kBase, 10), TableStatus::kOk);
  const auto move = [&](uint64_t from, uint64_t old_pages, uint64_t to, uint64_t new_pages) {
    return tables_.MoveRange(guest_, GuestAddr(from), PageCount(old_pages), GuestAddr(to),
                             PageCount(new_pages), &released_);
  };
  EXPECT_EQ(move(kBase, 11, 4 * kBase, 11), TableStatus::kBadRange);
  EXPECT_EQ(move(2 * kBase, 1, 4 * kBase, 1), TableStatus::kBadRange);
  EXPECT_EQ(move(kBase, 10, kBase + kPageSize, 10), TableStatus::kBadRange);
  EXPECT_EQ(move(kBase, 10, 4 * kBase, 0), TableStatus::kBadRange);
  EXPECT_EQ(move(kBase, 10, 4 * kBase + 1, 10), TableStatus::kBadRange);
  EXPECT_EQ(Regions(guest_).size(), 1u);
}

TEST_F(HostTablesTest, MappersOfABlock) {
  const GuestId other = segment_.AddGuest();
  ASSERT_EQ(Map(guest_, mm_, kBase, 600), TableStatus::kOk);
  ASSERT_EQ(Map(other, mm_, kBase, 100, 512), TableStatus::kOk);
  ASSERT_EQ(tables_.ProtectRange(other, GuestAddr(kBase), PageCount(100), Access::kRead),
            TableStatus::kOk);
  const auto mappers = [&](uint64_t block) {
    std::vector<std::pair<GuestId, Writable>> found;
    tables_.ForEachMapper(mm_, BlockIndex(block),
                          [&](GuestId guest, const Region&, Writable writable) {
                            found.emplace_back(guest, writable);
                          });
    return found;
  };
  using Found = std::vector<std::pair<GuestId, Writable>>;
  EXPECT_EQ(mappers(0), (Found{{guest_, Writable::kYes}}));
  EXPECT_EQ(mappers(1), (Found{{other, Writable::kNo}, {guest_, Writable::kYes}}));
  EXPECT_EQ(mappers(2), Found{});
}

TEST_F(HostTablesTest, CollapseAndPunch) {
  ASSERT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(2)), TableStatus::kOk);
  EXPECT_EQ(tables_.Info(mm_).huge_blocks, 1u);
  ASSERT_EQ(tables_.PunchRange(mm_, FilePage(2 * 512 + 5), PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(tables_.Info(mm_).huge_blocks, 0u);
  EXPECT_EQ(tables_.Info(mm_).small_pages, PageCount(511));
  const TableReader reader = segment_.reader();
  EXPECT_EQ(reader.Lookup(mm_, FilePage(2 * 512 + 5)).state, PageState::kEmpty);
  EXPECT_EQ(reader.Lookup(mm_, FilePage(2 * 512 + 6)).state, PageState::kPresentSmall);
  ASSERT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(2)), TableStatus::kOk);
  EXPECT_EQ(tables_.Info(mm_).small_pages, PageCount(0));
  EXPECT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(8)), TableStatus::kBadRange);
  EXPECT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(~uint64_t{0} >> 9)), TableStatus::kBadRange);
}

TEST_F(HostTablesTest, CollapseOfABlockInFlightIsBusy) {
  ASSERT_EQ(Map(guest_, mm_, kBase, Blocks(8).value()), TableStatus::kOk);
  const FaultDecision decision =
      Decide(tables_, {.guest = guest_, .addr = GuestAddr(kBase)}, Climate());
  ASSERT_EQ(decision.action, FaultAction::kPopulate);
  EXPECT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(0)), TableStatus::kBusy);
  Commit(tables_, decision, Outcome::kDone, Grain::kSmall);
  EXPECT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(0)), TableStatus::kOk);
}

TEST_F(HostTablesTest, APartialPunchOfHugetlbKeepsTheFrame) {
  const MmId mm = segment_.AddMm(Blocks(4), FrameKind::kHugetlb);
  ASSERT_EQ(tables_.SetBlockCollapsed(mm, BlockIndex(0)), TableStatus::kOk);
  ASSERT_EQ(tables_.SetBlockCollapsed(mm, BlockIndex(1)), TableStatus::kOk);
  ASSERT_EQ(tables_.PunchRange(mm, FilePage(1), Blocks(2) - PageCount(1)), TableStatus::kOk);
  EXPECT_EQ(tables_.Info(mm).huge_blocks, 1u);
  EXPECT_EQ(segment_.reader().Lookup(mm, FilePage(1)).state, PageState::kPresentHuge);
  EXPECT_EQ(segment_.reader().Lookup(mm, FilePage(512)).state, PageState::kEmpty);
}

TEST_F(HostTablesTest, AFileGrowsWithinItsTopLevel) {
  MmId mm;
  ASSERT_EQ(tables_.CreateMm({.length = PageCount(8 * kPagesPerBlock)}, &mm), TableStatus::kOk);
  EXPECT_EQ(tables_.SetBlockCollapsed(mm, BlockIndex(20)), TableStatus::kBadRange);
  EXPECT_EQ(tables_.GrowMm(mm, PageCount(32 * kPagesPerBlock)), TableStatus::kOk);
  EXPECT_EQ(tables_.SetBlockCollapsed(mm, BlockIndex(20)), TableStatus::kOk);
  EXPECT_EQ(tables_.GrowMm(mm, PageCount(kPagesPerBlock)), TableStatus::kOk);  // never shorter
  EXPECT_EQ(tables_.Info(mm).length, PageCount(32 * kPagesPerBlock));
  EXPECT_EQ(tables_.GrowMm(mm, PageCount(uint64_t{1} << 40)), TableStatus::kBadRange);
  EXPECT_EQ(tables_.GrowMm(MmId{9, 9}, PageCount(1)), TableStatus::kNoSuchMm);
}

}  // namespace
}  // namespace hostmm
