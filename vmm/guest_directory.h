// GuestDirectory: which guests exist; slot and generation make the id of an incarnation.
//
// Memory:  guest records of the segment. What a guest has mapped is in address_space.h.
// Units:   none.
// Threads: LoadGuestInfo reads and may run anywhere; the rest is the writer's.
// Errors:  Add returns an id that is not valid when no record is left.

#ifndef HOSTMM_VMM_GUEST_DIRECTORY_H_
#define HOSTMM_VMM_GUEST_DIRECTORY_H_

#include <cstdint>

#include "vmm/region.h"
#include "vmm/segment.h"

namespace hostmm {

GuestInfo LoadGuestInfo(GuestId id, const GuestRecord& record);

class GuestDirectory {
 public:
  explicit GuestDirectory(const Segment& segment) : segment_(segment) {}

  GuestId Add(int32_t pid, uint32_t uid);
  // REQUIRES: alive, and without regions.
  void Remove(GuestId id);

 private:
  const Segment& segment_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_GUEST_DIRECTORY_H_
