#include "runtime/board_set.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "runtime/sys_error.h"

namespace hostmm {
namespace {

// Shared with processes that we do not trust: each word is read and written once, as a whole.
template <class T>
std::atomic_ref<T> Shared(T& word) {
  return std::atomic_ref<T>(word);
}

absl::StatusOr<UniqueFd> NewAcksFile(uint64_t bytes) {
  UniqueFd file(memfd_create("hostmm-acks", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.ok()) return SysError("memfd_create(hostmm-acks)");
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    return SysError(absl::StrCat("ftruncate(acks, ", bytes, ")"));
  }
  // A guest that cut it off would make our next read of a slot a SIGBUS.
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (fcntl(file.get(), F_ADD_SEALS, seals) != 0) return SysError("fcntl(F_ADD_SEALS)");
  return file;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Board>> Board::Create(uint32_t slots) {
  std::unique_ptr<Board> made(new Board());
  absl::StatusOr<SharedSegment> orders = SharedSegment::Create(kPageSize);
  if (!orders.ok()) return orders.status();
  made->orders_ = *std::move(orders);
  const uint64_t bytes = board::AcksBytes(slots);
  absl::StatusOr<UniqueFd> acks = NewAcksFile(bytes);
  if (!acks.ok()) return acks.status();
  made->acks_fd_ = *std::move(acks);
  made->acks_ = Mapping(
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, made->acks_fd_.get(), 0), bytes);
  if (!made->acks_.ok()) return SysError(absl::StrCat("mmap(acks, ", bytes, ")"));
  made->slots_ = slots;
  // Not an eventfd: its one open file would be everybody's, and a guest that cleared O_NONBLOCK and
  // filled the counter could make us wait for ever.
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return SysError("pipe2");
  made->bell_.reset(ends[0]);
  made->striker_.reset(ends[1]);
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", ends[0]);
  made->drain_.reset(open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!made->drain_.ok()) return SysError(absl::StrCat("open(", path, ")"));
  // So that the first reader does not take an order that was never written for one being written.
  made->Clear(Note::kNo);
  return made;
}

uint64_t Board::Write(const board::Order& next) {
  board::Order& now = *order();
  Shared(now.sequence).store(0, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_release);
  Shared(now.first_page).store(next.first_page, std::memory_order_relaxed);
  Shared(now.pages).store(next.pages, std::memory_order_relaxed);
  Shared(now.op).store(next.op, std::memory_order_relaxed);
  Shared(now.prot).store(next.prot, std::memory_order_relaxed);
  Shared(now.advice).store(next.advice, std::memory_order_relaxed);
  Shared(now.sequence).store(++sequence_, std::memory_order_release);
  return sequence_;
}

void Board::Clear(Note note) {
  board::Order empty = {};
  if (note == Note::kYes) empty.op = protocol::BoardOp::kProtect;
  Write(empty);
}

void Board::SetPending(int32_t count) {
  Shared(acks()->pending).store(count, std::memory_order_release);
}

void Board::AddPending(int32_t count) {
  Shared(acks()->pending).fetch_add(count, std::memory_order_acq_rel);
}

board::Slot Board::Read(uint32_t slot) const {
  if (slot >= slots_) return {};
  board::Slot& shared = acks()->slots[slot];
  board::Slot read;
  // The rest is that of this order: a slot changes once for each.
  read.sequence = Shared(shared.sequence).load(std::memory_order_acquire);
  read.packets = Shared(shared.packets).load(std::memory_order_relaxed);
  read.error = Shared(shared.error).load(std::memory_order_relaxed);
  return read;
}

void Board::Reset(uint32_t slot) {
  if (slot >= slots_) return;
  Shared(acks()->slots[slot].sequence).store(0, std::memory_order_release);
}

Board::RingResult Board::Ring() const {
  // Emptied first: before 5.14 a write to a pipe that is not empty wakes nobody. An agent that
  // looks in between finds it empty and sleeps, and the write wakes it. Once only: somebody may be
  // filling it all the time.
  char rest[4096];
  (void)!read(drain_.get(), rest, sizeof(rest));
  return write(striker_.get(), "!", 1) == 1 ? RingResult::kRung : RingResult::kRefused;
}

SendResult Board::SendTo(int channel, const protocol::Message& watch) const {
  const std::array<int, 3> fds = {orders_.fd.get(), acks_fd_.get(), bell_.get()};
  return SendPacket(channel, watch, fds);
}

Board* BoardSet::Find(MmId mm) const {
  const auto it = boards_.find(KeyOf(mm));
  return it == boards_.end() ? nullptr : it->second.board.get();
}

uint32_t BoardSet::WatchersOf(MmId mm) const {
  const auto it = boards_.find(KeyOf(mm));
  return it == boards_.end() ? 0 : it->second.watchers;
}

BoardSet::WatchResult BoardSet::Watch(Guest& guest, MmId mm) {
  const auto same = [mm](const WatchedBoard& watched) { return watched.mm == mm; };
  if (std::ranges::any_of(guest.boards, same)) return WatchResult::kWatching;
  Entry& entry = boards_[KeyOf(mm)];
  if (entry.board == nullptr) {
    absl::StatusOr<std::unique_ptr<Board>> made = Board::Create(slots_);
    if (!made.ok()) {
      boards_.erase(KeyOf(mm));
      return WatchResult::kNoBoard;
    }
    entry.board = *std::move(made);
  }
  // The slot may still say what an earlier guest has done.
  entry.board->Reset(guest.id.slot);
  ++entry.watchers;
  guest.boards.push_back({mm, WatchedBoard::Told::kNo});
  Tell(guest, &guest.boards.back());
  return WatchResult::kWatching;
}

void BoardSet::Tell(Guest& guest, WatchedBoard* watched) {
  const Board* found = Find(watched->mm);
  if (found == nullptr) return;
  protocol::Message watch = NewPacket(protocol::Kind::kOrder);
  watch.op = protocol::OrderOp::kWatch;
  watch.mm = {watched->mm.slot, watched->mm.generation};
  watch.value[0] = guest.id.slot;
  if (guest.has_agent && found->SendTo(guest.channel.fd.get(), watch) == SendResult::kSent) {
    watched->told = WatchedBoard::Told::kYes;
  } else {
    untold_[guest.id.slot] = guest.id;
  }
}

void BoardSet::TellAgain(Guest& guest) {
  for (WatchedBoard& watched : guest.boards) {
    watched.told = WatchedBoard::Told::kNo;
    Tell(guest, &watched);
  }
}

void BoardSet::Unwatch(Guest& guest, MmId mm) {
  const auto same = [mm](const WatchedBoard& watched) { return watched.mm == mm; };
  const auto it = std::ranges::find_if(guest.boards, same);
  if (it == guest.boards.end()) return;
  if (it->told == WatchedBoard::Told::kYes && guest.has_agent) {
    protocol::Message order = NewPacket(protocol::Kind::kOrder);
    order.op = protocol::OrderOp::kUnwatch;
    order.mm = {mm.slot, mm.generation};
    // If it is lost, the agent keeps a board on which nothing for it is ever written.
    SendPacket(guest.channel.fd.get(), order);
  }
  guest.boards.erase(it);
  Leave(mm);
}

void BoardSet::Drop(Guest& guest) {
  for (const WatchedBoard& watched : guest.boards) Leave(watched.mm);
  guest.boards.clear();
  untold_.erase(guest.id.slot);
}

void BoardSet::Leave(MmId mm) {
  const auto it = boards_.find(KeyOf(mm));
  if (it != boards_.end() && --it->second.watchers == 0) boards_.erase(it);
}

void BoardSet::Tick() {
  const std::vector<std::pair<uint32_t, GuestId>> now(untold_.begin(), untold_.end());
  untold_.clear();
  for (const auto& [slot, id] : now) {
    Guest* guest = guests_->Find(id);
    // Without an agent it is told when it has one.
    if (guest == nullptr || !guest->has_agent) continue;
    for (WatchedBoard& watched : guest->boards) {
      if (watched.told == WatchedBoard::Told::kNo) Tell(*guest, &watched);
    }
  }
}

}  // namespace hostmm
