// The agent: the thread in a guest that carries out the pager's orders.
//
// It is one raw clone on a small fixed stack: all signals blocked, raw system calls only, no
// malloc, no libc state (it shares the thread pointer of the thread that made it). It ends when the
// channel does.
#ifndef HOSTMM_RUNTIME_GUEST_AGENT_H_
#define HOSTMM_RUNTIME_GUEST_AGENT_H_

#include "runtime/guest/channel.h"

namespace hostmm::guest {

// Starts the agent of this process on `channel`. Call it once per process: there is one stack.
// RETURNS: whether the kernel made the thread (RLIMIT_NPROC may be used up). Without it the guest
// works; it only does
//          not get orders.
enum class AgentStart { kStarted, kRefused };
AgentStart StartAgent(const GuardedFd& channel);

// Waits until the agent, which was told to end, is gone: nothing of it runs or will run any more,
// and /proc/PID/task does not show it.
enum class AgentEnd { kGone, kStillThere };
AgentEnd AwaitAgentEnd(int seconds);

// In a forked child: the parent's agent is not here.
void ForgetAgent();

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_AGENT_H_
