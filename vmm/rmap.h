// Reverse map: who maps a file, object based as Linux's i_mmap: each mm keeps a list of its
// regions.
//
// Memory:  the list runs through the region records; nothing is allocated.
// Units:   BlockIndex and FilePage of the file.
// Threads: ForEachMapper and ForEachSharer read and may run anywhere on any bytes; Link and Unlink
// are the writer's. Errors:  none; a damaged list ends the visit.

#ifndef HOSTMM_VMM_RMAP_H_
#define HOSTMM_VMM_RMAP_H_

#include <cstdint>

#include "vmm/region.h"
#include "vmm/region_map.h"
#include "vmm/segment.h"

namespace hostmm {

// Enters a region record, whose words are filled in, into its mm's list, and takes it out.
void LinkIntoRmap(const Segment& segment, MmRecord* mm, RecordIndex region);
void UnlinkFromRmap(const Segment& segment, MmRecord* mm, RecordIndex region);

// `fn(RecordIndex, const RegionRecord&)` for each region of the mm, in no order. `fn` may unlink
// the record that it was given, nothing else.
template <class Fn>
void ForEachRegionOfMm(const SegmentView& view, const MmRecord& mm, Fn fn) {
  RecordIndex index = mm.lists.LoadLow();
  for (uint32_t i = 0; i < view.config().max_regions; ++i) {
    const RegionRecord* record = view.region(index);
    if (record == nullptr) return;
    const RecordIndex next = record->siblings.LoadLow();
    fn(index, *record);
    index = next;
  }
}

inline GuestId GuestOf(const RegionRecord& record) {
  const uint64_t guest = record.guest.Load();
  return {static_cast<uint32_t>(guest), static_cast<uint32_t>(guest >> 32)};
}

// `fn(GuestId, const Region&)` for each opt-in region that maps a page of [first, first + count).
template <class Fn>
void ForEachSharer(const SegmentView& view, MmId id, FilePage first, PageCount count, Fn fn) {
  const MmRecord* mm = view.Find(id);
  if (mm == nullptr) return;
  ForEachRegionOfMm(view, *mm, [&](RecordIndex, const RegionRecord& record) {
    const Region region = LoadRegion(record);
    if (!region.IsOptIn() || region.file_page >= first + count || region.file_end() <= first) {
      return;
    }
    fn(GuestOf(record), region);
  });
}

// `fn(GuestId, const Region&, Writable)` for each region that maps a page of the block.
template <class Fn>
void ForEachMapper(const SegmentView& view, MmId id, BlockIndex block, Fn fn) {
  const MmRecord* mm = view.Find(id);
  if (mm == nullptr) return;
  ForEachRegionOfMm(view, *mm, [&](RecordIndex, const RegionRecord& record) {
    const Region region = LoadRegion(record);
    if (region.file_page >= EndPageOf(block) || region.file_end() <= FirstPageOf(block)) return;
    fn(GuestOf(record), region,
       region.KernelAccess().Contains(Access::kWrite) ? Writable::kYes : Writable::kNo);
  });
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_RMAP_H_
