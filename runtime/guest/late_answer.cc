#include "runtime/guest/late_answer.h"

#include <errno.h>

#include "runtime/guest/client_state.h"
#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

using protocol::Message;

// The pager gives up on a guest after 8 s, and operations on one file queue. A pager that says
// nothing for so long, and has not gone, is none. Arbitrary.
constexpr int kLateMilliseconds = 60'000;

// REQUIRES: the lock, and that `waiter` is in the list.
void RemoveWaiterLocked(Waiter* waiter) {
  Waiter** at = &g_client.waiters;
  while (*at != waiter) at = &(*at)->next;
  *at = waiter->next;
}

// With all signals blocked.
long AskUninterrupted(const Message& ask, const int* fds, int fd_count, Message* answer,
                      int* received) {
  Waiter waiter = {};
  uint32_t attachment;
  {
    AgentLockHolder hold(g_client.lock);
    if (!EnsureAttachedLocked()) return -ENOTCONN;
    attachment = g_client.attachments;
    waiter.reply_fd = SendQuestion(g_client.channel, ask, fds, fd_count);
    if (waiter.reply_fd < 0) {
      GoOffLocked("the pager is gone");
      return -ENOTCONN;
    }
    waiter.next = g_client.waiters;
    g_client.waiters = &waiter;
  }
  const Reply got = AwaitReply(waiter.reply_fd, kLateMilliseconds, answer, received);
  AgentLockHolder hold(g_client.lock);
  RemoveWaiterLocked(&waiter);
  raw::Call(SYS_close, waiter.reply_fd);
  if (got == Reply::kHere) return -ErrnoOf(*answer);
  if (got == Reply::kTimedOut) return -ETIMEDOUT;
  // Another thread may have closed that attachment, and opened one that is well.
  if (g_client.attachments == attachment && CurrentPhase() == Phase::kAttached) {
    GoOffLocked("the pager is gone");
  }
  return -ENOTCONN;
}

}  // namespace

long AskLate(const Message& ask, const int* fds, int fd_count, Message* answer, int* received) {
  *answer = {};
  if (received != nullptr) *received = -1;
  const uint64_t mask = BlockSignals();
  const long result = AskUninterrupted(ask, fds, fd_count, answer, received);
  RestoreSignals(mask);
  answer->text[sizeof(answer->text) - 1] = '\0';
  if (result != 0 && received != nullptr && *received >= 0) {
    raw::Call(SYS_close, *received);
    *received = -1;
  }
  return result;
}

}  // namespace hostmm::guest
