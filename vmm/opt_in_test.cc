// Opt-in regions (MAP_SHARED_PT): one protection for all who map a page so, and for nobody else.

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "vmm/fault_policy.h"
#include "vmm/host_tables.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kBase = uint64_t{1} << 30;
constexpr PageCount Blocks(uint64_t count) { return PageCount(count * kPagesPerBlock); }
constexpr AccessSet kReadOnly = Access::kRead;
constexpr AccessSet kReadWrite = AccessSet::ReadWrite();

// Pages [first, first + count) of a file, or of a guest's address space from kBase on.
struct Pages {
  uint64_t first;
  uint64_t count;
};

// One line of a guest's map: file page, pages, access.
using Line = std::tuple<uint64_t, uint64_t, AccessSet>;

class OptInTest : public testing::Test {
 protected:
  explicit OptInTest(uint32_t max_regions = 64)
      : segment_({.max_guests = 8, .max_mms = 4, .max_regions = max_regions, .max_nodes = 64}) {}
  ~OptInTest() override {
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
  }

  // Maps file pages at kBase plus the same number of pages.
  TableStatus Map(GuestId guest, Pages pages, AccessSet access = kReadWrite,
                  uint32_t flags = kSharedPt) {
    return MapAt(guest, kBase + pages.first * kPageSize, pages, access, flags);
  }
  TableStatus MapAt(GuestId guest, uint64_t va, Pages pages, AccessSet access = kReadWrite,
                    uint32_t flags = kSharedPt) {
    return tables_.MapRegion(guest, {.va = GuestAddr(va),
                                     .length = PageCount(pages.count),
                                     .mm = mm_,
                                     .file_page = FilePage(pages.first),
                                     .access = access,
                                     .flags = flags});
  }
  TableStatus Protect(GuestId guest, Pages pages, AccessSet access) {
    return tables_.ProtectRange(guest, GuestAddr(kBase + pages.first * kPageSize),
                                PageCount(pages.count), access);
  }
  TableStatus Unmap(GuestId guest, Pages pages) {
    return tables_.UnmapRange(guest, GuestAddr(kBase + pages.first * kPageSize),
                              PageCount(pages.count), &released_);
  }
  std::vector<Line> MapOf(GuestId guest) {
    std::vector<Line> lines;
    tables_.ForEachRegion(guest, [&](const Region& region) {
      lines.emplace_back(region.file_page.value(), region.length.value(), region.access);
    });
    return lines;
  }
  std::vector<Region> Regions(GuestId guest) {
    std::vector<Region> regions;
    tables_.ForEachRegion(guest, [&](const Region& region) { regions.push_back(region); });
    return regions;
  }

  TestSegment segment_;
  HostTables& tables_ = segment_.tables;
  ReleasedMms released_;
  GuestId a_ = segment_.AddGuest();
  GuestId b_ = segment_.AddGuest();
  GuestId c_ = segment_.AddGuest();
  MmId mm_ = segment_.AddMm(Blocks(8));
};

using Lines = std::vector<Line>;

TEST_F(OptInTest, ShareModeOfARegion) {
  EXPECT_EQ(ShareModeOf(0), ShareMode::kUnshare);
  EXPECT_EQ(ShareModeOf(kAllRegionFlags & ~(kSharedPt | kDedicated)), ShareMode::kUnshare);
  EXPECT_EQ(ShareModeOf(kSharedPt | kNeverWrite), ShareMode::kSharedPt);
  EXPECT_EQ(ShareModeOf(kSharedPt | kDedicated), ShareMode::kDedicated);
  EXPECT_EQ(ShareModeOf(kDedicated), ShareMode::kUnshare);  // dedicated is a kind of opt-in
}

TEST_F(OptInTest, ProtectChangesAllWhoOptedInAndNobodyElse) {
  const GuestId plain = segment_.AddGuest();
  ASSERT_EQ(Map(a_, {0, 10}), TableStatus::kOk);
  ASSERT_EQ(MapAt(b_, 5 * kBase, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(plain, {0, 100}, kReadWrite, 0), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {8, 99}, kReadOnly), TableStatus::kOk);
  EXPECT_EQ(MapOf(a_), (Lines{{0, 8, kReadWrite}, {8, 2, kReadOnly}}));
  // Only what the caller maps.
  EXPECT_EQ(MapOf(b_), (Lines{{0, 8, kReadWrite}, {8, 2, kReadOnly}, {10, 90, kReadWrite}}));
  EXPECT_EQ(MapOf(plain), (Lines{{0, 100, kReadWrite}}));
}

