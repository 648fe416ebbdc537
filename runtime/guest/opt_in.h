// Opt-in memory (MAP_SHARED_PT) on the guest side: mapped in whole granules, with the protection
// that all who map the file so have, and changed for all.
//
// Flow:     a change for all is asked under the client's lock and waited for without it: the
//           caller's own agent does the caller's part, and needs the lock.
// Errors:   -errno as the system call would say it; see docs/semantics.md. A pager that is gone:
//           what Asked says.
// Threads:  any, as client.h.
#ifndef HOSTMM_RUNTIME_GUEST_OPT_IN_H_
#define HOSTMM_RUNTIME_GUEST_OPT_IN_H_

#include <cstdint>

#include "runtime/protocol.h"

namespace hostmm::guest {

// Who asks: the plain call of a program, which goes on without hostmm if it must, or the library's
// own function, which says why it could not.
enum class Asked { kPlainCall, kApi };

// The share flags (region_flags.h) that an mmap with these flags asks for; 0: it does not opt in.
uint32_t ShareOf(int flags);

// mmap with MAP_SHARED_PT in its flags. RETURNS as mmap; kPlain: nothing was changed, make the
// plain call (kPlainCall only).
long MapOptIn(uint64_t addr, uint64_t bytes, int prot, int flags, int fd, uint64_t offset,
              Asked asked);

// mprotect and madvise of ranges in which Manages() was true.
long Protect(uint64_t addr, uint64_t bytes, int prot, Asked asked);
long Advise(uint64_t addr, uint64_t bytes, int advice, Asked asked);

// REQUIRES: the lock. Gives [va, va + bytes), one region, the protection that it has for all.
// `first`: the pager's word for its beginning (kAccess); it is asked for the rest.
void ApplyAccessLocked(uint64_t va, uint64_t bytes, const protocol::Message& first);
// REQUIRES: the lock. Asks for that word; its length is 0 if there is none.
protocol::Message AccessAtLocked(uint64_t va);

// REQUIRES: the lock. Whether the agent can watch the board of one more file.
bool HasRoomForBoardLocked();

// Whether the page table of `addr` is one that others may share: 1, 0, or -errno.
long IsShared(uint64_t addr);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_OPT_IN_H_
