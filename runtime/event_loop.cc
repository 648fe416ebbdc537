#include "runtime/event_loop.h"

#include <poll.h>
#include <signal.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace hostmm {
namespace {

// Submission entries: a burst of this many registrations goes out in one system call. Arbitrary.
constexpr unsigned kEntries = 1024;

// Tags that are no watch: generation 0.
constexpr uint64_t kTickTag = 1;
constexpr uint64_t kRemoveTag = 2;
constexpr uint64_t kCancelTag = 3;

// Between two attempts to cancel. Arbitrary. (The kernel only reads it.)
__kernel_timespec kCancelPeriod = {.tv_sec = 0, .tv_nsec = 10'000'000};

// Set in the tag of a transfer, whose other bits are its number; so generations of watches have one
// bit less.
constexpr uint64_t kTransferBit = uint64_t{1} << 63;
constexpr uint32_t kGenerations = uint32_t{1} << 31;

uint64_t TagOf(uint32_t slot, uint32_t generation) {
  return (static_cast<uint64_t>(generation) << 32) | slot;
}

// Kernels differ in which thread does a write that has waited for its pipe: it may be ours, and may
// find nobody at the other end.
void BlockSignalsOfWrites() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  sigaddset(&set, SIGXFSZ);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

}  // namespace

