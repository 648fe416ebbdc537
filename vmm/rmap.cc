#include "vmm/rmap.h"

#include <cassert>

namespace hostmm {

void LinkIntoRmap(const Segment& segment, MmRecord* mm, RecordIndex region) {
  RegionRecord* record = segment.region(region);
  const RecordIndex head = mm->lists.LoadLow();
  record->siblings.StoreHalves(head, kNullRecord);
  if (RegionRecord* next = segment.region(head)) next->siblings.StoreHigh(region);
  mm->lists.StoreLow(region);
  mm->regions_pins.StoreLow(mm->regions_pins.LoadLow() + 1);
}

void UnlinkFromRmap(const Segment& segment, MmRecord* mm, RecordIndex region) {
  RegionRecord* record = segment.region(region);
  assert(mm->regions_pins.LoadLow() != 0);
  const RecordIndex next = record->siblings.LoadLow();
  const RecordIndex previous = record->siblings.LoadHigh();
  if (RegionRecord* before = segment.region(previous)) {
    before->siblings.StoreLow(next);
  } else {
    mm->lists.StoreLow(next);
  }
  if (RegionRecord* behind = segment.region(next)) behind->siblings.StoreHigh(previous);
  mm->regions_pins.StoreLow(mm->regions_pins.LoadLow() - 1);
}

}  // namespace hostmm
