// The access that a protect for all has given to the pages of a file (I13): what a new opt-in
// mapper (MAP_SHARED_PT) finds and takes over.
//
// Memory:  nothing is stored; the regions of the mm say it. When the last opt-in region of a page
//          goes, its access is forgotten.
// Units:   FilePage and PageCount in 4 KiB pages.
// Threads: reads, may run anywhere on any bytes.
// Errors:  none.

#ifndef HOSTMM_VMM_SHARED_ACCESS_H_
#define HOSTMM_VMM_SHARED_ACCESS_H_

#include <vector>

#include "vmm/region.h"
#include "vmm/segment.h"

namespace hostmm {

// Neighbouring pages of a file with one access.
struct AccessRun {
  FilePage first{};
  PageCount length{};
  AccessSet access{};
  uint32_t settled = 0;  // kSettled, or 0: nobody has set it for all

  FilePage end() const { return first + length; }
  friend bool operator==(const AccessRun&, const AccessRun&) = default;
};

// Addresses of one guest that are about to be unmapped, so that what is there does not count.
struct Leaving {
  GuestId guest{};
  AddrRange range{};
};

// The runs, gapless and in order, with which `spec` is to be mapped: its own access where it is not
// opt-in or nothing is settled, that of the others elsewhere. REQUIRES: spec fits in the file; its
// mm is alive.
std::vector<AccessRun> RunsToMap(const SegmentView& view, const RegionSpec& spec,
                                 const Leaving& leaving);

}  // namespace hostmm

#endif  // HOSTMM_VMM_SHARED_ACCESS_H_
