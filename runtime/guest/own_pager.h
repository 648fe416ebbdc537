// Starts a pager for this process alone: the hostmm program, in the background, which ends with the
// last process that it serves.
//
// Form:     `hostmm pager --socket DIR/socket --until-last-guest --ready-fd N`; DIR is a new
//           folder of this user's, which the pager removes.
// The program sees no child: no SIGCHLD, nothing for its wait calls, and its handlers never run in
//           the new process.
// Errors:   an errno, with one line of why.
// Threads:  any; the caller holds the lock of hostmm_open.
#ifndef HOSTMM_RUNTIME_GUEST_OWN_PAGER_H_
#define HOSTMM_RUNTIME_GUEST_OWN_PAGER_H_

#include <stddef.h>

namespace hostmm::guest {

struct OwnPager {
  const char* program;  // nullptr: looked for
  const char* frames;   // nullptr: auto
};

// RETURNS 0, and the socket's path in `socket`; or an errno, and the reason in `why`.
int StartOwnPager(const OwnPager& ask, char* socket, size_t socket_bytes, char* why,
                  size_t why_bytes);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_OWN_PAGER_H_
