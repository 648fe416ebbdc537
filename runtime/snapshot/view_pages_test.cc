#include "runtime/snapshot/view_pages.h"

#include <gtest/gtest.h>

#include <vector>

namespace hostmm {
namespace {

constexpr GuestId kFirst{1, 1};
constexpr GuestId kSecond{2, 1};
constexpr MmId kSnapshot{3, 1};
constexpr MmId kOther{4, 1};

TEST(ViewPagesTest, NamesWhoHasOneOfThePages) {
  ViewPages pages;
  pages.Add(kFirst, kSnapshot, FilePage(512 + 500), PageCount(12));
  pages.Add(kSecond, kSnapshot, FilePage(512), PageCount(1));
  EXPECT_TRUE(pages.Has(kFirst, kSnapshot, FilePage(512 + 511)));
  EXPECT_FALSE(pages.Has(kFirst, kSnapshot, FilePage(512 + 499)));
  EXPECT_FALSE(pages.Has(kFirst, kOther, FilePage(512 + 511)));
  EXPECT_EQ(pages.Holders(kSnapshot, FilePage(512), PageCount(1)), std::vector{kSecond});
  EXPECT_EQ(pages.Holders(kSnapshot, FilePage(512), PageCount(512)).size(), 2u);
  EXPECT_TRUE(pages.Holders(kSnapshot, FilePage(0), PageCount(512)).empty());
}

TEST(ViewPagesTest, TakesAwayWhatItIsTold) {
  ViewPages pages;
  pages.Add(kFirst, kSnapshot, FilePage(0), PageCount(512));
  pages.Remove(kFirst, kSnapshot, FilePage(7), PageCount(2));
  EXPECT_TRUE(pages.Has(kFirst, kSnapshot, FilePage(6)));
  EXPECT_FALSE(pages.Has(kFirst, kSnapshot, FilePage(7)));
  EXPECT_FALSE(pages.Has(kFirst, kSnapshot, FilePage(8)));
  EXPECT_TRUE(pages.Has(kFirst, kSnapshot, FilePage(9)));
  pages.Remove(kSecond, kSnapshot, FilePage(0), PageCount(1));
  pages.Remove(kFirst, kOther, FilePage(0), PageCount(1));
  EXPECT_TRUE(pages.Has(kFirst, kSnapshot, FilePage(0)));
}

TEST(ViewPagesTest, ForgetsGuestsAndSnapshots) {
  ViewPages pages;
  for (const MmId mm : {kSnapshot, kOther}) {
    for (const GuestId guest : {kFirst, kSecond}) pages.Add(guest, mm, FilePage(1), PageCount(1));
  }
  pages.DropGuest(kFirst);
  EXPECT_EQ(pages.Holders(kSnapshot, FilePage(1), PageCount(1)), std::vector{kSecond});
  pages.DropSnapshot(kSnapshot);
  EXPECT_TRUE(pages.Holders(kSnapshot, FilePage(1), PageCount(1)).empty());
  EXPECT_EQ(pages.Holders(kOther, FilePage(1), PageCount(1)), std::vector{kSecond});
}

}  // namespace
}  // namespace hostmm
