#include "runtime/guest/boards.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "runtime/board.h"
#include "runtime/guest/channel.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/region_flags.h"

namespace hostmm::guest {
namespace {

struct WatchedBoard {
  protocol::MmHandle mm;  // generation 0: free
  uint32_t slot;
  int orders;
  int bell;
  board::Acks* acks;
  uint64_t acks_bytes;
  uint64_t done;  // sequence of the last order that was carried out
};

WatchedBoard g_boards[kMaxBoards];
int g_board_count;
// Made with the first board; 0: none. Number 0 is never one of the agent's.
int g_epoll;

// What epoll says of the channel; boards say their place in g_boards.
constexpr uint64_t kChannelEvent = ~uint64_t{0};

WatchedBoard* Find(protocol::MmHandle mm) {
  for (WatchedBoard& watched : g_boards) {
    if (watched.mm.generation != 0 && IsSame(watched.mm, mm)) return &watched;
  }
  return nullptr;
}

WatchedBoard* FindFree() {
  for (WatchedBoard& watched : g_boards) {
    if (watched.mm.generation == 0) return &watched;
  }
  return nullptr;
}

bool AddToEpoll(int fd, uint32_t events, uint64_t what) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = what;
  return !raw::Failed(raw::Call(SYS_epoll_ctl, g_epoll, EPOLL_CTL_ADD, fd, &event));
}

bool EnsureEpoll(int channel) {
  if (g_epoll != 0) return true;
  const long made = raw::Call(SYS_epoll_create1, EPOLL_CLOEXEC);
  if (raw::Failed(made)) return false;
  g_epoll = static_cast<int>(made);
  if (AddToEpoll(channel, EPOLLIN | EPOLLRDHUP, kChannelEvent)) return true;
  raw::Call(SYS_close, g_epoll);
  g_epoll = 0;
  return false;
}

// The order as it stood at one moment. RETURNS whether it could be read.
bool ReadOrder(const WatchedBoard& watched, board::Order* order) {
  // The pager writes one in well under a microsecond; arbitrary.
  constexpr int kAttempts = 1000;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    // The sequence number is the first word, so it is read before the rest, and then again.
    const long whole = raw::Call(SYS_pread64, watched.orders, order, sizeof(*order), 0);
    uint64_t after = 0;
    const long last = raw::Call(SYS_pread64, watched.orders, &after, sizeof(after), 0);
    if (whole != sizeof(*order) || last != sizeof(after)) return false;
    if (after != 0 && after == order->sequence) return true;
  }
  return false;
}

long Carry(const board::Order& order, const Region& region, uint64_t va, uint64_t bytes) {
  switch (order.op) {
    case protocol::BoardOp::kProtect: {
      const bool never_write = (region.share & kRegionNeverWrite) != 0;
      const uint64_t prot = never_write ? order.prot & ~uint64_t{PROT_WRITE} : order.prot;
      return raw::Call(SYS_mprotect, va, bytes, prot);
    }
    case protocol::BoardOp::kZap:
      // Only advice. A private mapping may hold what a debugger has written, which would be lost;
      // locked memory the kernel refuses, and that fails nobody's call.
      if ((region.share & kRegionPrivate) == 0) raw::Call(SYS_madvise, va, bytes, MADV_DONTNEED);
      return 0;
    case protocol::BoardOp::kAdvise:
      return raw::Call(SYS_madvise, va, bytes, order.advice);
    case protocol::BoardOp::kVote:
    case protocol::BoardOp::kNone:
      break;
  }
  return 0;
}

// REQUIRES: the lock. RETURNS the first errno, or 0.
int32_t CarryOutLocked(const board::Order& order, protocol::MmHandle mm) {
  const uint64_t first = order.first_page * kPage;
  const uint64_t end = first + order.pages * kPage;
  int32_t error = 0;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    if ((region.share & kRegionSharedPt) == 0 || !IsSame(region.mm, mm)) continue;
    const uint64_t from = first > region.offset ? first : region.offset;
    const uint64_t region_end = region.offset + region.bytes;
    const uint64_t to = end < region_end ? end : region_end;
    if (from >= to) continue;
    const long result = Carry(order, region, region.va + (from - region.offset), to - from);
    if (raw::Failed(result) && error == 0) error = static_cast<int32_t>(-result);
  }
  return error;
}

// The slot says it before the counter does: the pager believes the slot.
void Acknowledge(int channel, const WatchedBoard& watched, uint64_t sequence, uint32_t packets,
                 int32_t error) {
  board::Slot& slot = watched.acks->slots[watched.slot];
  __atomic_store_n(&slot.packets, packets, __ATOMIC_RELAXED);
  __atomic_store_n(&slot.error, error, __ATOMIC_RELAXED);
  __atomic_store_n(&slot.sequence, sequence, __ATOMIC_RELEASE);
  if (__atomic_sub_fetch(&watched.acks->pending, 1, __ATOMIC_ACQ_REL) > 0) return;
  protocol::Message done = NewMessage(protocol::Kind::kBoardDone);
  done.mm = watched.mm;
  raw::Call(SYS_sendto, channel, &done, sizeof(done), MSG_NOSIGNAL, nullptr, 0);
}

