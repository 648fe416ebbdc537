#include "tests/oracle/actor.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <variant>

#include "tests/oracle/guarded_access.h"

namespace hostmm::oracle {
namespace {

// Beyond the end of what is mapped in a window: there must be faults too.
constexpr uint64_t kSlack = 4;
constexpr uint64_t kMostPeeked = 3;  // pages

char* Pointer(uint64_t address) { return reinterpret_cast<char*>(address); }

}  // namespace

Actor::Actor(Control* control, uint32_t number) : control_(control), number_(number) {
  CatchFaults();
}

void Actor::Serve() {
  for (;;) {
    while (!Await(box(), kActor, std::chrono::seconds(1))) {
      if (kill(control_->stepper, 0) != 0) _exit(1);
    }
    const Operation operation = box().operation;
    const Observation seen = std::visit([this](const auto& op) { return Do(op); }, operation);
    // A fork has made another mailbox ours.
    box().seen = seen;
    SetTurn(box(), kStepper);
  }
}

Actor::Range Actor::Locate(const SlotState& slot, uint64_t page, uint64_t pages, uint32_t twist) {
  if (slot.floating) {
    page %= slot.pages;
    pages = std::min(pages, slot.pages - page);
  } else {
    page %= slot.pages + kSlack;
  }
  Range range = {page, pages, slot.base + page * kPage, pages * kPage};
  if (twist == kCrooked) range.address += 1;
  if (twist == kEmpty) range.bytes = 0;
  if (twist == kWrapping) range.bytes = ~uint64_t{kPage - 1};
  return range;
}

Observation Actor::Do(const ReadOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, 1, kStraight);
  Observation seen;
  const uint64_t byte = op.byte % kPage;
  if (byte == 0) {
    ReadPages(Pointer(range.address), 1, Pointer(slot.base), &seen);
  } else {
    ReadByte(Pointer(range.address + byte), Pointer(slot.base), &seen);
  }
  return seen;
}

Observation Actor::Do(const WriteOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, 1, kStraight);
  Observation seen;
  const uint64_t byte = op.byte % kPage;
  char* const base = Pointer(slot.base);
  if (byte == 0) {
    StampPages(Pointer(range.address), 1, number_, box().sequence, base, &seen);
  } else {
    WriteByte(Pointer(range.address + byte), static_cast<char>(box().sequence), base, &seen);
  }
  return seen;
}

Observation Actor::Do(const ExecuteOp& op) {
  const SlotState& slot = Slot(op.slot);
  Observation seen;
  Execute(Pointer(Locate(slot, op.page, 1, kStraight).address), Pointer(slot.base), &seen);
  return seen;
}

Observation Actor::Do(const ScanOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, op.pages, kStraight);
  Observation seen;
  ReadPages(Pointer(range.address), range.pages, Pointer(slot.base), &seen);
  return seen;
}

Observation Actor::Do(const FillOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, op.pages, kStraight);
  Observation seen;
  StampPages(Pointer(range.address), range.pages, number_, box().sequence, Pointer(slot.base),
             &seen);
  return seen;
}

Observation Actor::Do(const ReceiveOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, 1, kStraight);
  const uint64_t left = (slot.floating ? slot.pages - range.page : kSlack) * kPage;
  const uint64_t byte = op.byte % kPage;
  const uint64_t bytes = std::min<uint64_t>(op.bytes, left - byte);
  return Counted(pread(control_->source_fd, Pointer(range.address + byte), bytes, 0));
}

Observation Actor::Do(const SendOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, 1, kStraight);
  const uint64_t left = (slot.floating ? slot.pages - range.page : kSlack) * kPage;
  const uint64_t byte = op.byte % kPage;
  const uint64_t bytes = std::min<uint64_t>(op.bytes, left - byte);
  Observation seen = Counted(pwrite(control_->sink_fd, Pointer(range.address + byte), bytes, 0));
  if (seen.outcome != Outcome::kOk) return seen;
  static char arrived[4 * kPage];
  const ssize_t got = pread(control_->sink_fd, arrived, static_cast<size_t>(seen.place), 0);
  seen.value = Digest(arrived, static_cast<uint64_t>(std::max<ssize_t>(got, 0)));
  return seen;
}

