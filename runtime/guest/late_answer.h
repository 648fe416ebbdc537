// Questions whose answer comes late, because the pager first has other guests, or this one's own
// agent, do something: asked under the client's lock, and waited for without it, because the agent
// needs it.
//
// Threads:  any that does not hold the lock.
// Errors:   -errno: what the pager says; ENOTCONN: it is gone; ETIMEDOUT: it says nothing.
#ifndef HOSTMM_RUNTIME_GUEST_LATE_ANSWER_H_
#define HOSTMM_RUNTIME_GUEST_LATE_ANSWER_H_

#include "runtime/protocol.h"

namespace hostmm::guest {

// RETURNS 0 or -errno. A descriptor in an answer that is kOk goes to *received (else -1); pass
// nullptr if none is wanted. As in a system call no handler runs meanwhile: one that forks would
// give its child the same answer to wait for.
long AskLate(const protocol::Message& ask, const int* fds, int fd_count, protocol::Message* answer,
             int* received);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_LATE_ANSWER_H_
