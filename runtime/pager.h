// The pager: one process, one event loop, the only writer of the host mm.
//
// What it does stands elsewhere: resolver.h (faults), session.h (what guests ask), orders.h and
// adopter.h (what agents are told), rung.h (frames and mode). Here is who is connected, and when it
// all ends.
//
// Threads and locks:
//   loop thread      everything but the below; owns the tables, guests, files, descriptors; takes
//   no lock while it works workers (2)      fill frames of a file that they hold a reference to;
//   touch neither tables nor guests
//     lock order:    WorkerPool::mu_   - a leaf: nothing is locked, called or allocated by us under
//     it
//   The segment has one writer (the loop thread) and readers in other processes, which take no
//   lock: vmm/segment.h. The pager's own memory is registered with no userfaultfd: it never waits
//   for itself (invariant I8).
#ifndef HOSTMM_RUNTIME_PAGER_H_
#define HOSTMM_RUNTIME_PAGER_H_

#include "runtime/cli/pager_options.h"

namespace hostmm {

// Serves until the options say that it is over, or SIGTERM. RETURNS: an exit status
// (runtime/cli/exit_status.h). Errors before it serves go to options.ready_fd as one line; see
// pager_options.h. Call it once per process, while the process has one thread.
int RunPager(const PagerOptions& options);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_PAGER_H_
