// Snapshots on the guest side: asked for, and mapped as views.
//
// A view is a private mapping of the live file, all of whose pages come from the pager. A forked
// child does not inherit it; the view that a child has of copy-on-write memory (cow.h) is of
// another kind, and its children do.
//
// Lost:     a view whose snapshot is not to be had any more is memory beyond the end of an empty
//           file: each access is SIGBUS, and nobody reads what is no snapshot.
// Threads:  as client.h; what ends with Locked wants the client's lock.
// Errors:   -errno, of hostmm_c.h, with the pager's line in *answer.
#ifndef HOSTMM_RUNTIME_GUEST_VIEWS_H_
#define HOSTMM_RUNTIME_GUEST_VIEWS_H_

#include <cstdint>

#include "runtime/protocol.h"

namespace hostmm::guest {

// RETURNS the handle's descriptor or -errno.
long TakeSnapshot(uint64_t addr, protocol::Message* answer);

// Whether the descriptor can be a handle.
bool IsHandle(int fd);

struct ViewRange {
  uint64_t addr;  // 0: where there is room
  uint64_t bytes;
  int prot;
  uint64_t offset;
};
// RETURNS the address or -errno.
long MapView(int handle, const ViewRange& ask, protocol::Message* answer);

// Makes all views SIGBUS; those that are already stay so. `dont_fork` says whether also those that
// a forked child has not.
enum class DontForkViews : uint8_t { kLose, kAreNotHere };
void LoseViewsLocked(DontForkViews dont_fork);
// The same for what of [va, va + bytes) is a view.
void LoseViewsInLocked(uint64_t va, uint64_t bytes);
// Makes [va, va + bytes), which is ours, SIGBUS.
void MakeSigbus(uint64_t va, uint64_t bytes);

// Drops what a view has mapped of the live file in [va, va + bytes), and nothing of its own.
// RETURNS whether that is sure; false: something may be left.
bool ZapSharedLocked(uint64_t va, uint64_t bytes);

// Drops the pages from `va` on whose bits are set in `pages` (512, lowest first), as far as they
// are in views of `mm` (generation 0: of any snapshot). RETURNS 0 or the first -errno.
long ZapViewPagesLocked(uint64_t va, protocol::MmHandle mm, const unsigned char* pages);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_VIEWS_H_