absl::StatusOr<std::unique_ptr<EventLoop>> EventLoop::Create() {
  std::unique_ptr<EventLoop> loop(new EventLoop());
  // One thread submits and waits, and completions are worked off when it asks: no interrupt of the
  // fault road (6.1).
  int rc = io_uring_queue_init(kEntries, &loop->ring_,
                               IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  if (rc == -EINVAL) rc = io_uring_queue_init(kEntries, &loop->ring_, 0);
  if (rc == 0) {
    loop->ring_ready_ = true;
    BlockSignalsOfWrites();
    io_uring_register_ring_fd(
        &loop->ring_);  // saves a look-up per wait; without it all is the same
    return loop;
  }
  const char* remedy = "Linux 5.13 or later";
  if (rc == -EPERM)
    remedy = "sysctl kernel.io_uring_disabled=0, or a seccomp profile that allows io_uring";
  if (rc == -ENOMEM) remedy = "ulimit -l unlimited";
  if (rc == -EMFILE) remedy = "ulimit -n 4096";
  return absl::UnavailableError(absl::StrCat("io_uring: ", strerror(-rc), "; remedy: ", remedy));
}

EventLoop::~EventLoop() {
  if (!ring_ready_) return;
  EndAllTransfers();
  io_uring_queue_exit(&ring_);
}

io_uring_sqe* EventLoop::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    io_uring_submit(&ring_);
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void EventLoop::ArmPoll(uint32_t slot) {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_poll_multishot(sqe, slots_[slot].fd, POLLIN | POLLHUP | POLLERR);
  io_uring_sqe_set_data64(sqe, TagOf(slot, slots_[slot].generation));
}

void EventLoop::ArmTick() {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_timeout(sqe, &tick_period_, 0, 0);
  io_uring_sqe_set_data64(sqe, kTickTag);
}

EventLoop::WatchId EventLoop::Watch(int fd, Handler handler) {
  uint32_t slot;
  if (free_slots_.empty()) {
    slot = static_cast<uint32_t>(slots_.size());
    slots_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  slots_[slot].fd = fd;
  slots_[slot].handler = std::make_shared<Handler>(std::move(handler));
  ArmPoll(slot);
  return {slot, slots_[slot].generation};
}

void EventLoop::Unwatch(WatchId* id) {
  const WatchId watch = std::exchange(*id, WatchId{});
  if (watch.generation == 0 || watch.slot >= slots_.size()) return;
  Slot& slot = slots_[watch.slot];
  if (slot.generation != watch.generation || slot.handler == nullptr) return;
  io_uring_sqe* sqe = NextSqe();
  // Not poll_remove: that fails (EALREADY) and leaves the poll, and with it the file, for ever if
  // an event is on its way just then.
  io_uring_prep_cancel64(sqe, TagOf(watch.slot, watch.generation), 0);
  io_uring_sqe_set_data64(sqe, kRemoveTag);
  slot.handler.reset();
  slot.fd = -1;
  slot.queued = false;
  if (++slot.generation == kGenerations) slot.generation = 1;
  free_slots_.push_back(watch.slot);
}

EventLoop::TransferId EventLoop::Begin(io_uring_sqe* sqe, Transfer transfer) {
  const uint64_t number = ++last_transfer_;
  io_uring_sqe_set_data64(sqe, kTransferBit | number);
  transfers_.emplace(number, std::move(transfer));
  return {number};
}

// IOSQE_ASYNC: without it the kernel would copy to or from the page cache here and now, which for
// 2 MiB takes as long as some fifty faults.
EventLoop::TransferId EventLoop::Read(int fd, std::span<std::byte> data, int64_t offset,
                                      TransferDone done) {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_read(sqe, fd, data.data(), static_cast<unsigned>(data.size()),
                     static_cast<uint64_t>(offset));
  sqe->flags |= IOSQE_ASYNC;
  return Begin(sqe, {std::move(done), Transfer::State::kWanted});
}

EventLoop::TransferId EventLoop::Write(int fd, std::span<const std::byte> data, int64_t offset,
                                       TransferDone done) {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_write(sqe, fd, data.data(), static_cast<unsigned>(data.size()),
                      static_cast<uint64_t>(offset));
  sqe->flags |= IOSQE_ASYNC;
  return Begin(sqe, {std::move(done), Transfer::State::kWanted});
}

void EventLoop::Cancel(TransferId id) {
  const auto found = transfers_.find(id.number);
  if (found == transfers_.end()) return;
  found->second.state = Transfer::State::kUnwanted;
  CancelUnwanted();
  if (!cancel_armed_) ArmCancel();
}

// RETURNS whether there is any. A transfer that is just being handed from one thread of the kernel
// to another is not found, and would wait for ever: so this is done again until it has ended.
bool EventLoop::CancelUnwanted() {
  bool any = false;
  for (const auto& [number, transfer] : transfers_) {
    if (transfer.state != Transfer::State::kUnwanted) continue;
    any = true;
    io_uring_sqe* sqe = NextSqe();
    io_uring_prep_cancel64(sqe, kTransferBit | number, 0);
    io_uring_sqe_set_data64(sqe, kRemoveTag);
  }
  return any;
}

void EventLoop::ArmCancel() {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_timeout(sqe, &kCancelPeriod, 0, 0);
  io_uring_sqe_set_data64(sqe, kCancelTag);
  cancel_armed_ = true;
}

void EventLoop::Close(int fd) {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_close(sqe, fd);
  sqe->flags |= IOSQE_ASYNC;
  Begin(sqe, {[](int) {}, Transfer::State::kClose});
}

void EventLoop::Soon(std::function<void()> then) {
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_nop(sqe);
  Begin(sqe, {[then = std::move(then)](int) { then(); }, Transfer::State::kWanted});
}

void EventLoop::EndTransfer(uint64_t tag, int result) {
  const auto found = transfers_.find(tag & ~kTransferBit);
  if (found == transfers_.end()) return;
  const TransferDone done = std::move(found->second.done);
  transfers_.erase(found);  // first: `done` may begin others
  done(result);
}

// Nothing is called any more, but what the calls hold, the memory perhaps, goes only when the
// kernel has done with it.
void EventLoop::EndAllTransfers() {
  for (auto& [number, transfer] : transfers_) {
    if (transfer.state == Transfer::State::kWanted) transfer.state = Transfer::State::kUnwanted;
  }
  while (!transfers_.empty()) {
    CancelUnwanted();
    io_uring_cqe* cqe = nullptr;
    const int rc = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &kCancelPeriod, nullptr);
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY && rc != -ETIME) return;
    while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
      const uint64_t tag = io_uring_cqe_get_data64(cqe);
      io_uring_cqe_seen(&ring_, cqe);
      if ((tag & kTransferBit) != 0) transfers_.erase(tag & ~kTransferBit);
    }
  }
}

