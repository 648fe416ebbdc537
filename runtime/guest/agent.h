// The agent: the thread in a guest that carries out the pager's orders.
//
// It is one raw clone on a small fixed stack: all signals blocked, raw system calls only, no
// malloc, no libc state (it shares the thread pointer of the thread that made it). It ends when the
// channel does, and what it then still holds has been given up (holds.h).
#ifndef HOSTMM_RUNTIME_GUEST_AGENT_H_
#define HOSTMM_RUNTIME_GUEST_AGENT_H_

#include "runtime/guest/channel.h"
#include "runtime/guest/holds.h"

namespace hostmm::guest {

// Starts the agent of this process on `channel`. Call it once per process: there is one stack.
// `first`: what it holds from the beginning (holds.h), a copy of it: when this returns the caller
// may close its own. RETURNS: whether the kernel made the thread (RLIMIT_NPROC may be used up).
// Without it the guest works; it only does
//          not get orders.
enum class AgentStart { kStarted, kRefused };
AgentStart StartAgent(const GuardedFd& channel, const FirstHold& first = {});

// Waits until the agent, which was told to end, is gone: nothing of it runs or will run any more,
// and /proc/PID/task does not show it.
enum class AgentEnd { kGone, kStillThere };
// As long as it may wait for the ends of views (holds.h), and what else it has to do.
inline constexpr int kAgentEndSeconds = 12;
AgentEnd AwaitAgentEnd(int seconds = kAgentEndSeconds);

// In a forked child: the parent's agent is not here.
void ForgetAgent();

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_AGENT_H_
