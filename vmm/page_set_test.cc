#include "vmm/page_set.h"

#include <gtest/gtest.h>

#include <bitset>
#include <random>
#include <vector>

namespace hostmm {
namespace {

using Ranges = std::vector<PageRange>;

constexpr PageRange Pages(uint64_t first, uint64_t end) { return {FilePage(first), FilePage(end)}; }
constexpr PageRange kAll = Pages(0, 1000);

TEST(PageSetTest, WhatTouchesBecomesOne) {
  PageSet set;
  set.Add(Pages(10, 20));
  set.Add(Pages(30, 40));
  EXPECT_EQ(set.In(kAll), Ranges({Pages(10, 20), Pages(30, 40)}));
  set.Add(Pages(20, 30));
  EXPECT_EQ(set.In(kAll), Ranges({Pages(10, 40)}));
}

TEST(PageSetTest, RemovingSplits) {
  PageSet set;
  set.Add(Pages(10, 40));
  set.Remove(Pages(20, 21));
  EXPECT_EQ(set.In(kAll), Ranges({Pages(10, 20), Pages(21, 40)}));
  set.Remove(Pages(0, 1000));
  EXPECT_TRUE(set.empty());
}

TEST(PageSetTest, EmptyRangesDoNothing) {
  PageSet set;
  set.Add(Pages(5, 5));
  set.Add(Pages(6, 2));
  EXPECT_TRUE(set.empty());
  set.Add(Pages(1, 9));
  set.Remove(Pages(5, 5));
  set.Remove(Pages(6, 2));
  EXPECT_EQ(set.In(kAll), Ranges({Pages(1, 9)}));
  EXPECT_EQ(set.In(Pages(6, 2)), Ranges());
  EXPECT_EQ(set.MissingIn(Pages(6, 2)), Ranges());
}

TEST(PageSetTest, PartsOfARange) {
  PageSet set;
  set.Add(Pages(10, 20));
  set.Add(Pages(30, 40));
  EXPECT_EQ(set.In(Pages(15, 35)), Ranges({Pages(15, 20), Pages(30, 35)}));
  EXPECT_EQ(set.In(Pages(20, 30)), Ranges());
  EXPECT_EQ(set.MissingIn(Pages(0, 35)), Ranges({Pages(0, 10), Pages(20, 30)}));
  EXPECT_EQ(set.MissingIn(Pages(10, 20)), Ranges());
}

TEST(PageSetTest, RandomOperationsAgainstBits) {
  constexpr uint64_t kPages = 100;  // arbitrary, small: ranges meet all the time
  std::mt19937_64 random(1);
  PageSet set;
  std::bitset<kPages> bits;
  for (int i = 0; i < 5000; ++i) {
    const PageRange range = Pages(random() % kPages, random() % (kPages + 1));
    const bool add = random() % 2 == 0;
    add ? set.Add(range) : set.Remove(range);
    for (uint64_t page = range.first.value(); page < range.end.value(); ++page) bits[page] = add;
    const PageRange look = Pages(random() % kPages, random() % (kPages + 1));
    std::bitset<kPages> in, missing;
    const auto fill = [](const Ranges& ranges, std::bitset<kPages>* out) {
      for (size_t k = 0; k < ranges.size(); ++k) {
        EXPECT_FALSE(ranges[k].empty());
        EXPECT_TRUE(k == 0 || ranges[k - 1].end < ranges[k].first);  // in order, never touching
        for (uint64_t page = ranges[k].first.value(); page < ranges[k].end.value(); ++page) {
          out->set(page);
        }
      }
    };
    fill(set.In(look), &in);
    fill(set.MissingIn(look), &missing);
    for (uint64_t page = 0; page < kPages; ++page) {
      const bool looked = page >= look.first.value() && page < look.end.value();
      ASSERT_EQ(in[page], looked && bits[page]) << "operation " << i << " page " << page;
      ASSERT_EQ(missing[page], looked && !bits[page]) << "operation " << i << " page " << page;
    }
    ASSERT_EQ(set.empty(), bits.none());
  }
}

}  // namespace
}  // namespace hostmm