void EventLoop::SetTick(absl::Duration period, std::function<void()> tick) {
  const timespec value = absl::ToTimespec(period);
  tick_period_ = {.tv_sec = value.tv_sec, .tv_nsec = value.tv_nsec};
  tick_ = std::move(tick);
  ArmTick();
}

void EventLoop::Dispatch(uint64_t tag) {
  const auto slot = static_cast<uint32_t>(tag);
  const auto generation = static_cast<uint32_t>(tag >> 32);
  if (slot >= slots_.size() || slots_[slot].generation != generation) return;
  const std::shared_ptr<Handler> handler = slots_[slot].handler;
  if (handler == nullptr || (*handler)() != Progress::kMore) return;
  // The handler may have unwatched itself, and moved the slots.
  if (slots_[slot].generation != generation) return;
  slots_[slot].queued = true;
  ready_.push_back(tag);
}

void EventLoop::OnCompletion(uint64_t tag, int result, uint32_t flags) {
  if (tag == kRemoveTag) return;
  if (tag == kCancelTag) {
    cancel_armed_ = false;
    if (CancelUnwanted()) ArmCancel();
    return;
  }
  if ((tag & kTransferBit) != 0) return EndTransfer(tag, result);
  if (tag == kTickTag) {
    ArmTick();
    ArmBroken();
    tick_();
    return;
  }
  const auto slot = static_cast<uint32_t>(tag);
  const bool live =
      slot < slots_.size() && slots_[slot].generation == static_cast<uint32_t>(tag >> 32);
  // The kernel ends a multishot poll when its queue overflows: arm it again before looking, so that
  // nothing is missed.
  if (live && (flags & IORING_CQE_F_MORE) == 0) {
    // With an error (no memory) at once would be too soon.
    if (result >= 0) {
      ArmPoll(slot);
    } else {
      broken_.push_back(tag);
    }
  }
  // One that waits for its turn gets no second one by the edges that come meanwhile.
  if (live && !slots_[slot].queued) Dispatch(tag);
}

void EventLoop::ArmBroken() {
  std::vector<uint64_t> now;
  now.swap(broken_);
  for (const uint64_t tag : now) {
    const auto slot = static_cast<uint32_t>(tag);
    if (slots_[slot].generation == static_cast<uint32_t>(tag >> 32)) ArmPoll(slot);
  }
}

void EventLoop::ServeReady() {
  std::vector<uint64_t> now;
  now.swap(ready_);
  for (const uint64_t tag : now) {
    const auto slot = static_cast<uint32_t>(tag);
    if (slots_[slot].generation != static_cast<uint32_t>(tag >> 32)) continue;
    slots_[slot].queued = false;
    Dispatch(tag);
  }
}

absl::Status EventLoop::Run() {
  stopped_ = false;
  while (!stopped_) {
    const int rc = ready_.empty() ? io_uring_submit_and_wait(&ring_, 1) : io_uring_submit(&ring_);
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY) {
      return absl::InternalError(absl::StrCat("io_uring_enter: ", strerror(-rc)));
    }
    if (!ready_.empty()) io_uring_get_events(&ring_);
    io_uring_cqe* cqe = nullptr;
    // One at a time: a handler may submit, and so move the queue.
    while (!stopped_ && io_uring_peek_cqe(&ring_, &cqe) == 0) {
      const uint64_t tag = io_uring_cqe_get_data64(cqe);
      const int result = cqe->res;
      const uint32_t flags = cqe->flags;
      io_uring_cqe_seen(&ring_, cqe);
      OnCompletion(tag, result, flags);
    }
    if (!stopped_) ServeReady();
  }
  return absl::OkStatus();
}

}  // namespace hostmm
