#include "tests/pager/opt_in_guest.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace hostmm::test {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;
using protocol::Status;

void Add(int epoll, int fd, uint32_t events) {
  epoll_event event = {};
  event.events = events;
  event.data.fd = fd;
  epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

OptInGuest::OptInGuest(const std::string& socket_path, Manner manner)
    : guest_(socket_path),
      manner_(manner),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      stop_(eventfd(0, EFD_CLOEXEC)) {
  if (!guest_.Hello()) return;
  Message attach = NewPacket(Kind::kAttach);
  attach.value[0] = 1;
  if (!guest_.Send(attach)) return;
  packets_ = 2;
  Add(epoll_.get(), guest_.channel(), EPOLLIN);
  Add(epoll_.get(), stop_.get(), EPOLLIN);
  agent_ = std::thread([this] { Run(); });
  ok_ = true;
}

OptInGuest::~OptInGuest() {
  const uint64_t one = 1;
  if (write(stop_.get(), &one, sizeof(one)) != sizeof(one)) return;
  if (agent_.joinable()) agent_.join();
}

std::optional<Message> OptInGuest::Ask(const Message& message, const std::vector<int>& fds,
                                       ScopedFd* received) {
  {
    const std::lock_guard<std::mutex> hold(lock_);
    ++packets_;
  }
  return guest_.Ask(message, fds, received);
}

bool OptInGuest::Map(int file, size_t bytes, int prot) {
  const std::lock_guard<std::mutex> hold(lock_);
  const size_t span = bytes + protocol::kGranule;
  Mapping room(mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
               span);
  const auto start = reinterpret_cast<uintptr_t>(room.data());
  const uintptr_t va = (start + protocol::kGranule - 1) / protocol::kGranule * protocol::kGranule;
  void* at = reinterpret_cast<void*>(va);
  room = Mapping();
  if (mmap(at, bytes, prot, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0) != at) return false;
  region_ = Mapping(at, bytes);
  Message adopt = NewPacket(Kind::kAdopt);
  adopt.va = va;
  adopt.length = bytes;
  adopt.prot = static_cast<uint32_t>(prot);
  adopt.mode = 16;  // kRegionSharedPt
  adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
  ++packets_;
  const std::optional<Message> answer = guest_.Ask(adopt, {file});
  if (!answer.has_value() || answer->status != Status::kOk) return false;
  mm_ = answer->mm;
  // The others' protection, run by run.
  Message access = NewPacket(Kind::kAccess);
  for (access.va = va; access.va < va + bytes;) {
    ++packets_;
    const std::optional<Message> run = guest_.Ask(access);
    if (!run.has_value() || run->length == 0) return false;
    mprotect(reinterpret_cast<void*>(access.va), run->length, static_cast<int>(run->prot));
    access.va += run->length;
  }
  return true;
}

int OptInGuest::Protect(uint64_t offset, uint64_t bytes, int prot) {
  Message ask = NewPacket(Kind::kForAll);
  ask.va = reinterpret_cast<uintptr_t>(region_.data()) + offset;
  ask.length = bytes;
  ask.prot = static_cast<uint32_t>(prot);
  ask.value[1] = static_cast<uint64_t>(protocol::BoardOp::kProtect);
  const std::optional<Message> answer = Ask(ask);
  if (!answer.has_value()) return -1;
  return answer->status == Status::kOk ? 0 : static_cast<int>(answer->value[1]);
}

void OptInGuest::Run() {
  for (;;) {
    epoll_event event;
    if (epoll_wait(epoll_.get(), &event, 1, -1) != 1) continue;
    if (event.data.fd == stop_.get()) return;
    ++woken_;
    if (event.data.fd == guest_.channel()) {
      Packet packet;
      const ReceiveResult got = ReceivePacket(guest_.channel(), &packet);
      if (got == ReceiveResult::kNothing) continue;
      if (got != ReceiveResult::kPacket) return;
      if (packet.message.op == OrderOp::kWatch) {
        int fds[3];
        for (int i = 0; i < 3; ++i) fds[i] = packet.fds[static_cast<size_t>(i)].release();
        const std::lock_guard<std::mutex> hold(lock_);
        Watch(fds, static_cast<uint32_t>(packet.message.value[0]));
      }
    }
    if (manner_ == Manner::kHonest) Look();
  }
}

void OptInGuest::Watch(int* fds, uint32_t slot) {
  orders_ = ScopedFd(fds[0]);
  const ScopedFd acks(fds[1]);
  bell_ = ScopedFd(fds[2]);
  struct stat info;
  fstat(acks.get(), &info);
  const auto bytes = static_cast<size_t>(info.st_size);
  acks_ = Mapping(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, acks.get(), 0), bytes);
  slot_ = slot;
  last_ = 0;
  Add(epoll_.get(), bell_.get(), EPOLLIN | EPOLLET);
}

void OptInGuest::Look() {
  std::unique_lock<std::mutex> hold(lock_);
  board::Order order = {};
  if (!orders_.valid() || pread(orders_.get(), &order, sizeof(order), 0) != sizeof(order)) return;
  if (order.sequence == 0 || order.sequence == last_) return;
  last_ = order.sequence;
  if (order.op == protocol::BoardOp::kNone) return;
  int error = 0;
  const uint64_t from = order.first_page * kPage;
  const uint64_t to = std::min<uint64_t>(from + order.pages * kPage, region_.size());
  if (order.op == protocol::BoardOp::kProtect && from < to) {
    error =
        mprotect(region_.data() + from, to - from, static_cast<int>(order.prot)) == 0 ? 0 : errno;
  }
  auto* acks = reinterpret_cast<board::Acks*>(acks_.data());
  board::Slot& slot = acks->slots[slot_];
  slot.packets = packets_;
  slot.error = error;
  std::atomic_ref(slot.sequence).store(order.sequence, std::memory_order_release);
  ++carried_out_;
  hold.unlock();
  if (std::atomic_ref(acks->pending).fetch_sub(1) > 1) return;
  Message done = NewPacket(Kind::kBoardDone);
  done.mm = mm_;
  guest_.Send(done);
}

}  // namespace hostmm::test
