#include "vmm/units.h"

#include <gtest/gtest.h>

#include <type_traits>

namespace hostmm {
namespace {

// Units do not turn into each other or into numbers by accident.
static_assert(!std::is_convertible_v<uint64_t, FilePage>);
static_assert(!std::is_convertible_v<FilePage, uint64_t>);
static_assert(!std::is_convertible_v<FilePage, PageCount>);
static_assert(!std::is_constructible_v<FilePage, GuestAddr>);

TEST(UnitsTest, BlocksAreTwoMebibytes) {
  EXPECT_EQ(kBlockSize, uint64_t{2} << 20);
  EXPECT_EQ(kPagesPerBlock, 512u);
}

TEST(UnitsTest, FloorAndCeil) {
  EXPECT_EQ(PagesFloor(4095), PageCount(0));
  EXPECT_EQ(PagesCeil(4095), PageCount(1));
  EXPECT_EQ(PagesCeil(4096), PageCount(1));
  EXPECT_EQ(PagesCeil(~uint64_t{0}), PageCount(uint64_t{1} << 52));
  EXPECT_EQ(PageFloor(GuestAddr(8191)), GuestAddr(4096));
  EXPECT_EQ(BlockFloor(FilePage(511)), BlockIndex(0));
  EXPECT_EQ(BlockCeil(FilePage(511)), BlockIndex(1));
  EXPECT_EQ(BlockCeil(FilePage(512)), BlockIndex(1));
  EXPECT_EQ(FirstPageOf(BlockIndex(3)), FilePage(1536));
  EXPECT_EQ(EndPageOf(BlockIndex(3)), FilePage(2048));
  EXPECT_EQ(IndexInBlock(FilePage(1537)), 1u);
}

TEST(UnitsTest, Arithmetic) {
  EXPECT_EQ(GuestAddr(4096) + PageCount(2), GuestAddr(12288));
  EXPECT_EQ(PagesBetween(GuestAddr(4096), GuestAddr(12288)), PageCount(2));
  EXPECT_EQ(FilePage(5) - FilePage(3), PageCount(2));
  EXPECT_LT(FilePage(3), FilePage(5));
}

TEST(UnitsTest, GuestRangesThatDoNotFit) {
  EXPECT_TRUE(FitsInGuest(GuestAddr(0), PageCount(1)));
  EXPECT_FALSE(FitsInGuest(GuestAddr(0), PageCount(0)));
  EXPECT_FALSE(FitsInGuest(GuestAddr(1), PageCount(1)));
  EXPECT_TRUE(FitsInGuest(GuestAddr(kMaxGuestAddr - kPageSize), PageCount(1)));
  EXPECT_FALSE(FitsInGuest(GuestAddr(kMaxGuestAddr - kPageSize), PageCount(2)));
  EXPECT_FALSE(FitsInGuest(GuestAddr(4096), PageCount(~uint64_t{0})));
  EXPECT_FALSE(FitsInGuest(GuestAddr(~uint64_t{0} << 12), PageCount(1)));
}

TEST(UnitsTest, FileRangesThatDoNotFit) {
  EXPECT_TRUE(FitsInFile(FilePage(kMaxFilePages - 1), PageCount(1)));
  EXPECT_FALSE(FitsInFile(FilePage(kMaxFilePages - 1), PageCount(2)));
  EXPECT_FALSE(FitsInFile(FilePage(0), PageCount(0)));
  EXPECT_FALSE(FitsInFile(FilePage(1), PageCount(~uint64_t{0})));
}

TEST(UnitsTest, IdsOfAnotherGenerationDiffer) {
  EXPECT_FALSE(GuestId{}.valid());
  EXPECT_TRUE((GuestId{1, 1}).valid());
  EXPECT_NE((GuestId{1, 1}), (GuestId{1, 2}));
}

}  // namespace
}  // namespace hostmm
