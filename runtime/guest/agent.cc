#include "runtime/guest/agent.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>

#include "runtime/guest/boards.h"
#include "runtime/guest/channel.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/guest_lock.h"
#include "runtime/guest/holds.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/guest/views.h"
#include "runtime/uapi_compat.h"

namespace hostmm::guest {
namespace {

// Two pages: the deepest frame holds one Message and one 512-byte mincore vector. It lies in the
// library's own data, beside what every process touches anyway, so that it needs no page-table page
// of its own.
alignas(4096) unsigned char g_stack[8192];

constexpr uint64_t kPagesPerBlock = kBlock / kPage;

bool AllPagesInMemory(uint64_t block) {
  unsigned char in_memory[kPagesPerBlock];
  if (raw::Failed(raw::Call(SYS_mincore, block, kBlock, in_memory))) return false;
  for (unsigned char page : in_memory) {
    if ((page & 1) == 0) return false;
  }
  return true;
}

void CollapseFullBlocks(const protocol::Message& order, protocol::Message* done) {
  for (uint64_t i = 0; i < 64 && i * kBlock < order.length; ++i) {
    const uint64_t bit = uint64_t{1} << i;
    const uint64_t block = order.va + i * kBlock;
    if ((order.value[0] & bit) == 0 || !AllPagesInMemory(block)) continue;
    const long result = raw::Call(SYS_madvise, block, kBlock, MADV_COLLAPSE);
    done->value[raw::Failed(result) ? 1 : 0] |= bit;
  }
}

void CarryOut(const protocol::Message& order, protocol::Message* done) {
  AgentLockHolder hold(g_client.lock);
  const Region* region = g_client.regions.Find(order.va);
  const bool holds_range =
      region != nullptr && order.length <= region->va + region->bytes - order.va;
  switch (order.op) {
    case protocol::OrderOp::kZap:
      // Only under the lock is it sure that the range is still what the pager thinks: on private
      // memory of the program this advice would destroy data.
      if (!holds_range) {
        done->status = protocol::Status::kRefused;
      } else if (raw::Failed(raw::Call(SYS_madvise, order.va, order.length, MADV_DONTNEED))) {
        done->status = protocol::Status::kRefused;
      }
      return;
    case protocol::OrderOp::kCollapse:
      if (holds_range) CollapseFullBlocks(order, done);
      return;
    case protocol::OrderOp::kZapPages: {
      const auto* pages = reinterpret_cast<const unsigned char*>(&order.text[0]);
      if (ZapViewPagesLocked(order.va, order.mm, pages) != 0) {
        done->status = protocol::Status::kRefused;
      }
      return;
    }
    case protocol::OrderOp::kLoseView:
      LoseViewsInLocked(order.va, order.length);
      return;
    default:
      done->status = protocol::Status::kRefused;
      return;
  }
}

// The agent's own copy: the client may go off, and clear its own, at any time.
GuardedFd g_channel;

// The kernel's id of the agent; the kernel clears it, and wakes, when the thread runs no more.
uint32_t g_agent_tid;

// How often AwaitAgentEnd looks whether an ended thread can still be seen: 100 ms in all.
// Arbitrary.
constexpr int kUnhashAsks = 5000;

// The agent needs no privilege for anything that it does.
void DropCapabilities() {
  const __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  const __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3] = {};
  raw::Call(SYS_capset, &header, &none[0]);
}

// What it is to hold from the beginning.
FirstHold g_first;

// 0 until the agent has a table of descriptors, of its own or not.
uint32_t g_has_table;

// Leaves the program's table of descriptors for one of its own, with the channel, and what it
// holds, alone. A program of one thread would otherwise pay an atomic operation for each system
// call on a descriptor, because its table had two users. Where the kernel cannot (before 5.9) the
// table stays shared. RETURNS whether it is its own.
bool KeepOnlyTheChannel() {
  const auto channel = static_cast<unsigned>(g_channel.get());
  const unsigned held = g_first.uffd >= 0 ? static_cast<unsigned>(g_first.uffd) : channel;
  const unsigned low = held < channel ? held : channel;
  const unsigned high = held < channel ? channel : held;
  constexpr unsigned kUnshare = 1U << 1;  // CLOSE_RANGE_UNSHARE
  if (raw::Failed(raw::Call(SYS_close_range, high + 1, ~0U, kUnshare))) return false;
  if (high - low > 1) raw::Call(SYS_close_range, low + 1, high - 1, 0);
  if (low > 0) raw::Call(SYS_close_range, 0, low - 1, 0);
  return true;
}

void TakeTable() {
  const bool own = g_channel.IsOurs() && KeepOnlyTheChannel();
  if (own) HoldFirst(g_first);
  __atomic_store_n(&g_has_table, 1, __ATOMIC_RELEASE);
  raw::Call(SYS_futex, &g_has_table, FUTEX_WAKE_PRIVATE, 1);
}

// Orders that bring descriptors or are not answered by kOrderDone: of boards, and of snapshots.
// RETURNS whether it was one; then it has taken over the descriptors.
bool CarryOutUnanswered(const protocol::Message& order, const int* fds) {
  switch (order.op) {
    case protocol::OrderOp::kFreeze:
      Freeze(g_channel.get(), order, fds);
      return true;
    case protocol::OrderOp::kThaw:
      Thaw(order);
      ReleaseWithoutViews();
      return true;
    case protocol::OrderOp::kHoldLife:
      HoldLife(order, fds[0]);
      ReleaseWithoutViews();
      return true;
    case protocol::OrderOp::kWatch:
      WatchBoard(g_channel.get(), order, fds);
      return true;
    case protocol::OrderOp::kUnwatch:
      UnwatchBoard(order.mm);
      return true;
    case protocol::OrderOp::kLook:
      LookAtBoard(g_channel.get(), order.mm);
      return true;
    default:
      return false;
  }
}

// Receives one packet. False: there will be none any more, or the descriptor is not ours any more:
// the program may have closed it and got its number for a socket of its own.
bool NextOrder(protocol::Message* order, int* fds) {
  AwaitPacket(g_channel.get());
  return g_channel.IsOurs() && Receive(g_channel.get(), order, fds, kWatchFds) == Io::kOk;
}

int AgentMain(void*) {
  DropCapabilities();
  TakeTable();
  raw::Call(SYS_prctl, PR_SET_NAME, "hostmm-agent");
  protocol::Message order;
  int fds[kWatchFds];
  bool quits = false;
  while (NextOrder(&order, fds)) {
    if (order.kind != protocol::Kind::kOrder) continue;
    if (order.op == protocol::OrderOp::kQuit) {
      quits = true;
      break;
    }
    if (CarryOutUnanswered(order, fds)) continue;
    protocol::Message done = NewMessage(protocol::Kind::kOrderDone);
    done.order = order.order;
    done.op = order.op;
    CarryOut(order, &done);
    if (order.op == protocol::OrderOp::kLoseView) ReleaseWithoutViews();
    if (!g_channel.IsOurs()) break;
    raw::Call(SYS_sendto, g_channel.get(), &done, sizeof(done), MSG_NOSIGNAL, nullptr, 0);
  }
  DropBoards();
  // The agent that follows gets its own.
  if (quits) {
    DropHolds();
  } else {
    EndHolds();
  }
  return 0;
}

}  // namespace

