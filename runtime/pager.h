// clang-format off
// The pager: one process, one event loop, the only writer of the host mm.
//
// What it does stands elsewhere: resolver.h (faults), session.h (what guests ask), orders.h and
// adopter.h (what agents are told), rung.h (frames and mode). Here is who is connected, and when it
// all ends.
//
// Threads and locks:
//   loop thread    everything but the below; owns the tables, guests, files, descriptors
//   workers (2)    fill and collapse frames of a file that they hold a reference to, and read
//                  /proc; touch neither tables nor guests
//   lock order     WorkerPool::mu_ is the only lock, a leaf: nothing is locked or called by us
//                  under it, and the loop holds it for a push or a pop only
//   the kernel's   all three share this process's mmap_lock. A collapse takes it for writing, so
//                  that what the loop does with its own mappings (the mmap and munmap of a file's
//                  views, small fills) can wait for a step of a worker's. That is why collapses
//                  come last, and one at a time (worker_pool.h).
//   The segment has one writer (the loop thread) and readers in other processes, which take no
//   lock: vmm/segment.h. The pager's own memory is registered with no userfaultfd: it never waits
//   for itself (invariant I8).
// clang-format on
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
