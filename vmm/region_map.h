// The regions of one guest, ordered by address: a treap of region records in the segment.
//
// Memory:  records come from the segment's region pool. The priority of a record is a hash of its
//          index, so that it needs no word and the shape does not depend on the caller's addresses.
// Units:   GuestAddr in bytes.
// Threads: the free functions read and may run anywhere on any bytes (depth and count are bounded);
//          RegionMap is the writer's.
// Errors:  none: a search that finds nothing returns kNullRecord.

#ifndef HOSTMM_VMM_REGION_MAP_H_
#define HOSTMM_VMM_REGION_MAP_H_

#include <cstdint>

#include "vmm/region.h"
#include "vmm/segment.h"

namespace hostmm {

// What the record says, also where that makes no sense.
Region LoadRegion(const RegionRecord& record);

// The guest's first region that ends after `addr`: the one that contains it, or the next one.
RecordIndex FirstRegionEndingAfter(const SegmentView& view, const GuestRecord& guest,
                                   GuestAddr addr);
// The guest's region that contains `addr`.
RecordIndex FindRegionRecord(const SegmentView& view, const GuestRecord& guest, GuestAddr addr);

// The access of a region and the access that it was mapped with, in RegionRecord::attributes.
struct RegionAttributes {
  AccessSet access;
  AccessSet mapped_access;
  uint32_t flags = 0;

  // Of one region made of two: settled only if both were. What has been set back to what is mapped
  // beside it is as if it had never been set, so that changes of single pages leave no pieces.
  RegionAttributes MergedWith(const RegionAttributes& other) const {
    return {access, mapped_access, flags & (other.flags | ~uint32_t{kSettled})};
  }
  // Whether neighbours with these are one region.
  bool ContinuesAs(const RegionAttributes& next) const {
    return access == next.access && mapped_access == next.mapped_access &&
           ((flags ^ next.flags) & ~uint32_t{kSettled}) == 0;
  }

  static RegionAttributes Unpack(uint64_t word);
  uint64_t Pack() const;
  friend bool operator==(const RegionAttributes&, const RegionAttributes&) = default;
};

// Insertion and removal; the caller has checked for overlap and owns the records.
class RegionMap {
 public:
  RegionMap(const Segment& segment, GuestRecord* guest) : segment_(segment), guest_(guest) {}

  void Insert(RecordIndex region);
  // REQUIRES: `region` is in this map.
  void Remove(RecordIndex region);

 private:
  // Splits the subtree at `va` into what starts before it and what does not.
  void Split(RecordIndex root, uint64_t va, RecordIndex* before, RecordIndex* after);
  RecordIndex Join(RecordIndex before, RecordIndex after);

  const Segment& segment_;
  GuestRecord* guest_;
};

// `fn(const RegionRecord&)` by address. Ends early on a damaged map.
template <class Fn>
void ForEachRegionRecord(const SegmentView& view, const GuestRecord& guest, Fn fn) {
  GuestAddr from(0);
  for (uint32_t i = 0; i < view.config().max_regions; ++i) {
    const RegionRecord* record = view.region(FirstRegionEndingAfter(view, guest, from));
    if (record == nullptr) return;
    const GuestAddr end = LoadRegion(*record).end();
    if (end <= from) return;
    fn(*record);
    from = end;
  }
}

// `fn(const Region&)` by address.
template <class Fn>
void ForEachRegion(const SegmentView& view, GuestId id, Fn fn) {
  const GuestRecord* guest = view.Find(id);
  if (guest == nullptr) return;
  ForEachRegionRecord(view, *guest, [&](const RegionRecord& record) { fn(LoadRegion(record)); });
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_REGION_MAP_H_