AgentStart StartAgent(const GuardedFd& channel, const FirstHold& first) {
  g_channel = channel;
  g_first = first;
  g_has_table = 0;
  // The new thread inherits the mask: no signal of the program may ever be handled on this stack.
  const uint64_t mask = BlockSignals();
  const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                    CLONE_SYSVSEM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  const int tid = clone(AgentMain, g_stack + sizeof(g_stack), flags, nullptr, &g_agent_tid, nullptr,
                        &g_agent_tid);
  RestoreSignals(mask);
  if (tid <= 0) return AgentStart::kRefused;
  while (first.uffd >= 0 && __atomic_load_n(&g_has_table, __ATOMIC_ACQUIRE) == 0) {
    raw::Call(SYS_futex, &g_has_table, FUTEX_WAIT_PRIVATE, 0, nullptr);
  }
  return AgentStart::kStarted;
}

AgentEnd AwaitAgentEnd(int seconds) {
  const uint32_t tid = __atomic_load_n(&g_agent_tid, __ATOMIC_ACQUIRE);
  if (tid == 0) return AgentEnd::kGone;
  timespec until = {};
  raw::Call(SYS_clock_gettime, CLOCK_MONOTONIC, &until);
  until.tv_sec += seconds;
  // Until a moment, not for a time: signals of the program end each wait early (setuid sends one to
  // every thread). The kernel wakes a shared futex.
  while (__atomic_load_n(&g_agent_tid, __ATOMIC_ACQUIRE) != 0) {
    const long woken = raw::Call(SYS_futex, &g_agent_tid, FUTEX_WAIT_BITSET, tid, &until, nullptr,
                                 FUTEX_BITSET_MATCH_ANY);
    if (woken == -ETIMEDOUT) return AgentEnd::kStillThere;
  }
  // It runs no more, but until the kernel has unhashed it, /proc/PID/task still shows it with the
  // credentials that it had. Nothing wakes for that; it takes microseconds.
  const timespec moment = {0, 20'000};
  const long process = raw::Call(SYS_getpid);
  for (int asked = 0; asked < kUnhashAsks; ++asked) {
    if (raw::Call(SYS_tgkill, process, tid, 0) == -ESRCH) break;
    raw::Call(SYS_nanosleep, &moment, nullptr);
  }
  return AgentEnd::kGone;
}

void ForgetAgent() {
  g_agent_tid = 0;
  ForgetBoards();
  ForgetHolds();
}

}  // namespace hostmm::guest