void Look(int channel, WatchedBoard* watched) {
  uint32_t packets;
  int32_t error;
  board::Order order;
  {
    AgentLockHolder hold(g_client.lock);
    // Gone off: the pager may have given this guest's slot to another. The program may have closed
    // the client's descriptor before the client could end the stream; all others would wait for
    // this guest as long as the agent's copy keeps it open.
    if (CurrentPhase() != Phase::kAttached) {
      raw::Call(SYS_shutdown, channel, SHUT_RDWR);
      return;
    }
    // Read under the lock: a mapping that is made meanwhile waits, and gets what holds by then.
    if (!ReadOrder(*watched, &order) || order.sequence == watched->done) return;
    error = CarryOutLocked(order, watched->mm);
    packets = PacketsSent();
    watched->done = order.sequence;
  }
  // An empty board: whatever stood there is over.
  if (order.op == protocol::BoardOp::kNone) return;
  Acknowledge(channel, *watched, order.sequence, packets, error);
}

void Release(WatchedBoard* watched) {
  raw::Call(SYS_munmap, watched->acks, watched->acks_bytes);
  raw::Call(SYS_close, watched->orders);
  // Closing would not take it out of the epoll set: the pager has the same open file.
  raw::Call(SYS_epoll_ctl, g_epoll, EPOLL_CTL_DEL, watched->bell, nullptr);
  raw::Call(SYS_close, watched->bell);
  *watched = {};
  --g_board_count;
}

// Under the lock, which fork takes too: no child inherits the mapping of its parent's board.
board::Acks* MapAcks(int fd, uint64_t bytes) {
  AgentLockHolder hold(g_client.lock);
  const long got = raw::Call(SYS_mmap, nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (raw::Failed(got)) return nullptr;
  raw::Call(SYS_madvise, got, bytes, MADV_DONTFORK);
  return reinterpret_cast<board::Acks*>(got);
}

// The slots up to this guest's own; the board may have more.
uint64_t AcksBytesOf(uint32_t slot) { return RoundUp(board::AcksBytes(uint64_t{slot} + 1), kPage); }

bool Fill(WatchedBoard* watched, int channel, const protocol::Message& order, const int* fds) {
  if (order.value[0] > UINT32_MAX || !EnsureEpoll(channel)) return false;
  watched->slot = static_cast<uint32_t>(order.value[0]);
  watched->acks_bytes = AcksBytesOf(watched->slot);
  watched->acks = MapAcks(fds[kAcksFd], watched->acks_bytes);
  if (watched->acks == nullptr) return false;
  const auto place = static_cast<uint64_t>(watched - g_boards);
  if (!AddToEpoll(fds[kBellFd], EPOLLIN | EPOLLET, place)) {
    raw::Call(SYS_munmap, watched->acks, watched->acks_bytes);
    return false;
  }
  watched->orders = fds[kOrdersFd];
  watched->bell = fds[kBellFd];
  watched->mm = order.mm;
  watched->done = 0;
  ++g_board_count;
  return true;
}

}  // namespace

void WatchBoard(int channel, const protocol::Message& order, const int* fds) {
  UnwatchBoard(order.mm);
  WatchedBoard* watched = FindFree();
  const bool whole = fds[kOrdersFd] >= 0 && fds[kAcksFd] >= 0 && fds[kBellFd] >= 0;
  if (watched == nullptr || !whole || !Fill(watched, channel, order, fds)) {
    for (int i = 0; i < kWatchFds; ++i) {
      if (fds[i] >= 0) raw::Call(SYS_close, fds[i]);
    }
    return;
  }
  raw::Call(SYS_close, fds[kAcksFd]);
  Look(channel, watched);
}

void UnwatchBoard(protocol::MmHandle mm) {
  WatchedBoard* watched = Find(mm);
  if (watched != nullptr) Release(watched);
}

void LookAtBoard(int channel, protocol::MmHandle mm) {
  WatchedBoard* watched = Find(mm);
  if (watched != nullptr) Look(channel, watched);
}

void AwaitPacket(int channel) {
  while (g_board_count != 0) {
    epoll_event events[4];
    const long count = raw::Call(SYS_epoll_pwait, g_epoll, &events[0], 4, -1, nullptr, 8);
    if (count == -EINTR) continue;
    if (raw::Failed(count)) return;
    bool packet = false;
    for (long i = 0; i < count; ++i) {
      if (events[i].data.u64 == kChannelEvent) {
        packet = true;
      } else if (g_boards[events[i].data.u64].mm.generation != 0) {
        Look(channel, &g_boards[events[i].data.u64]);
      }
    }
    if (packet) return;
  }
}

void DropBoards() {
  for (WatchedBoard& watched : g_boards) {
    if (watched.mm.generation != 0) Release(&watched);
  }
  if (g_epoll != 0) raw::Call(SYS_close, g_epoll);
  g_epoll = 0;
}

void ForgetBoards() {
  for (WatchedBoard& watched : g_boards) watched = {};
  g_board_count = 0;
  g_epoll = 0;
}

}  // namespace hostmm::guest
