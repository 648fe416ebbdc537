// The kernel's event, read from a userfaultfd, as a FaultEvent. The only place where the flag bits
// are looked at.
#ifndef HOSTMM_RUNTIME_UFFD_DECODE_H_
#define HOSTMM_RUNTIME_UFFD_DECODE_H_

#include <linux/userfaultfd.h>

#include <optional>

#include "vmm/fault.h"
#include "vmm/units.h"

namespace hostmm {

// RETURNS: the fault, or nothing if the event is not a page fault (no other event is asked for).
std::optional<FaultEvent> DecodeFault(GuestId guest, const uffd_msg& message);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_UFFD_DECODE_H_
