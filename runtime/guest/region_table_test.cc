#include "runtime/guest/region_table.h"

#include <algorithm>
#include <map>
#include <random>

#include "gtest/gtest.h"

namespace hostmm::guest {
namespace {

constexpr uint64_t kPage = 4096;

Region Make(uint64_t first_page, uint64_t pages, uint64_t offset_pages = 0) {
  return {first_page * kPage, pages * kPage, offset_pages * kPage, {1, 1}};
}

TEST(RegionTable, AnEmptyTableOverlapsNothing) {
  static RegionTable table;  // zeroed, as in the library
  EXPECT_FALSE(table.Overlaps(0, ~uint64_t{0}));
  EXPECT_EQ(table.Find(0), nullptr);
}

TEST(RegionTable, RemoveInTheMiddleSplitsAndKeepsOffsets) {
  static RegionTable table;
  table.Add(Make(100, 10, 7));
  EXPECT_TRUE(table.Remove(103 * kPage, 2 * kPage));
  ASSERT_EQ(table.size(), 2u);
  const Region* head = table.Find(102 * kPage);
  const Region* tail = table.Find(105 * kPage);
  ASSERT_NE(head, nullptr);
  ASSERT_NE(tail, nullptr);
  EXPECT_EQ(table.Find(103 * kPage), nullptr);
  EXPECT_EQ(table.Find(104 * kPage), nullptr);
  EXPECT_EQ(head->bytes, 3 * kPage);
  EXPECT_EQ(tail->offset, (7 + 5) * kPage);
  EXPECT_EQ(tail->bytes, 5 * kPage);
}

TEST(RegionTable, DontForkSplitsAndIsDroppedInTheChild) {
  static RegionTable table;
  table.Add(Make(0, 10));
  table.SetDontFork(2 * kPage, 3 * kPage, true);
  EXPECT_EQ(table.size(), 3u);
  EXPECT_TRUE(table.Find(3 * kPage)->dont_fork);
  EXPECT_FALSE(table.Find(5 * kPage)->dont_fork);
  table.DropDontFork();
  EXPECT_EQ(table.Find(3 * kPage), nullptr);
  EXPECT_EQ(table.Find(7 * kPage)->offset, 5 * kPage);
}

// Random adds, removes and dont_fork marks against one map entry per page.
TEST(RegionTable, AgreesWithAPlainMap) {
  struct Page {
    uint64_t offset;
    bool dont_fork;
  };
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    static RegionTable table;
    table.Remove(0, 1000 * kPage);
    std::map<uint64_t, Page> model;
    for (int step = 0; step < 300; ++step) {
      const uint64_t first = random() % 200;
      const uint64_t pages = 1 + random() % 20;
      const uint32_t what = random() % 4;
      if (what == 0) {
        const auto hit = model.lower_bound(first);
        if (!table.HasRoom() || (hit != model.end() && hit->first < first + pages)) continue;
        const uint64_t offset = random() % 50;
        table.Add(Make(first, pages, offset));
        for (uint64_t i = 0; i < pages; ++i) model[first + i] = {offset + i, false};
      } else if (what == 1) {
        table.Remove(first * kPage, pages * kPage);
        model.erase(model.lower_bound(first), model.lower_bound(first + pages));
      } else {
        const bool dont_fork = what == 2;
        table.SetDontFork(first * kPage, pages * kPage, dont_fork);
        for (auto it = model.lower_bound(first); it != model.lower_bound(first + pages); ++it) {
          it->second.dont_fork = dont_fork;
        }
      }
      for (uint64_t page = 0; page < 230; ++page) {
        const Region* region = table.Find(page * kPage);
        const auto expected = model.find(page);
        // Exact when nobody changes the table: also between regions.
        ASSERT_EQ(table.Overlaps(page * kPage, kPage), expected != model.end()) << "seed " << seed;
        ASSERT_EQ(region != nullptr, expected != model.end())
            << "seed " << seed << " step " << step << " page " << page;
        if (region == nullptr) continue;
        ASSERT_EQ(region->offset + (page * kPage - region->va), expected->second.offset * kPage)
            << "seed " << seed;
        ASSERT_EQ(region->dont_fork, expected->second.dont_fork)
            << "seed " << seed << " step " << step;
      }
    }
  }
}

TEST(RegionTable, FindNextIsTheLowestThatEndsBehind) {
  static RegionTable table;
  table.Add(Make(20, 5));
  table.Add(Make(10, 5));
  EXPECT_EQ(table.FindNext(0)->va, 10 * kPage);
  EXPECT_EQ(table.FindNext(14 * kPage)->va, 10 * kPage);
  EXPECT_EQ(table.FindNext(15 * kPage)->va, 20 * kPage);
  EXPECT_EQ(table.FindNext(25 * kPage), nullptr);
}

TEST(RegionTable, PartsKeepHowTheyAreShared) {
  static RegionTable table;
  Region region = Make(0, 10);
  region.share = 48;
  table.Add(region);
  table.Remove(4 * kPage, kPage);
  EXPECT_EQ(table.Find(0)->share, 48u);
  EXPECT_EQ(table.Find(9 * kPage)->share, 48u);
}

Region MakeShared(uint64_t first_page, uint64_t pages, uint64_t share, protocol::MmHandle mm) {
  Region region = Make(first_page, pages);
  region.share = static_cast<uint32_t>(share);
  region.mm = mm;
  return region;
}

TEST(RegionTable, FrozenIsWhatCanBeWrittenOfTheFile) {
  static RegionTable table;
  EXPECT_FALSE(table.HasTracked());
  table.Add(MakeShared(0, 4, 0, {1, 1}));
  table.Add(MakeShared(10, 4, kRegionSharedPt, {1, 1}));
  table.Add(MakeShared(20, 4, 0, {2, 1}));
  table.Add(MakeShared(30, 4, kRegionView, {1, 1}));
  Region reader = MakeShared(40, 4, kRegionPrivate, {1, 1});
  reader.kind = RegionKind::kAdopted;
  table.Add(reader);
  table.SetFrozen({1, 1}, true);
  EXPECT_TRUE(table.HasTracked());
  EXPECT_TRUE(table.Find(0)->frozen);
  EXPECT_TRUE(table.Find(10 * kPage)->frozen);
  EXPECT_FALSE(table.Find(20 * kPage)->frozen);
  EXPECT_FALSE(table.Find(30 * kPage)->frozen);
  EXPECT_FALSE(table.Find(40 * kPage)->frozen);
  // A part keeps it.
  table.Remove(kPage, kPage);
  EXPECT_TRUE(table.Find(3 * kPage)->frozen);
  table.SetFrozen({1, 1}, false);
  EXPECT_FALSE(table.Find(3 * kPage)->frozen);
  EXPECT_FALSE(table.Find(10 * kPage)->frozen);
}

TEST(RegionTable, ViewsAndCopyOnWriteMemoryAreTold) {
  const Region cow = MakeShared(0, 4, kRegionCow, {1, 1});
  const Region view = MakeShared(0, 4, kRegionView, {1, 1});
  const Region of_child = MakeShared(0, 4, kRegionCow | kRegionView | kRegionViewWritable, {1, 1});
  const Region gone = MakeShared(0, 4, kRegionCow | kRegionPrivate, {1, 1});
  const Region plain = MakeShared(0, 4, kRegionPrivate, {1, 1});
  EXPECT_TRUE(IsCow(cow) && !IsView(cow) && !IsCowView(cow) && !IsGonePrivate(cow));
  EXPECT_TRUE(!IsCow(view) && IsView(view) && !IsCowView(view) && !IsGonePrivate(view));
  EXPECT_TRUE(!IsCow(of_child) && IsView(of_child) && IsCowView(of_child));
  EXPECT_TRUE(!IsCow(gone) && !IsView(gone) && !IsCowView(gone) && IsGonePrivate(gone));
  EXPECT_TRUE(!IsCowOrView(plain) && !IsGonePrivate(plain));
}

TEST(RegionTable, ProtectionsOfPartsAreKeptWhereTheyCount) {
  static RegionTable table;
  Region cow = MakeShared(0, 10, kRegionCow, {1, 1});
  cow.prot = 3;
  table.Add(cow);
  table.Add(MakeShared(10, 10, kRegionSharedPt, {2, 1}));
  table.SetProt(4 * kPage, 10 * kPage, 1);
  EXPECT_EQ(table.size(), 3u);
  EXPECT_EQ(table.Find(3 * kPage)->prot, 3);
  EXPECT_EQ(table.Find(4 * kPage)->prot, 1);
  EXPECT_EQ(table.Find(9 * kPage)->offset, 4 * kPage);
  EXPECT_EQ(table.Find(10 * kPage)->bytes, 10 * kPage);
}

TEST(RegionTable, LostViewsAreNoViewsToLookAfter) {
  static RegionTable table;
  table.Add(MakeShared(0, 10, kRegionView, {1, 1}));
  table.Add(MakeShared(20, 10, 0, {2, 1}));
  EXPECT_TRUE(table.HasViews());
  // A part of one is lost with the rest of it.
  table.SetLost(0, 5 * kPage);
  EXPECT_TRUE(table.HasViews());
  table.SetLost(0, 40 * kPage);
  EXPECT_FALSE(table.HasViews());
  EXPECT_TRUE(table.HasTracked());
  EXPECT_FALSE(table.Find(20 * kPage)->lost);
}

// Without a pager private memory is still private.
TEST(RegionTable, PlainIsEverythingButMemoryThatIsAProgramsOwn) {
  static RegionTable table;
  table.Add(MakeShared(0, 4, kRegionSharedPt | kRegionPrivate, {1, 1}));
  table.Add(MakeShared(10, 4, kRegionCow, {2, 1}));
  table.Add(MakeShared(20, 4, kRegionCow | kRegionPrivate, {3, 1}));
  table.SetFrozen({1, 1}, true);
  table.SetFrozen({2, 1}, true);
  table.MakePlain();
  EXPECT_FALSE(table.HasOptIn());
  EXPECT_EQ(table.Find(0)->share, 0u);
  EXPECT_FALSE(table.Find(0)->frozen);
  EXPECT_TRUE(IsCow(*table.Find(10 * kPage)));
  EXPECT_FALSE(table.Find(10 * kPage)->frozen);
  EXPECT_TRUE(IsGonePrivate(*table.Find(20 * kPage)));
}

TEST(RegionTable, HasRoomKeepsPlaceForASplit) {
  static RegionTable table;
  uint64_t page = 0;
  while (table.HasRoom()) {
    table.Add(Make(page, 3));
    page += 4;
  }
  EXPECT_LT(table.size(), RegionTable::kCapacity);
  const size_t before = table.size();
  EXPECT_TRUE(table.Remove(kPage, kPage));
  EXPECT_EQ(table.size(), before + 1);
}

}  // namespace
}  // namespace hostmm::guest
