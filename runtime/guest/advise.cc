// madvise of memory that is not opt-in. What it means for frozen memory, views and copy-on-write
// memory:
//
//                  frozen            copy-on-write       the child's view of it,  view
//                                                        and what went private
//   MADV_REMOVE    the pager's       EINVAL: no file     EINVAL                   the kernel's
//   MADV_DONTNEED  the kernel's      zeros: a hole       zeros: plain memory      the kernel's:
//   what and MADV_FREE                    in its file         in its place             was written
//   goes MADV_DOFORK    the kernel's      the kernel's        the kernel's             EINVAL
//
// All else is the kernel's.
#include <errno.h>
#include <sys/mman.h>

#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/cow.h"
#include "runtime/guest/late_answer.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/uapi_compat.h"

namespace hostmm::guest {
namespace {

using protocol::Kind;
using protocol::Message;

// What the pager is asked to remove at once: it copies it first. Arbitrary: far below what takes as
// long as a pager that is gone.
constexpr uint64_t kRemoveBytes = uint64_t{64} << 20;

// A part of a range that is all of one kind.
struct Part {
  uint64_t end;
  enum class Kind : uint8_t { kOther, kFrozen, kCow, kOfFile, kView } kind;
  bool frozen;
};

Part::Kind KindOfPart(const Region& region) {
  if (IsCowView(region) || IsGonePrivate(region)) return Part::Kind::kOfFile;
  if (IsView(region)) return Part::Kind::kView;
  if (IsCow(region)) return Part::Kind::kCow;
  return region.frozen ? Part::Kind::kFrozen : Part::Kind::kOther;
}

Part PartAt(uint64_t at, uint64_t end) {
  GuestLockHolder hold(g_client.lock);
  const Region* next = g_client.regions.FindNext(at);
  if (next == nullptr || next->va >= end) return {end, Part::Kind::kOther, false};
  if (next->va > at) return {next->va, Part::Kind::kOther, false};
  const uint64_t next_end = next->va + next->bytes;
  return {next_end < end ? next_end : end, KindOfPart(*next), next->frozen};
}

// Removes frozen memory: whoever needs it as it was has it first.
long RemoveFrozen(uint64_t va, uint64_t end) {
  for (; va < end; va += kRemoveBytes) {
    const uint64_t bytes = end - va < kRemoveBytes ? end - va : kRemoveBytes;
    Message answer;
    const long removed =
        AskLate(RangeMessage(Kind::kRemove, va, bytes), nullptr, 0, &answer, nullptr);
    if (removed != 0) return removed;
  }
  return 0;
}

// No errno: it is frozen, and has to be removed by the pager.
constexpr long kFrozenNow = 1;

// REQUIRES: the lock.
bool HasFrozenIn(uint64_t va, uint64_t end) {
  for (const Region* next = g_client.regions.FindNext(va); next != nullptr && next->va < end;
       next = g_client.regions.FindNext(va)) {
    if (next->frozen && !IsView(*next)) return true;
    va = next->va + next->bytes;
  }
  return false;
}

long AdviseNatively(uint64_t addr, uint64_t bytes, int advice) {
  // Only these change what the pager must know; everything else (populate, prefetch, page-out, ...)
  // the kernel does, and must do without our lock, because it may wait for the pager.
  uint64_t set = 0;
  uint64_t clear = 0;
  switch (advice) {
    case MADV_REMOVE:
      break;
    case MADV_DONTFORK:
      set = kRegionDontFork;
      break;
    case MADV_DOFORK:
      clear = kRegionDontFork;
      break;
    case MADV_HUGEPAGE:
      set = kRegionHintHuge;
      clear = kRegionHintSmall;
      break;
    case MADV_NOHUGEPAGE:
      set = kRegionHintSmall;
      clear = kRegionHintHuge;
      break;
    default:
      return raw::Call(SYS_madvise, addr, bytes, advice);
  }
  GuestLockHolder hold(g_client.lock);
  // Since the caller has looked it may have been frozen.
  if (advice == MADV_REMOVE && HasFrozenIn(addr, addr + RoundUp(bytes, kPage))) return kFrozenNow;
  const long result = raw::Call(SYS_madvise, addr, bytes, advice);
  if (result != 0) return result;
  const uint64_t whole = RoundUp(bytes, kPage);
  if (advice == MADV_DONTFORK || advice == MADV_DOFORK) {
    g_client.regions.SetDontFork(addr, whole, advice == MADV_DONTFORK);
  }
  Message note = RangeMessage(advice == MADV_REMOVE ? Kind::kPunch : Kind::kFlags, addr, whole);
  note.value[0] = set;
  note.value[1] = clear;
  NoteLocked(note);
  return result;
}

bool DropsContent(int advice) {
  return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_DONTNEED_LOCKED;
}

long AdvisePart(uint64_t va, const Part& part, int advice) {
  const uint64_t bytes = part.end - va;
  switch (part.kind) {
    case Part::Kind::kFrozen:
      if (advice == MADV_REMOVE) return RemoveFrozen(va, part.end);
      break;
    case Part::Kind::kCow:
      if (advice == MADV_REMOVE) return -EINVAL;
      if (!DropsContent(advice)) break;
      return part.frozen ? RemoveFrozen(va, part.end) : AdviseNatively(va, bytes, MADV_REMOVE);
    case Part::Kind::kOfFile: {
      if (advice == MADV_REMOVE) return -EINVAL;
      if (!DropsContent(advice)) break;
      GuestLockHolder hold(g_client.lock);
      return ReplaceByZerosLocked(va, bytes);
    }
    case Part::Kind::kView:
      // Nobody would look after it in the child.
      if (advice == MADV_DOFORK) return -EINVAL;
      break;
    case Part::Kind::kOther:
      break;
  }
  return AdviseNatively(va, bytes, advice);
}

}  // namespace

long AdvisePlain(uint64_t addr, uint64_t bytes, int advice) {
  const uint64_t end = addr + RoundUp(bytes, kPage);
  const bool special = advice == MADV_REMOVE || advice == MADV_DOFORK || DropsContent(advice);
  if (!special || !g_client.regions.HasTracked() || addr % kPage != 0 || end <= addr) {
    const long result = AdviseNatively(addr, bytes, advice);
    if (result != kFrozenNow) return result;
  }
  long first_error = 0;
  bool gone_off = false;
  for (uint64_t at = addr; at < end;) {
    const Part part = PartAt(at, end);
    const long result = AdvisePart(at, part, advice);
    if (result == kFrozenNow) continue;
    // It is of another kind now.
    if (result == -ENOTCONN && !gone_off) {
      gone_off = true;
      continue;
    }
    // madvise goes on behind a hole, and says so in the end.
    if (result != 0 && result != -ENOMEM) return result;
    if (first_error == 0) first_error = result;
    at = part.end;
  }
  return first_error;
}

}  // namespace hostmm::guest
