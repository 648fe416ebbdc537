// How long the calling thread runs before the scheduler looks at who else waits for its processor.
//
// A pager is waited for by threads that touch memory, and its own threads copy blocks of 2 MiB
// beside them. With the usual slice (some milliseconds) each can be kept from its processor by the
// other for that long; with short ones everybody is served within a fraction of it. Shares of the
// processors stay what they are.
//
// Kernel:   a slice of one's own is of Linux 6.12 (sched_setattr(2), sched_runtime); older ones
//           take the call and keep theirs. No privilege is needed.
// Threads:  for the calling thread, and those that it starts from then on.
// Errors:   none: it is a hint.
#ifndef HOSTMM_RUNTIME_TIME_SLICE_H_
#define HOSTMM_RUNTIME_TIME_SLICE_H_

#include <chrono>

namespace hostmm {

// The shortest that the kernel takes.
inline constexpr std::chrono::nanoseconds kShortTimeSlice = std::chrono::microseconds(100);

void TakeTimeSlice(std::chrono::nanoseconds slice);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_TIME_SLICE_H_
