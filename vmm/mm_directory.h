// MmDirectory: birth and end of the host mms.
//
// Memory:  an mm is a record, a canonical top table and the tables below it. It lives while regions
//          map the file or somebody pins it. A snapshot is one too, whose lower tables are mostly
//          its source's (snapshot_tables.h), which it pins.
// Units:   none.
// Threads: the writer only.
// Errors:  Create returns a TableStatus; on failure nothing was changed.

#ifndef HOSTMM_VMM_MM_DIRECTORY_H_
#define HOSTMM_VMM_MM_DIRECTORY_H_

#include <vector>

#include "vmm/region.h"
#include "vmm/segment.h"
#include "vmm/snapshot_tables.h"

namespace hostmm {

// What an operation let go: mms that it destroyed, and the pre-image frames that their tables
// named.
struct Released {
  std::vector<MmId> mms;
  std::vector<FreedFrames> frames;
};

class MmDirectory {
 public:
  explicit MmDirectory(const Segment& segment) : segment_(segment) {}

  // kBadRange: no length, longer than the geometry can map, a snapshot, or huge frames only where
  // the geometry has no huge leaf. kNoSpace.
  TableStatus Create(const MmSpec& spec, MmId* id);
  // Counts the tables that it copies. kNoSpace. REQUIRES: `source` is a live file of ours.
  TableStatus CreateSnapshot(MmId source, uint32_t min_shared_tables, uint32_t owner_uid, MmId* id);
  // Makes the file longer; a shorter length changes nothing. kBadRange: it would need another top
  // level, or a snapshot.
  TableStatus Grow(MmRecord* record, PageCount length);
  // Destroys the mm, tables included, if nothing maps it and nobody pins it, and then appends its
  // id to `released`. A snapshot's source may follow.
  void ReleaseIfUnused(MmId id, Released* released);
  // Ends what makes it a snapshot, and takes its pin off the source: an empty mm remains.
  // REQUIRES: it is one, and of a source.
  void EndSnapshot(MmId id, Released* released);

 private:
  // A new record, without a name.
  MmId Enter(const MmTraits& traits, PageCount length, HostOffset top);

  const Segment& segment_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_MM_DIRECTORY_H_