TEST_F(OptInTest, ProtectByWhoDidNotOptInIsItsOwnAffair) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}, kReadWrite, 0), TableStatus::kOk);
  ASSERT_EQ(Protect(b_, {0, 100}, Access::kNone), TableStatus::kOk);
  EXPECT_EQ(MapOf(a_), (Lines{{0, 100, kReadWrite}}));
  EXPECT_EQ(MapOf(b_), (Lines{{0, 100, Access::kNone}}));
}

TEST_F(OptInTest, OneGuestWithBothKindsOfWindow) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(MapAt(a_, 5 * kBase, {0, 100}, kReadWrite, 0), TableStatus::kOk);
  ASSERT_EQ(MapAt(a_, 7 * kBase, {50, 100}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {40, 20}, kReadOnly), TableStatus::kOk);
  EXPECT_EQ(MapOf(a_), (Lines{{0, 40, kReadWrite},
                              {40, 20, kReadOnly},
                              {60, 40, kReadWrite},
                              {0, 100, kReadWrite},  // not opt-in
                              {50, 10, kReadOnly},   // its second opt-in window
                              {60, 90, kReadWrite}}));
}

TEST_F(OptInTest, ASinglePageAndBackAgain) {
  ASSERT_EQ(Map(a_, {0, 1024}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {512, 1024}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {700, 1}, Access::kNone), TableStatus::kOk);
  EXPECT_EQ(MapOf(b_),
            (Lines{{512, 188, kReadWrite}, {700, 1, Access::kNone}, {701, 835, kReadWrite}}));
  ASSERT_EQ(Protect(b_, {700, 1}, kReadWrite), TableStatus::kOk);
  EXPECT_EQ(MapOf(a_), (Lines{{0, 1024, kReadWrite}}));
  EXPECT_EQ(MapOf(b_), (Lines{{512, 1024, kReadWrite}}));
}

TEST_F(OptInTest, WhoComesLaterFindsWhatWasSetForAll) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {20, 10}, kReadOnly), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {10, 200}, AccessSet::All()), TableStatus::kOk);
  const AccessSet all = AccessSet::All();
  EXPECT_EQ(MapOf(b_), (Lines{{10, 10, all}, {20, 10, kReadOnly}, {30, 180, all}}));
  // And in turn, also when the one who has set it is gone.
  ASSERT_EQ(Unmap(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(c_, {15, 20}, Access::kNone), TableStatus::kOk);
  EXPECT_EQ(MapOf(c_),
            (Lines{{15, 5, Access::kNone}, {20, 10, kReadOnly}, {30, 5, Access::kNone}}));
}

// A reader that comes first takes nothing from a writer.
TEST_F(OptInTest, UntilAProtectEachHasWhatItAskedFor) {
  ASSERT_EQ(Map(a_, {0, 100}, kReadOnly, kSharedPt | kNeverWrite), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}), TableStatus::kOk);
  EXPECT_EQ(MapOf(a_), (Lines{{0, 100, kReadOnly}}));
  EXPECT_EQ(MapOf(b_), (Lines{{0, 100, kReadWrite}}));
  ASSERT_EQ(Protect(b_, {10, 10}, Access::kNone), TableStatus::kOk);
  ASSERT_EQ(Protect(b_, {10, 10}, kReadWrite), TableStatus::kOk);
  // What is as before has left no piece behind, where it is as before.
  EXPECT_EQ(MapOf(b_), (Lines{{0, 100, kReadWrite}}));
  EXPECT_EQ(MapOf(a_), (Lines{{0, 10, kReadOnly}, {10, 10, kReadWrite}, {20, 80, kReadOnly}}));
}

