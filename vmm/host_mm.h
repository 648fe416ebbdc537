// HostMm: one shared file in the host mm; here what its record says.
//
// Memory:  a record of the segment. It names a canonical top table; lower tables come and go with
//          faults (page_table.h), the record itself with mm_directory.h.
// Units:   lengths in 4 KiB pages.
// Threads: these functions read and may run anywhere on any bytes; Pack is the writer's.
// Errors:  none.

#ifndef HOSTMM_VMM_HOST_MM_H_
#define HOSTMM_VMM_HOST_MM_H_

#include <cstdint>

#include "vmm/region.h"
#include "vmm/segment.h"

namespace hostmm {

// MmRecord::traits: bits 0-7 frames, 8-15 frames of the live file, 16-23 top level, 24-31 access,
// 32-63 uid.
struct MmTraits {
  FrameKind frames = FrameKind::kHuge;
  FrameKind live_frames = FrameKind::kHuge;  // of a snapshot: the kind of its source; else `frames`
  uint8_t top_level = 0;
  AccessSet access;  // upper bound of every entry's access (I4)
  uint32_t owner_uid = 0;

  static MmTraits Load(const MmRecord& record);
  uint64_t Pack() const;
};

// Entries of a top (canonical or private) that a file of this length can use.
uint64_t TopEntries(const Geometry& geometry, PageCount length, int top_level);

MmInfo LoadMmInfo(MmId id, const MmRecord& record);

}  // namespace hostmm

#endif  // HOSTMM_VMM_HOST_MM_H_
