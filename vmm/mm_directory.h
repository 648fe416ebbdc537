// MmDirectory: birth and end of the host mms.
//
// Memory:  an mm is a record, a canonical top table and the tables below it. It lives while regions
//          map the file or somebody pins it.
// Units:   none.
// Threads: the writer only.
// Errors:  Create returns a TableStatus; on failure nothing was changed.

#ifndef HOSTMM_VMM_MM_DIRECTORY_H_
#define HOSTMM_VMM_MM_DIRECTORY_H_

#include <vector>

#include "vmm/region.h"
#include "vmm/segment.h"

namespace hostmm {

class MmDirectory {
 public:
  explicit MmDirectory(const Segment& segment) : segment_(segment) {}

  // kBadRange: no length, longer than the geometry can map, or huge frames only where the geometry
  // has no huge leaf. kNoSpace.
  TableStatus Create(const MmSpec& spec, MmId* id);
  // Makes the file longer; a shorter length changes nothing. kBadRange: it would need another top
  // level.
  TableStatus Grow(MmRecord* record, PageCount length);
  // Destroys the mm, tables included, if nothing maps it and nobody pins it, and then appends its
  // id to `released`.
  void ReleaseIfUnused(MmId id, std::vector<MmId>* released);

 private:
  const Segment& segment_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_MM_DIRECTORY_H_