TEST_F(OptInTest, PlainMappingsNeitherGiveNorTakeAccess) {
  ASSERT_EQ(Map(a_, {0, 100}, kReadOnly, 0), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}), TableStatus::kOk);
  EXPECT_EQ(MapOf(b_), (Lines{{0, 100, kReadWrite}}));
  ASSERT_EQ(Map(c_, {0, 100}, kReadOnly, 0), TableStatus::kOk);
  EXPECT_EQ(MapOf(c_), (Lines{{0, 100, kReadOnly}}));
}

TEST_F(OptInTest, TheProtectionGoesWithItsLastMapper) {
  ASSERT_EQ(tables_.PinMm(mm_), TableStatus::kOk);
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 60}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {0, 100}, kReadOnly), TableStatus::kOk);
  ASSERT_EQ(tables_.RemoveGuest(a_, &released_), TableStatus::kOk);
  // b still holds what it maps; the rest is forgotten.
  ASSERT_EQ(Map(c_, {0, 100}), TableStatus::kOk);
  EXPECT_EQ(MapOf(c_), (Lines{{0, 60, kReadOnly}, {60, 40, kReadWrite}}));
  ASSERT_EQ(tables_.RemoveGuest(b_, &released_), TableStatus::kOk);
  ASSERT_EQ(Unmap(c_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(c_, {0, 100}), TableStatus::kOk);
  EXPECT_EQ(MapOf(c_), (Lines{{0, 100, kReadWrite}}));
}

TEST_F(OptInTest, AChildHasTheAccessOfItsParent) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {10, 10}, kReadOnly), TableStatus::kOk);
  GuestId child;
  ASSERT_EQ(tables_.ForkGuest(a_, &child), TableStatus::kOk);
  EXPECT_EQ(Regions(child), Regions(a_));
  // And changes with it from now on.
  ASSERT_EQ(Protect(child, {0, 100}, kReadOnly), TableStatus::kOk);
  EXPECT_EQ(MapOf(a_), (Lines{{0, 100, kReadOnly}}));
}

TEST_F(OptInTest, GrowingTakesOverWhatOthersHaveThere) {
  ASSERT_EQ(Map(a_, {0, 1000}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {150, 10}, Access::kNone), TableStatus::kOk);
  const GuestAddr va(kBase);
  ASSERT_EQ(tables_.MoveRange(b_, va, PageCount(100), va, PageCount(200), &released_),
            TableStatus::kOk);
  EXPECT_EQ(MapOf(b_),
            (Lines{{0, 150, kReadWrite}, {150, 10, Access::kNone}, {160, 40, kReadWrite}}));
  // The last page of b's own is writable, what nobody maps stays as that.
  ASSERT_EQ(Unmap(a_, {0, 1000}), TableStatus::kOk);
  const GuestAddr tail(kBase + 160 * kPageSize);
  ASSERT_EQ(tables_.MoveRange(b_, tail, PageCount(40), tail, PageCount(50), &released_),
            TableStatus::kOk);
  EXPECT_EQ(MapOf(b_)[2], (Line{160, 50, kReadWrite}));
}

TEST_F(OptInTest, AMovedWindowThatGrowsTakesOverToo) {
  ASSERT_EQ(Map(a_, {0, 1000}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {150, 10}, kReadOnly), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(tables_.MoveRange(b_, GuestAddr(kBase), PageCount(100), GuestAddr(5 * kBase),
                              PageCount(155), &released_),
            TableStatus::kOk);
  EXPECT_EQ(MapOf(b_), (Lines{{0, 150, kReadWrite}, {150, 5, kReadOnly}}));
  // A second window of the same pages.
  ASSERT_EQ(tables_.MoveRange(b_, GuestAddr(5 * kBase), PageCount(0), GuestAddr(7 * kBase),
                              PageCount(160), &released_),
            TableStatus::kOk);
  EXPECT_EQ(MapOf(b_)[3], (Line{150, 10, kReadOnly}));
}

// What is unmapped to make room does not count: it is gone before the window arrives.
TEST_F(OptInTest, AMoveOverTheLastMapperForgetsItsProtection) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(MapAt(a_, 5 * kBase, {100, 100}), TableStatus::kOk);
  ASSERT_EQ(tables_.ProtectRange(a_, GuestAddr(5 * kBase), PageCount(100), kReadOnly),
            TableStatus::kOk);
  ASSERT_EQ(tables_.MoveRange(a_, GuestAddr(kBase), PageCount(100),
                              GuestAddr(5 * kBase + 50 * kPageSize), PageCount(200), &released_),
            TableStatus::kOk);
  // Pages 100-149 are still mapped by the rest of the old window, 150-199 by nobody else.
  EXPECT_EQ(MapOf(a_), (Lines{{100, 50, kReadOnly},
                              {0, 100, kReadWrite},
                              {100, 50, kReadOnly},
                              {150, 50, kReadWrite}}));
}

