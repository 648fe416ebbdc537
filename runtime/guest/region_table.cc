#include "runtime/guest/region_table.h"

namespace hostmm::guest {
namespace {

// A private mapping of the file can only be read, and a view is no mapping of live memory.
bool MayWriteFile(const Region& region, protocol::MmHandle mm) {
  return IsSame(region.mm, mm) && region.kind != RegionKind::kAdopted && !IsView(region);
}

}  // namespace

RegionTable::Change::Change(RegionTable* table) : table_(table) {
  __atomic_store_n(&table_->sequence_, table_->sequence_ + 1, __ATOMIC_RELAXED);
  __atomic_thread_fence(__ATOMIC_RELEASE);  // odd is seen before anything that changes
}

RegionTable::Change::~Change() {
  table_->UpdateBounds();
  __atomic_store_n(&table_->sequence_, table_->sequence_ + 1, __ATOMIC_RELEASE);
}

bool RegionTable::OverlapsAny(uint64_t va, uint64_t end) const {
  const uint64_t before = __atomic_load_n(&sequence_, __ATOMIC_ACQUIRE);
  if (before % 2 != 0) return true;
  const size_t size = __atomic_load_n(&size_, __ATOMIC_RELAXED);
  for (size_t i = 0; i < size && i < kCapacity; ++i) {
    const uint64_t start = __atomic_load_n(&regions_[i].va, __ATOMIC_RELAXED);
    const uint64_t bytes = __atomic_load_n(&regions_[i].bytes, __ATOMIC_RELAXED);
    if (start < end && start + bytes > va) return true;
  }
  __atomic_thread_fence(__ATOMIC_ACQUIRE);
  return __atomic_load_n(&sequence_, __ATOMIC_RELAXED) != before;
}

const Region* RegionTable::Find(uint64_t va) const {
  for (size_t i = 0; i < size_; ++i) {
    if (va >= regions_[i].va && va < regions_[i].va + regions_[i].bytes) return &regions_[i];
  }
  return nullptr;
}

const Region* RegionTable::FindNext(uint64_t va) const {
  const Region* next = nullptr;
  for (size_t i = 0; i < size_; ++i) {
    const Region& region = regions_[i];
    if (region.va + region.bytes <= va) continue;
    if (next == nullptr || region.va < next->va) next = &region;
  }
  return next;
}

void RegionTable::Add(const Region& region) {
  const Change change(this);
  regions_[size_++] = region;
}

bool RegionTable::Remove(uint64_t va, uint64_t bytes) {
  const uint64_t end = va + bytes;
  bool any = false;
  const Change change(this);
  for (size_t i = 0; i < size_;) {
    Region& region = regions_[i];
    const uint64_t region_end = region.va + region.bytes;
    if (region.va >= end || region_end <= va) {
      ++i;
      continue;
    }
    any = true;
    const bool keeps_head = region.va < va;
    const bool keeps_tail = region_end > end;
    Region tail = region;
    tail.offset += end - region.va;
    tail.va = end;
    tail.bytes = region_end - end;
    if (keeps_head) {
      region.bytes = va - region.va;
      // A full table forgets the tail: it stays mapped and is merely no longer ours to look after.
      if (keeps_tail && size_ < kCapacity) regions_[size_++] = tail;
      ++i;
    } else if (keeps_tail) {
      region = tail;
      ++i;
    } else {
      region = regions_[--size_];
    }
  }
  return any;
}

template <class Wants, class Apply>
void RegionTable::ChangeParts(uint64_t va, uint64_t end, Wants wants, Apply change) {
  const size_t before = size_;
  const Change bracket(this);
  for (size_t i = 0; i < before; ++i) {
    Region& region = regions_[i];
    const uint64_t region_end = region.va + region.bytes;
    if (region.va >= end || region_end <= va || !wants(region)) continue;
    const uint64_t cut_start = region.va > va ? region.va : va;
    const uint64_t cut_end = region_end < end ? region_end : end;
    const size_t pieces = (cut_start != region.va ? 1 : 0) + (cut_end != region_end ? 1 : 0);
    if (size_ + pieces > kCapacity) continue;
    const Region whole = region;
    if (cut_end < region_end) {
      Region tail = whole;
      tail.va = cut_end;
      tail.bytes = region_end - cut_end;
      tail.offset = whole.offset + (cut_end - whole.va);
      regions_[size_++] = tail;
    }
    if (cut_start > whole.va) {
      Region head = whole;
      head.bytes = cut_start - whole.va;
      regions_[size_++] = head;
    }
    region.va = cut_start;
    region.bytes = cut_end - cut_start;
    region.offset = whole.offset + (cut_start - whole.va);
    change(&region);
  }
}

void RegionTable::SetDontFork(uint64_t va, uint64_t bytes, bool dont_fork) {
  ChangeParts(
      va, va + bytes, [&](const Region& region) { return region.dont_fork != dont_fork; },
      [&](Region* region) { region->dont_fork = dont_fork; });
}

void RegionTable::SetProt(uint64_t va, uint64_t bytes, int prot) {
  ChangeParts(
      va, va + bytes,
      [&](const Region& region) { return IsCowOrView(region) && region.prot != prot; },
      [&](Region* region) { region->prot = static_cast<uint8_t>(prot); });
}

bool RegionTable::MayWrite(protocol::MmHandle mm) const {
  for (size_t i = 0; i < size_; ++i) {
    if (MayWriteFile(regions_[i], mm)) return true;
  }
  return false;
}

void RegionTable::SetFrozen(protocol::MmHandle mm, bool frozen) {
  const Change change(this);
  for (size_t i = 0; i < size_; ++i) {
    if (MayWriteFile(regions_[i], mm)) regions_[i].frozen = frozen;
  }
}

void RegionTable::SetLost(uint64_t va, uint64_t bytes) {
  const Change change(this);
  for (size_t i = 0; i < size_; ++i) {
    Region& region = regions_[i];
    const bool within = region.va >= va && region.va + region.bytes <= va + bytes;
    if (within && IsView(region)) region.lost = true;
  }
}

void RegionTable::Replace(size_t i, const Region& region) {
  const Change change(this);
  regions_[i] = region;
}

void RegionTable::MakePlain() {
  const Change change(this);
  for (size_t i = 0; i < size_; ++i) {
    if (!IsCowOrView(regions_[i])) regions_[i].share = 0;
    regions_[i].frozen = false;
  }
}

void RegionTable::DropDontFork() {
  const Change change(this);
  for (size_t i = 0; i < size_;) {
    if (regions_[i].dont_fork) {
      regions_[i] = regions_[--size_];
    } else {
      ++i;
    }
  }
}

void RegionTable::UpdateBounds() {
  uint64_t low = ~uint64_t{0};
  uint64_t high = 0;
  bool opt_in = false;
  bool tracked = false;
  bool views = false;
  for (size_t i = 0; i < size_; ++i) {
    if (regions_[i].va < low) low = regions_[i].va;
    opt_in = opt_in || (regions_[i].share & kRegionSharedPt) != 0;
    tracked = tracked || regions_[i].frozen || IsCowOrView(regions_[i]);
    views = views || (IsView(regions_[i]) && !regions_[i].lost);
    if (regions_[i].va + regions_[i].bytes > high) high = regions_[i].va + regions_[i].bytes;
  }
  __atomic_store_n(&low_, low, __ATOMIC_RELAXED);
  __atomic_store_n(&high_, high, __ATOMIC_RELAXED);
  __atomic_store_n(&opt_in_, opt_in, __ATOMIC_RELAXED);
  __atomic_store_n(&tracked_, tracked, __ATOMIC_RELAXED);
  __atomic_store_n(&views_, views, __ATOMIC_RELAXED);
}

}  // namespace hostmm::guest
