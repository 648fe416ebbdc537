#include "vmm/region_map.h"

#include <cassert>

namespace hostmm {
namespace {

// A treap of 65,536 records is about 40 deep; ten times that is never reached by chance, and ends
// the search of a reader in a damaged or half-written tree.
constexpr int kMaxDepth = 512;

// splitmix64's finalizer: neighbours in index are strangers in priority.
uint64_t PriorityOf(RecordIndex index) {
  uint64_t x = index + 0x9e37'79b9'7f4a'7c15;
  x = (x ^ (x >> 30)) * 0xbf58'476d'1ce4'e5b9;
  x = (x ^ (x >> 27)) * 0x94d0'49bb'1331'11eb;
  return x ^ (x >> 31);
}

uint64_t EndOf(const RegionRecord& record) {
  return record.va.Load() + BytesOf(PageCount(record.pages.Load()));
}

}  // namespace

RegionAttributes RegionAttributes::Unpack(uint64_t word) {
  return {AccessSet::FromBits(static_cast<uint8_t>(word)),
          AccessSet::FromBits(static_cast<uint8_t>(word >> 8)), static_cast<uint32_t>(word >> 32)};
}

uint64_t RegionAttributes::Pack() const {
  return access.bits() | uint64_t{mapped_access.bits()} << 8 | uint64_t{flags} << 32;
}

Region LoadRegion(const RegionRecord& record) {
  const RegionAttributes attributes = RegionAttributes::Unpack(record.attributes.Load());
  const uint64_t mm = record.mm.Load();
  return {.va = GuestAddr(record.va.Load()),
          .length = PageCount(record.pages.Load()),
          .mm = MmId{static_cast<uint32_t>(mm), static_cast<uint32_t>(mm >> 32)},
          .file_page = FilePage(record.file_page.Load()),
          .access = attributes.access,
          .flags = attributes.flags};
}

RecordIndex FirstRegionEndingAfter(const SegmentView& view, const GuestRecord& guest,
                                   GuestAddr addr) {
  RecordIndex best = kNullRecord;
  RecordIndex index = guest.regions.LoadLow();
  for (int depth = 0; depth < kMaxDepth; ++depth) {
    const RegionRecord* record = view.region(index);
    if (record == nullptr) break;
    if (EndOf(*record) > addr.value()) {
      best = index;
      index = record->tree.LoadLow();
    } else {
      index = record->tree.LoadHigh();
    }
  }
  return best;
}

RecordIndex FindRegionRecord(const SegmentView& view, const GuestRecord& guest, GuestAddr addr) {
  const RecordIndex index = FirstRegionEndingAfter(view, guest, addr);
  const RegionRecord* record = view.region(index);
  return record != nullptr && record->va.Load() <= addr.value() ? index : kNullRecord;
}

void RegionMap::Split(RecordIndex root, uint64_t va, RecordIndex* before, RecordIndex* after) {
  RegionRecord* record = segment_.region(root);
  if (record == nullptr) {
    *before = *after = kNullRecord;
    return;
  }
  RecordIndex inner;
  if (record->va.Load() < va) {
    Split(record->tree.LoadHigh(), va, &inner, after);
    record->tree.StoreHigh(inner);
    *before = root;
  } else {
    Split(record->tree.LoadLow(), va, before, &inner);
    record->tree.StoreLow(inner);
    *after = root;
  }
}

RecordIndex RegionMap::Join(RecordIndex before, RecordIndex after) {
  if (before == kNullRecord) return after;
  if (after == kNullRecord) return before;
  if (PriorityOf(before) > PriorityOf(after)) {
    RegionRecord* record = segment_.region(before);
    record->tree.StoreHigh(Join(record->tree.LoadHigh(), after));
    return before;
  }
  RegionRecord* record = segment_.region(after);
  record->tree.StoreLow(Join(before, record->tree.LoadLow()));
  return after;
}

void RegionMap::Insert(RecordIndex region) {
  RegionRecord* record = segment_.region(region);
  assert(record != nullptr);
  const uint64_t va = record->va.Load();
  const uint64_t priority = PriorityOf(region);
  SharedWord* word = &guest_->regions;
  enum class Half { kLow, kHigh } half = Half::kLow;
  const auto load = [&] { return half == Half::kLow ? word->LoadLow() : word->LoadHigh(); };
  while (load() != kNullRecord && PriorityOf(load()) > priority) {
    RegionRecord* above = segment_.region(load());
    half = va < above->va.Load() ? Half::kLow : Half::kHigh;
    word = &above->tree;
  }
  RecordIndex before;
  RecordIndex after;
  Split(load(), va, &before, &after);
  record->tree.StoreHalves(before, after);
  half == Half::kLow ? word->StoreLow(region) : word->StoreHigh(region);
  guest_->regions.StoreHigh(guest_->regions.LoadHigh() + 1);
}

void RegionMap::Remove(RecordIndex region) {
  RegionRecord* record = segment_.region(region);
  assert(record != nullptr);
  const RecordIndex rest = Join(record->tree.LoadLow(), record->tree.LoadHigh());
  if (guest_->regions.LoadLow() == region) {
    guest_->regions.StoreLow(rest);
  } else {
    RecordIndex index = guest_->regions.LoadLow();
    for (;;) {
      RegionRecord* above = segment_.region(index);
      assert(above != nullptr);
      if (above->tree.LoadLow() == region) {
        above->tree.StoreLow(rest);
        break;
      }
      if (above->tree.LoadHigh() == region) {
        above->tree.StoreHigh(rest);
        break;
      }
      index = record->va.Load() < above->va.Load() ? above->tree.LoadLow() : above->tree.LoadHigh();
    }
  }
  guest_->regions.StoreHigh(guest_->regions.LoadHigh() - 1);
}

}  // namespace hostmm