TEST_F(OptInTest, HintsAreForAllOtherFlagsForOne) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {50, 100}, kReadWrite, kSharedPt | kHintSmall), TableStatus::kOk);
  ASSERT_EQ(Map(c_, {0, 100}, kReadWrite, 0), TableStatus::kOk);
  ASSERT_EQ(
      tables_.FlagRange(a_, GuestAddr(kBase), PageCount(100), kHintHuge | kDontFork, kHintSmall),
      TableStatus::kOk);
  ASSERT_EQ(Regions(a_).size(), 1u);
  EXPECT_EQ(Regions(a_)[0].flags, kSharedPt | kHintHuge | kDontFork);
  ASSERT_EQ(Regions(b_).size(), 2u);
  EXPECT_EQ(Regions(b_)[0].flags, kSharedPt | kHintHuge);
  EXPECT_EQ(Regions(b_)[1].flags, kSharedPt | kHintSmall);
  EXPECT_EQ(Regions(b_)[1].file_page, FilePage(100));
  EXPECT_EQ(Regions(c_)[0].flags, 0u);
  // A hint of somebody who did not opt in is its own.
  ASSERT_EQ(tables_.FlagRange(c_, GuestAddr(kBase), PageCount(100), kHintSmall, 0),
            TableStatus::kOk);
  EXPECT_EQ(Regions(a_)[0].flags, kSharedPt | kHintHuge | kDontFork);
}

TEST_F(OptInTest, HowARegionWasMappedIsForLife) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}, kReadWrite, kDedicated | kPrivate), TableStatus::kOk);
  for (GuestId guest : {a_, b_}) {
    const std::vector<Region> before = Regions(guest);
    ASSERT_EQ(tables_.FlagRange(guest, GuestAddr(kBase), PageCount(50), kNeverWrite | kSharedPt,
                                kSharedPt | kPrivate),
              TableStatus::kOk);
    EXPECT_EQ(Regions(guest), before);
  }
}

TEST_F(OptInTest, WhoMayNeverWriteAgreesAndStillCannot) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}, kReadOnly, kSharedPt | kNeverWrite), TableStatus::kOk);
  EXPECT_EQ(Regions(b_)[0].access, kReadOnly);
  ASSERT_EQ(Protect(a_, {0, 100}, kReadWrite), TableStatus::kOk);
  EXPECT_EQ(Regions(b_)[0].access, kReadWrite);
  EXPECT_EQ(Regions(b_)[0].KernelAccess(), kReadOnly);
  std::vector<Writable> writable(2);
  tables_.ForEachMapper(mm_, BlockIndex(0), [&](GuestId guest, const Region&, Writable can) {
    writable[guest == b_] = can;
  });
  EXPECT_EQ(writable, (std::vector<Writable>{Writable::kYes, Writable::kNo}));
  // Its write faults are not to be answered with a page that it can write.
  const auto decide = [&](GuestId guest) {
    return Decide(tables_,
                  {.guest = guest,
                   .addr = GuestAddr(kBase),
                   .access = Access::kWrite,
                   .kind = FaultKind::kWriteProtect},
                  Climate());
  };
  EXPECT_EQ(decide(b_).cause, FaultCause::kForbidden);
  EXPECT_EQ(decide(a_).action, FaultAction::kWake);
}

