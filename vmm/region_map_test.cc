#include "vmm/region_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "vmm/record_pool.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

class RegionMapTest : public testing::Test {
 protected:
  RecordIndex Insert(uint64_t va, uint64_t pages) {
    const RecordIndex index = RegionPool(segment()).Take();
    segment().region(index)->va.Store(va);
    segment().region(index)->pages.Store(pages);
    map_.Insert(index);
    return index;
  }
  uint64_t StartOf(RecordIndex index) {
    return index == kNullRecord ? ~uint64_t{0} : segment().region(index)->va.Load();
  }
  uint64_t FirstEndingAfter(uint64_t addr) {
    return StartOf(FirstRegionEndingAfter(segment(), *record_, GuestAddr(addr)));
  }
  const Segment& segment() { return segment_.tables.segment(); }

  TestSegment segment_;
  GuestId guest_ = segment_.AddGuest();
  GuestRecord* record_ = segment().Find(guest_);
  RegionMap map_{segment_.tables.segment(), record_};
};

constexpr uint64_t kNone = ~uint64_t{0};

TEST_F(RegionMapTest, EmptyMapFindsNothing) {
  EXPECT_EQ(FirstEndingAfter(0), kNone);
  EXPECT_EQ(FindRegionRecord(segment(), *record_, GuestAddr(0)), kNullRecord);
}

TEST_F(RegionMapTest, EdgesOfARegion) {
  Insert(0x10000, 2);
  EXPECT_EQ(FirstEndingAfter(0), 0x10000u);
  EXPECT_EQ(FirstEndingAfter(0x11fff), 0x10000u);
  EXPECT_EQ(FirstEndingAfter(0x12000), kNone);
  EXPECT_EQ(FindRegionRecord(segment(), *record_, GuestAddr(0xffff)), kNullRecord);
  EXPECT_NE(FindRegionRecord(segment(), *record_, GuestAddr(0x10000)), kNullRecord);
  EXPECT_EQ(FindRegionRecord(segment(), *record_, GuestAddr(0x12000)), kNullRecord);
}

TEST_F(RegionMapTest, AgreesWithAMapUnderRandomInsertAndRemove) {
  std::map<uint64_t, RecordIndex> model;
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    const uint64_t va = (random() % 4000) * 0x4000;
    if (const auto it = model.find(va); it != model.end()) {
      map_.Remove(it->second);
      RegionPool(segment()).GiveBack(it->second);
      model.erase(it);
    } else {
      model[va] = Insert(va, 1 + random() % 4);
    }
    const uint64_t probe = random() % (4000 * 0x4000);
    auto it = model.upper_bound(probe);
    if (it != model.begin()) {
      const auto before = std::prev(it);
      const uint64_t pages = segment().region(before->second)->pages.Load();
      if (before->first + pages * kPageSize > probe) it = before;
    }
    ASSERT_EQ(FirstEndingAfter(probe), it == model.end() ? kNone : it->first);
    ASSERT_EQ(record_->regions.LoadHigh(), model.size());
  }
}

// Addresses in order are what programs map; a plain tree would be a list.
TEST_F(RegionMapTest, SortedInsertionStaysShallow) {
  constexpr uint64_t kCount = 50000;
  for (uint64_t i = 0; i < kCount; ++i) Insert((i + 1) * 0x2000, 1);
  uint64_t seen = 0;
  uint64_t last = 0;
  ForEachRegion(segment(), guest_, [&](const Region& region) {
    EXPECT_GT(region.va.value(), last);
    last = region.va.value();
    ++seen;
  });
  EXPECT_EQ(seen, kCount);
}

// A reader may look while the tree is garbage.
TEST_F(RegionMapTest, ACycleEndsTheSearch) {
  const RecordIndex a = Insert(0x10000, 1);
  const RecordIndex b = Insert(0x20000, 1);
  segment().region(a)->tree.StoreHalves(b, b);
  segment().region(b)->tree.StoreHalves(a, a);
  FirstEndingAfter(0);
  FirstEndingAfter(~uint64_t{0} - 1);
  int visited = 0;
  ForEachRegion(segment(), guest_, [&](const Region&) { ++visited; });
  EXPECT_LE(visited, 2);
}

TEST_F(RegionMapTest, AttributesKeepTheirParts) {
  const RegionAttributes attributes{Access::kRead, AccessSet::ReadWrite(), kTracked | kDontFork};
  EXPECT_EQ(RegionAttributes::Unpack(attributes.Pack()), attributes);
}

}  // namespace
}  // namespace hostmm
