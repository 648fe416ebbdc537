// The operations of an actor that change what is mapped, and its care that a hole stays a hole.
#include <errno.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "tests/oracle/actor.h"
#include "tests/oracle/known_differences.h"

// Newer than the headers of Debian 12.
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

namespace hostmm::oracle {
namespace {

char* Pointer(uint64_t address) { return reinterpret_cast<char*>(address); }

uint64_t WindowOf(uint32_t slot) { return kWindows + (slot % kSlots) * kWindowBytes; }

constexpr int kNothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

bool MovesTo(uint32_t how) { return how == kMoveTo || how == kKeepOldTo || how == kDuplicateTo; }
bool KeepsOld(uint32_t how) {
  return how == kKeepOld || how == kKeepOldTo || how == kDuplicate || how == kDuplicateTo;
}

int RemapFlags(uint32_t how) {
  if (how == kStay) return 0;
  int flags = MREMAP_MAYMOVE;
  if (MovesTo(how)) flags |= MREMAP_FIXED;
  if (how == kKeepOld || how == kKeepOldTo) flags |= MREMAP_DONTUNMAP;
  return flags;
}

int PlaceFlags(uint32_t place) {
  if (place == kFixed) return MAP_FIXED;
  return place == kNoReplace ? MAP_FIXED_NOREPLACE : 0;
}

}  // namespace

void Actor::Release(uint32_t slot) {
  SlotState& state = Slot(slot);
  if (state.pages != 0 && munmap(Pointer(state.base), state.pages * kPage) != 0) _exit(2);
  state = {.base = WindowOf(slot), .pages = 0, .attached_page = 0, .floating = false};
}

void Actor::SetFloating(uint32_t slot, void* base, uint64_t pages) {
  Slot(slot) = {reinterpret_cast<uint64_t>(base), pages, 0, true};
}

void Actor::Plug(const SlotState& slot, uint64_t page, uint64_t pages) {
  if (pages == 0) return;
  void* const at = Pointer(slot.base + page * kPage);
  if (mmap(at, pages * kPage, PROT_NONE, kNothing | MAP_FIXED, -1, 0) != at) _exit(2);
}

void Actor::PlugHoles(const SlotState& slot) {
  if (!slot.floating) return;
  std::vector<unsigned char> resident(slot.pages);
  if (mincore(Pointer(slot.base), slot.pages * kPage, resident.data()) == 0) return;
  for (uint64_t page = 0; page < slot.pages; ++page) {
    mmap(Pointer(slot.base + page * kPage), kPage, PROT_NONE, kNothing | MAP_FIXED_NOREPLACE, -1,
         0);
  }
}

Observation Actor::Do(const MapOp& op) {
  const uint32_t place = op.place % kPlaces;
  const Object* object = op.source < kFirstObject ? nullptr : FindObject(op.source - kFirstObject);
  const bool is_segment = object != nullptr && object->shmid >= 0;
  // Only a fixed mapping goes into a floating slot, as something that replaces a part.
  if (place == kAnywhere || (Slot(op.slot).floating && (place != kFixed || is_segment))) {
    Release(op.slot);
  }
  return is_segment ? Attach(op, *object) : MapFile(op, object);
}

Observation Actor::MapFile(const MapOp& op, const Object* object) {
  const SlotState& slot = Slot(op.slot);
  const uint32_t place = op.place % kPlaces;
  uint64_t page = op.page;
  uint64_t pages = std::max<uint64_t>(op.pages, 1);
  if (slot.floating) {
    page %= slot.pages;
    pages = std::min(pages, slot.pages - page);
  }
  const uint64_t wanted = place == kAnywhere ? 0 : slot.base + page * kPage;
  int flags = PlaceFlags(place);
  flags |= op.source == kAnonymousPrivate ? MAP_PRIVATE : MAP_SHARED;
  if (object == nullptr) flags |= MAP_ANONYMOUS;
  if ((op.flags & kPopulate) != 0) flags |= MAP_POPULATE;
  if ((op.flags & kLocked) != 0) flags |= MAP_LOCKED;
  if ((op.flags & kNoReserve) != 0) flags |= MAP_NORESERVE;
  int fd = -1;
  if (object != nullptr) {
    fd = (op.flags & kReadOnlyDescriptor) != 0 ? object->read_only_fd : object->fd;
  }
  void* const got =
      mmap(Pointer(wanted), pages * kPage - op.trim % kPage, static_cast<int>(op.prot & 7), flags,
           fd, object == nullptr ? 0 : static_cast<off_t>(op.object_page * kPage));
  return Placed(op, wanted, pages, got);
}

Observation Actor::Attach(const MapOp& op, const Object& object) {
  const SlotState& slot = Slot(op.slot);
  const uint32_t place = op.place % kPlaces;
  const uint64_t wanted = place == kAnywhere ? 0 : slot.base + op.page * kPage;
  int flags = 0;
  if ((op.prot & PROT_WRITE) == 0) flags |= SHM_RDONLY;
  if ((op.prot & PROT_EXEC) != 0) flags |= SHM_EXEC;
  if (place == kFixed) flags |= SHM_REMAP;
  // Rounded down by the kernel, or refused by it.
  const uint64_t crooked = wanted == 0 ? 0 : op.trim % kPage;
  if (op.flags != 0) flags |= SHM_RND;
  void* const got = shmat(object.shmid, Pointer(wanted + crooked), flags);
  const Observation seen = Placed(op, wanted, object.pages, got);
  if (seen.outcome == Outcome::kOk) Slot(op.slot).attached_page = wanted == 0 ? 0 : op.page;
  return seen;
}

Observation Actor::Placed(const MapOp& op, uint64_t wanted, uint64_t pages, void* got) {
  SlotState& slot = Slot(op.slot);
  if (got == MAP_FAILED) {
    const Observation seen = Counted(-1);
    PlugHoles(slot);
    return seen;
  }
  const bool as_wanted = wanted != 0 && got == Pointer(wanted);
  if (as_wanted) {
    slot.pages = std::max(slot.pages, (wanted - slot.base) / kPage + pages);
  } else {
    Release(op.slot);
    SetFloating(op.slot, got, pages);
  }
  return Counted(as_wanted ? 1 : 0);
}

Observation Actor::Do(const UnmapOp& op) {
  SlotState& slot = Slot(op.slot);
  const Range range = Locate(slot, op.page, op.pages, op.twist);
  const Observation seen = Counted(munmap(Pointer(range.address), range.bytes));
  if (!slot.floating || seen.outcome != Outcome::kOk) return seen;
  if (range.pages == slot.pages) {
    slot.pages = 0;
    Release(op.slot);
  } else {
    Plug(slot, range.page, range.pages);
  }
  return seen;
}

// What is asked for, made such that plain Linux can do it in one way only.
RemapOp Actor::Definite(RemapOp op) {
  const SlotState& slot = Slot(op.slot);
  op.how %= kRemapHows;
  if (!slot.floating) return op;
  const Range from = Locate(slot, op.page, op.old_pages, kStraight);
  // Only the same length may keep the old mapping.
  if (op.old_pages == op.new_pages) op.new_pages = static_cast<uint32_t>(from.pages);
  op.page = static_cast<uint32_t>(from.page);
  op.old_pages = static_cast<uint32_t>(from.pages);
  // Whether it can grow where it is depends on what lies behind it: it grows as a whole, and may
  // move.
  if (op.new_pages > op.old_pages && (op.how == kStay || op.how == kMayMove)) {
    op.how = kMayMove;
    op.page = 0;
    op.old_pages = static_cast<uint32_t>(slot.pages);
    op.new_pages = std::max(op.new_pages, op.old_pages);
    op.to_slot = op.slot;
  }
  return op;
}

Observation Actor::Do(const RemapOp& raw) {
  const RemapOp op = Definite(raw);
  const SlotState& slot = Slot(op.slot);
  if (MovesTo(op.how) && Slot(op.to_slot).floating) {
    if (op.to_slot % kSlots == op.slot % kSlots) return Skipped();
    Release(op.to_slot);
  }
  const Range from = Locate(slot, op.page, op.old_pages, kStraight);
  if (control_->known == kLeaveKnownOut && MovesSeveralMappings(from.address, from.bytes)) {
    return Skipped();
  }
  const bool duplicates = op.how == kDuplicate || op.how == kDuplicateTo;
  uint64_t new_bytes = op.new_pages * kPage;
  if (op.twist == kEmpty) new_bytes = 0;
  if (op.twist == kWrapping) new_bytes = ~uint64_t{kPage - 1};
  void* const got =
      mremap(Pointer(from.address + (op.twist == kCrooked ? 1 : 0)), duplicates ? 0 : from.bytes,
             new_bytes, RemapFlags(op.how), Pointer(WindowOf(op.to_slot) + op.to_page * kPage));
  if (got != MAP_FAILED) return Remapped(op, from, static_cast<char*>(got));
  const Observation seen = Counted(-1);
  PlugHoles(slot);
  return seen;
}

Observation Actor::Remapped(const RemapOp& op, const Range& from, char* got) {
  SlotState& slot = Slot(op.slot);
  SlotState& target = Slot(op.to_slot);
  const bool in_place = got == Pointer(from.address);
  const bool keeps_old = KeepsOld(op.how);
  const bool was_floating = slot.floating;
  const bool whole = from.page == 0 && from.pages == slot.pages;
  const uint64_t new_pages = op.new_pages;
  if (in_place) {
    if (was_floating)
      Plug(slot, from.page + new_pages, from.pages - std::min(from.pages, new_pages));
    slot.pages = std::max(slot.pages, from.page + new_pages);
  } else {
    if (was_floating && !keeps_old && whole) slot.pages = 0;
    if (was_floating && !keeps_old && !whole) Plug(slot, from.page, from.pages);
    if (was_floating && slot.pages == 0) Release(op.slot);
    if (MovesTo(op.how)) {
      const uint64_t end = (reinterpret_cast<uint64_t>(got) - target.base) / kPage + new_pages;
      target.pages = std::max(target.pages, end);
    } else {
      Release(op.to_slot);
      SetFloating(op.to_slot, got, new_pages);
    }
  }
  return Counted(in_place && !was_floating ? 1 : 0);
}

Observation Actor::Do(const ProtectOp& op) {
  const Range range = Locate(Slot(op.slot), op.page, op.pages, op.twist);
  // A lie: advice that changes nothing fails much like mprotect.
  if (control_->wrong == Wrong::kProtect) {
    return Counted(madvise(Pointer(range.address), range.bytes, MADV_NORMAL));
  }
  return Counted(mprotect(Pointer(range.address), range.bytes, static_cast<int>(op.prot & 7)));
}

Observation Actor::Do(const AdviseOp& op) {
  const SlotState& slot = Slot(op.slot);
  // The child of a fork would have holes in a floating slot, and would not know where.
  if (slot.floating && op.advice == MADV_DONTFORK) return Skipped();
  const Range range = Locate(slot, op.page, op.pages, op.twist);
  int advice = static_cast<int>(op.advice);
  // A lie: the data stays.
  if (control_->wrong == Wrong::kRemove && advice == MADV_REMOVE) advice = MADV_DONTNEED;
  return Counted(madvise(Pointer(range.address), range.bytes, advice));
}

Observation Actor::Do(const LockOp& op) {
  const Range range = Locate(Slot(op.slot), op.page, op.pages, kStraight);
  return Counted(op.lock % 2 == 1 ? mlock(Pointer(range.address), range.bytes)
                                  : munlock(Pointer(range.address), range.bytes));
}

Observation Actor::Do(const DetachOp& op) {
  const SlotState& slot = Slot(op.slot);
  const Observation seen = Counted(shmdt(Pointer(slot.base + slot.attached_page * kPage)));
  if (slot.floating && seen.outcome == Outcome::kOk) Release(op.slot);
  return seen;
}

}  // namespace hostmm::oracle
