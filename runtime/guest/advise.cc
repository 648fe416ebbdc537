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
#include <time.h>

#include "runtime/guest/channel.h"
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
// What the kernel is asked to remove at once: no snapshot of it is taken meanwhile. Arbitrary.
constexpr uint64_t kNativeBytes = uint64_t{1} << 30;

// When the pager takes no more: for a minute, as long as its other late answers.
constexpr int kMostTries = 12'000;
constexpr timespec kBetweenTries = {0, 5'000'000};

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
    long removed = -EAGAIN;
    // The pager takes so many at a time of one process.
    for (int tries = 0; removed == -EAGAIN && tries < kMostTries; ++tries) {
      if (tries > 0) raw::Call(SYS_nanosleep, &kBetweenTries, nullptr);
      removed = AskLate(RangeMessage(Kind::kRemove, va, bytes), nullptr, 0, &answer, nullptr);
    }
    if (removed != 0) return removed;
  }
  return 0;
}

// No errno: it is frozen, and has to be removed by the pager.
constexpr long kFrozenNow = 1;

// Whether snapshots can be taken of some of it. REQUIRES: the lock.
bool HasOwnFramesIn(uint64_t va, uint64_t end) {
  for (const Region* next = g_client.regions.FindNext(va); next != nullptr && next->va < end;
       next = g_client.regions.FindNext(va)) {
    if (next->kind != RegionKind::kAdopted && !IsView(*next) && !IsGonePrivate(*next)) return true;
    va = next->va + next->bytes;
  }
  return false;
}

// Whether the kernel may remove it; then no snapshot is taken until the pager has heard that it is
// done. Without a descriptor for the answer it may: the pager, which hears the question, makes lost
// what has missed it. REQUIRES: the lock, and that the range is whole pages.
bool MayRemoveLocked(uint64_t addr, uint64_t bytes) {
  if (!EnsureAttachedLocked()) return true;
  const Message ask = RangeMessage(Kind::kMayPunch, addr, bytes);
  const int reply_fd = SendQuestion(g_client.channel, ask, nullptr, 0);
  if (reply_fd == -EMFILE || reply_fd == -ENFILE) {
    NoteLocked(ask);
    return true;
  }
  Message answer = {};
  Reply got = Reply::kGone;
  if (reply_fd >= 0) {
    got = AwaitReply(reply_fd, kAnswerMilliseconds, &answer, nullptr);
    raw::Call(SYS_close, reply_fd);
  }
  if (got == Reply::kHere) return answer.status != protocol::Status::kFailed;
  GoOffLocked("the pager is gone or does not answer");
  return true;
}

long RemoveNatively(uint64_t addr, uint64_t bytes) {
  GuestLockHolder hold(g_client.lock);
  const uint64_t whole = RoundUp(bytes, kPage);
  const bool asks = g_client.uffd_source != UffdSource::kNone && addr % kPage == 0 &&
                    HasOwnFramesIn(addr, addr + whole);
  if (asks && !MayRemoveLocked(addr, whole)) return kFrozenNow;
  const long result = raw::Call(SYS_madvise, addr, bytes, MADV_REMOVE);
  if (result == 0 || asks) NoteLocked(RangeMessage(Kind::kPunch, addr, result == 0 ? whole : 0));
  return result;
}

long AdviseNatively(uint64_t addr, uint64_t bytes, int advice) {
  // Only these change what the pager must know; everything else (populate, prefetch, page-out, ...)
  // the kernel does, and must do without our lock, because it may wait for the pager.
  uint64_t set = 0;
  uint64_t clear = 0;
  switch (advice) {
    case MADV_REMOVE:
      return RemoveNatively(addr, bytes);
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
  const long result = raw::Call(SYS_madvise, addr, bytes, advice);
  if (result != 0) return result;
  const uint64_t whole = RoundUp(bytes, kPage);
  if (advice == MADV_DONTFORK || advice == MADV_DOFORK) {
    g_client.regions.SetDontFork(addr, whole, advice == MADV_DONTFORK);
  }
  Message note = RangeMessage(Kind::kFlags, addr, whole);
  note.value[0] = set;
  note.value[1] = clear;
  NoteLocked(note);
  return result;
}

bool DropsContent(int advice) {
  return advice == MADV_DONTNEED || advice == MADV_FREE || advice == MADV_DONTNEED_LOCKED;
}

// MADV_REMOVE of what is not frozen, or was not when the caller looked.
long RemovePart(uint64_t va, uint64_t end) {
  long first_error = 0;
  for (; va < end; va += kNativeBytes) {
    const uint64_t bytes = end - va < kNativeBytes ? end - va : kNativeBytes;
    long result = AdviseNatively(va, bytes, MADV_REMOVE);
    if (result == kFrozenNow) result = RemoveFrozen(va, va + bytes);
    // As in AdvisePlain.
    if (result != 0 && result != -ENOMEM) return result;
    if (first_error == 0) first_error = result;
  }
  return first_error;
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
      return part.frozen ? RemoveFrozen(va, part.end) : RemovePart(va, part.end);
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
  return advice == MADV_REMOVE ? RemovePart(va, part.end) : AdviseNatively(va, bytes, advice);
}

}  // namespace

long AdvisePlain(uint64_t addr, uint64_t bytes, int advice) {
  const uint64_t end = addr + RoundUp(bytes, kPage);
  const bool special = advice == MADV_REMOVE || advice == MADV_DOFORK || DropsContent(advice);
  const bool removes_much = advice == MADV_REMOVE && bytes > kNativeBytes;
  const bool plain = !special || (!g_client.regions.HasTracked() && !removes_much);
  if (plain || addr % kPage != 0 || end <= addr) {
    const long result = AdviseNatively(addr, bytes, advice);
    if (result != kFrozenNow) return result;
  }
  long first_error = 0;
  bool gone_off = false;
  for (uint64_t at = addr; at < end;) {
    const Part part = PartAt(at, end);
    const long result = AdvisePart(at, part, advice);
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
