#include "runtime/guest/region_table.h"

#include <algorithm>
#include <map>
#include <random>

#include "gtest/gtest.h"

namespace hostmm::guest {
namespace {

constexpr uint64_t kPage = 4096;

Region Make(uint64_t first_page, uint64_t pages, uint64_t offset_pages = 0) {
  return {first_page * kPage,
          pages * kPage,
          offset_pages * kPage,
          {1, 1},
          RegionKind::kOwnFrames,
          false,
          0};
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