Observation Actor::Do(const ObjectReadOp& op) {
  const Object* object = FindObject(op.object);
  if (object == nullptr || object->fd < 0) return Skipped();
  char page[kPage];
  Observation seen =
      Counted(pread(object->fd, page, sizeof(page), static_cast<off_t>(op.page * kPage)));
  if (seen.place > 0) seen.value = Digest(page, static_cast<uint64_t>(seen.place));
  return seen;
}

Observation Actor::Do(const ObjectWriteOp& op) {
  const Object* object = FindObject(op.object);
  if (object == nullptr || object->fd < 0) return Skipped();
  const Stamp stamp = MakeStamp(number_, box().sequence, op.page);
  return Counted(pwrite(object->fd, &stamp, sizeof(stamp), static_cast<off_t>(op.page * kPage)));
}

Observation Actor::Do(const TruncateOp& op) {
  const Object* object = FindObject(op.object);
  if (object == nullptr || object->fd < 0) return Skipped();
  return Counted(ftruncate(object->fd, static_cast<off_t>(op.pages * kPage + op.bytes)));
}

Observation Actor::Do(const PunchOp& op) {
  const Object* object = FindObject(op.object);
  if (object == nullptr || object->fd < 0) return Skipped();
  return Counted(fallocate(object->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                           static_cast<off_t>(op.page * kPage),
                           static_cast<off_t>(op.pages * kPage)));
}

Observation Actor::Do(const CountAttachedOp& op) {
  const Object* object = FindObject(op.object);
  if (object == nullptr || object->shmid < 0) return Skipped();
  shmid_ds info = {};
  Observation seen = Counted(shmctl(object->shmid, IPC_STAT, &info));
  seen.value = info.shm_nattch;
  return seen;
}

Observation Actor::Do(const PeekOp& op) {
  const Mailbox& other = control_->boxes[box().other];
  const SlotState& slot = other.slots[op.slot % kSlots];
  const Range range = Locate(slot, op.page, std::min<uint64_t>(op.pages, kMostPeeked), kStraight);
  static char copy[kMostPeeked * kPage];
  const iovec local = {copy, range.bytes};
  const iovec remote = {Pointer(range.address), range.bytes};
  Observation seen = Counted(process_vm_readv(other.pid, &local, 1, &remote, 1, 0));
  if (seen.place > 0) seen.value = Digest(copy, static_cast<uint64_t>(seen.place));
  return seen;
}

Observation Actor::Do(const PokeOp& op) {
  const Mailbox& other = control_->boxes[box().other];
  const SlotState& slot = other.slots[op.slot % kSlots];
  const Range range = Locate(slot, op.page, 1, kStraight);
  Stamp stamp = MakeStamp(number_, box().sequence, range.page);
  const iovec local = {&stamp, sizeof(stamp)};
  const iovec remote = {Pointer(range.address), sizeof(stamp)};
  return Counted(process_vm_writev(other.pid, &local, 1, &remote, 1, 0));
}

Observation Actor::Do(const ForkOp& op) {
  const uint32_t child = box().other;
  // A child's memory is not locked, and plain Linux leaves the borders of what was locked in it,
  // where a registration removes them: only mremap could tell.
  munlockall();
  const pid_t pid = op.how % kForkHows == kFork ? fork() : _Fork();
  Mailbox& box_of_child = control_->boxes[child];
  if (pid == 0) {
    memcpy(box_of_child.slots, box().slots, sizeof(box().slots));
    number_ = child;
    // What was moved out of a window with MADV_DONTFORK is not here.
    for (const SlotState& slot : box().slots) PlugHoles(slot);
    return {};
  }
  box_of_child.pid = pid;
  return pid > 0 ? Observation{} : Counted(-1);
}

Observation Actor::Do(const ExitOp&) { _exit(0); }

Observation Actor::Do(const KillOp&) {
  return Counted(kill(control_->boxes[box().other].pid, SIGKILL));
}

const Object* Actor::FindObject(uint32_t number) const {
  if (control_->object_count == 0) return nullptr;
  return &control_->objects[number % control_->object_count];
}

Observation Actor::Counted(long result) {
  Observation seen;
  if (result == -1) {
    seen.outcome = Outcome::kErrno;
    seen.number = errno;
  } else {
    seen.place = result;
  }
  return seen;
}

Observation Actor::Skipped() {
  Observation seen;
  seen.outcome = Outcome::kSkipped;
  return seen;
}

}  // namespace hostmm::oracle
