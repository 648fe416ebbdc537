// What the agent holds while files have snapshots, so that a pager that dies is not the moment at
// which frozen memory changes unseen.
//
//   this guest writes a file that is frozen    a duplicate of its userfaultfd: its first writes
//                                              wait as long as that is open; and the read end of
//                                              the file's life pipe
//   this guest has views of a snapshot         the same, so that the touches of views wait until
//   they
//                                              are SIGBUS; and a write end of the life pipe
//
// End:      of the channel, because the pager has gone or this process has left it: first views
//           become SIGBUS, then write ends are closed, then the end of all other write ends is
//           waited for, then the userfaultfd goes, and with it what holds up the writers. So nobody
//           writes before nobody reads.
// Bound:    kLifeMilliseconds. A process that is stopped cannot give up its views; who writes does
//           not wait for it for ever.
// Owner:    the agent thread: the descriptors are in its own table, where the program neither sees
//           nor closes them.
// Threads:  the agent alone; each function takes the client's lock where it needs it.
#ifndef HOSTMM_RUNTIME_GUEST_HOLDS_H_
#define HOSTMM_RUNTIME_GUEST_HOLDS_H_

#include "runtime/protocol.h"

namespace hostmm::guest {

// How long writers wait for the ends of all views, in all. Arbitrary: far above what agents need,
// and what a program survives.
inline constexpr int kLifeMilliseconds = 10'000;

// What a forked child holds until the pager sends it holds of its own: the pager may die before.
struct FirstHold {
  int uffd = -1;
  // Whether it writes a file that is frozen: then views of others may still be ending.
  bool writes = false;
};
void HoldFirst(const FirstHold& first);

// Descriptors of kFreeze, in their order; of kHoldLife the first one.
enum HoldFd { kUffdFd, kLifeFd, kHoldFds };

// Marks and zaps the regions of the file (of a snapshot: views are let be), holds what `order`
// brings, and says kFreezeDone on `channel`, with kRefused if it could not all be done. Takes over
// the descriptors.
void Freeze(int channel, const protocol::Message& order, const int* fds);
// The file is frozen no more.
void Thaw(const protocol::Message& order);
// Holds a write end of the life pipe for the views of a snapshot; without a descriptor: holds
// nothing for them any more.
void HoldLife(const protocol::Message& order, int life);
// To be called when views have gone: nothing is held for a snapshot of which there is no view.
void ReleaseWithoutViews();

// The channel has ended.
void EndHolds();
// The agent ends, another follows.
void DropHolds();
// In a forked child: the parent's agent, with all that it had, is not here.
void ForgetHolds();

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_HOLDS_H_