TEST_F(OptInTest, SharersOfARange) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {100, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(c_, {0, 300}, kReadWrite, 0), TableStatus::kOk);
  const auto sharers = [&](Pages pages) {
    std::vector<GuestId> found;
    tables_.ForEachSharer(mm_, FilePage(pages.first), PageCount(pages.count),
                          [&](GuestId guest, const Region& region) {
                            EXPECT_TRUE(region.IsOptIn());
                            found.push_back(guest);
                          });
    std::sort(found.begin(), found.end());
    return found;
  };
  EXPECT_EQ(sharers({0, 100}), std::vector<GuestId>({a_}));
  EXPECT_EQ(sharers({99, 2}), std::vector<GuestId>({a_, b_}));
  EXPECT_EQ(sharers({100, 1}), std::vector<GuestId>({b_}));
  EXPECT_EQ(sharers({200, 100}), std::vector<GuestId>());
  tables_.ForEachSharer(MmId{3, 1}, FilePage(0), PageCount(1),
                        [](GuestId, const Region&) { ADD_FAILURE() << "no such mm"; });
}

TEST_F(OptInTest, AForeignFileAgreesOnProtectionAndSharesNoTable) {
  mm_ = segment_.AddMm(Blocks(8), FrameKind::kForeign);
  ASSERT_EQ(Map(a_, {0, 4096}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 4096}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {0, 4096}, kReadOnly), TableStatus::kOk);
  EXPECT_EQ(MapOf(b_), (Lines{{0, 4096, kReadOnly}}));
  EXPECT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(0)), TableStatus::kBadRange);
  EXPECT_EQ(Decide(tables_, {.guest = a_, .addr = GuestAddr(kBase)}, Climate()).action,
            FaultAction::kDeny);
  EXPECT_EQ(segment_.reader().IsShared(a_, GuestAddr(kBase)), TableReader::Sharing::kNotShared);
}

class FewRegionsTest : public OptInTest {
 protected:
  static constexpr uint32_t kRegions = 5;
  FewRegionsTest() : OptInTest(kRegions) {}

  std::vector<std::vector<Region>> Everything() { return {Regions(a_), Regions(b_), Regions(c_)}; }
};

TEST_F(FewRegionsTest, AProtectThatDoesNotFitReachesNobody) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Map(c_, {0, 100}), TableStatus::kOk);
  const auto before = Everything();
  // One split for each: three are needed, two are there.
  EXPECT_EQ(Protect(a_, {0, 50}, kReadOnly), TableStatus::kNoSpace);
  EXPECT_EQ(tables_.FlagRange(a_, GuestAddr(kBase), PageCount(50), kHintHuge, 0),
            TableStatus::kNoSpace);
  EXPECT_EQ(Everything(), before);
  // A flag that is its own needs one.
  EXPECT_EQ(tables_.FlagRange(a_, GuestAddr(kBase), PageCount(50), kDontFork, 0), TableStatus::kOk);
  EXPECT_EQ(Protect(a_, {0, 100}, kReadOnly), TableStatus::kOk);
}

TEST_F(FewRegionsTest, AMapThatDoesNotFitChangesNothing) {
  ASSERT_EQ(Map(a_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {40, 10}, kReadOnly), TableStatus::kOk);
  const auto before = Everything();
  EXPECT_EQ(Map(b_, {0, 100}), TableStatus::kNoSpace);
  EXPECT_EQ(Everything(), before);
  EXPECT_EQ(segment_.reader().Pools().attachments, 1u);
  EXPECT_EQ(Map(b_, {0, 50}), TableStatus::kOk);  // two runs fit
}

TEST_F(FewRegionsTest, AGrowthThatDoesNotFitChangesNothing) {
  ASSERT_EQ(Map(a_, {0, 300}), TableStatus::kOk);
  ASSERT_EQ(Map(b_, {0, 100}), TableStatus::kOk);
  ASSERT_EQ(Protect(a_, {150, 10}, kReadOnly), TableStatus::kOk);
  const auto before = Everything();
  const GuestAddr va(kBase);
  EXPECT_EQ(tables_.MoveRange(b_, va, PageCount(100), va, PageCount(200), &released_),
            TableStatus::kNoSpace);
  EXPECT_EQ(
      tables_.MoveRange(b_, va, PageCount(100), GuestAddr(5 * kBase), PageCount(200), &released_),
      TableStatus::kNoSpace);
  EXPECT_EQ(Everything(), before);
  EXPECT_EQ(tables_.MoveRange(b_, va, PageCount(100), va, PageCount(120), &released_),
            TableStatus::kOk);
}

}  // namespace
}  // namespace hostmm
