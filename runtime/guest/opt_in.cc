#include "runtime/guest/opt_in.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "runtime/guest/boards.h"
#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/late_answer.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/hostmm_c.h"
#include "runtime/region_flags.h"
#include "runtime/uapi_compat.h"

namespace hostmm::guest {
namespace {

using protocol::BoardOp;
using protocol::Kind;
using protocol::Message;

constexpr uint32_t kOptInFlags = MAP_SHARED_PT | MAP_SHARED_DEDICATED;

// User space of x86-64 and of 48-bit aarch64 with room to spare: what is longer the kernel refuses.
constexpr uint64_t kMostBytes = uint64_t{1} << 47;

bool IsOptIn(const Region& region) { return (region.share & kRegionSharedPt) != 0; }

// F_SEAL_FUTURE_WRITE of Linux 5.1, which older headers lack.
constexpr long kSealFutureWrite = 0x10;

// A part of a range of which all is opt-in, or nothing.
struct Piece {
  uint64_t end;
  uint32_t share;
};

Piece PieceLocked(uint64_t at, uint64_t end) {
  for (uint64_t from = at;;) {
    const Region* next = g_client.regions.FindNext(from);
    if (next == nullptr || next->va >= end) return {end, 0};
    const uint64_t next_end = next->va + next->bytes;
    if (!IsOptIn(*next)) {
      from = next_end;
    } else if (next->va > at) {
      return {next->va, 0};
    } else {
      return {next_end < end ? next_end : end, next->share};
    }
  }
}

Piece NextPiece(uint64_t at, uint64_t end) {
  GuestLockHolder hold(g_client.lock);
  return PieceLocked(at, end);
}

// All share flags that somebody has in [va, end).
uint32_t ShareIn(uint64_t va, uint64_t end) {
  if (!g_client.regions.HasOptIn()) return 0;
  GuestLockHolder hold(g_client.lock);
  uint32_t share = 0;
  while (va < end) {
    const Piece piece = PieceLocked(va, end);
    share |= piece.share;
    va = piece.end;
  }
  return share;
}

// Asks for something that all mappers do, and waits until they have. RETURNS 0 or -errno.
long ForAll(uint64_t va, uint64_t bytes, BoardOp op, int prot, int advice) {
  Message ask = RangeMessage(Kind::kForAll, va, bytes);
  ask.prot = static_cast<uint32_t>(prot);
  ask.value[0] = static_cast<uint64_t>(advice);
  ask.value[1] = static_cast<uint64_t>(op);
  Message answer;
  return AskLate(ask, nullptr, 0, &answer, nullptr);
}

long ProtectPlain(uint64_t va, uint64_t bytes, int prot) {
  GuestLockHolder hold(g_client.lock);
  return ProtectPlainLocked(va, bytes, prot);
}

long AdviseForAll(uint64_t va, uint64_t bytes, int advice) {
  switch (advice) {
    case MADV_DONTNEED:
      return ForAll(va, bytes, BoardOp::kVote, 0, 0);
    case MADV_PAGEOUT:
    case MADV_COLD: {
      // First here, as below; once more, because the kernel spares what others have in their
      // tables.
      const long here = raw::Call(SYS_madvise, va, bytes, advice);
      if (here != 0) return here;
      const long zapped = ForAll(va, bytes, BoardOp::kZap, 0, 0);
      return zapped != 0 ? zapped : raw::Call(SYS_madvise, va, bytes, advice);
    }
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE: {
      // First here: what this kernel refuses, nobody else is asked to do.
      const long here = raw::Call(SYS_madvise, va, bytes, advice);
      return here != 0 ? here : ForAll(va, bytes, BoardOp::kAdvise, 0, advice);
    }
    case MADV_WILLNEED: {
      const long here = raw::Call(SYS_madvise, va, bytes, advice);
      if (here != 0) return here;
      GuestLockHolder hold(g_client.lock);
      NoteLocked(RangeMessage(Kind::kFill, va, bytes));
      return 0;
    }
    case MADV_GUARD_INSTALL:
    case MADV_GUARD_REMOVE:
      return -EINVAL;
    default:
      return AdvisePlain(va, bytes, advice);
  }
}

// What a mapping of a file asks for, checked.
struct FileMapping {
  uint64_t addr;
  uint64_t bytes;
  int prot;
  int flags;  // without those of hostmm and without what is done after registration
  int fd;
  uint64_t offset;
  uint32_t share;
};

// Maps it, for nobody to touch yet. RETURNS the address, -errno, or kPlain.
long PlaceFileLocked(const FileMapping& ask) {
  // The kernel's opinion of the protection itself: a read-only or sealed file, no code from there.
  constexpr uint64_t kProbe = protocol::kGranule;
  const long probe =
      raw::Call(SYS_mmap, nullptr, kProbe, ask.prot, ask.flags & MAP_TYPE, ask.fd, ask.offset);
  if (raw::Failed(probe)) return probe;
  raw::Call(SYS_munmap, probe, kProbe);
  const Place place = ChoosePlace(ask.addr, ask.bytes, ask.flags, ask.offset);
  if (place.va == 0) return kPlain;
  const int how = (ask.flags & ~MAP_FIXED_NOREPLACE) | MAP_FIXED;
  const long got = raw::Call(SYS_mmap, place.va, ask.bytes, PROT_NONE, how, ask.fd, ask.offset);
  if (raw::Failed(got)) {
    if (place.reserved) Unreserve(place.va, ask.bytes);
    return got;
  }
  if (!place.reserved) ForgetLocked(place.va, ask.bytes);
  return got;
}

long MapFileLocked(const FileMapping& ask, Asked asked, int* error) {
  *error = ENOTCONN;
  if (!EnsureAttachedLocked()) return kPlain;
  *error = ENOSPC;
  if (!g_client.regions.HasRoom() || !HasRoomForBoardLocked()) return kPlain;
  *error = 0;
  const long got = PlaceFileLocked(ask);
  if (got == kPlain || raw::Failed(got)) return got;
  const auto va = static_cast<uint64_t>(got);
  Message adopt = RangeMessage(Kind::kAdopt, va, ask.bytes);
  adopt.offset = ask.offset;
  adopt.prot = static_cast<uint32_t>(ask.prot);
  adopt.mode = ask.share;
  adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
  Message answer = {};
  if (AskLocked(adopt, &ask.fd, 1, &answer, nullptr) == Io::kOk) {
    const Region region = {va,    ask.bytes, ask.offset,      answer.mm, KindOf(answer),
                           false, ask.share, IsFrozen(answer)};
    g_client.regions.Add(region);
    ApplyAccessLocked(va, ask.bytes, answer);
    return got;
  }
  *error = CurrentPhase() == Phase::kOff ? ENOTCONN : ErrnoOf(answer);
  if (asked == Asked::kApi) {
    raw::Call(SYS_munmap, va, ask.bytes);
    return kPlain;
  }
  const long protect = raw::Call(SYS_mprotect, va, ask.bytes, ask.prot);
  return raw::Failed(protect) ? protect : got;
}

long MapFile(const FileMapping& ask, int flags, Asked asked, int* error) {
  long got;
  {
    GuestLockHolder hold(g_client.lock);
    got = MapFileLocked(ask, asked, error);
  }
  if (got == kPlain || raw::Failed(got)) return got;
  const long filled = FillAsAsked(static_cast<uint64_t>(got), ask.bytes, ask.prot, flags);
  if (filled == 0) return got;
  Unmap(static_cast<uint64_t>(got), ask.bytes);
  return filled;
}

// What opt-in mmap refuses before it asks anybody. RETURNS an errno or 0.
int WhyNot(uint64_t addr, uint64_t bytes, int prot, int flags, uint64_t offset) {
  const bool anonymous = (flags & MAP_ANONYMOUS) != 0;
  const uint64_t at = anonymous ? 0 : offset;
  if (bytes == 0 || (addr | bytes | at) % protocol::kGranule != 0) return EINVAL;
  if ((flags & MAP_TYPE) == MAP_PRIVATE && (prot & PROT_WRITE) != 0) return EINVAL;
  if ((flags & (MAP_HUGETLB | MAP_32BIT | MAP_GROWSDOWN)) != 0) return EINVAL;
  if (bytes > kMostBytes || addr > kMostBytes - bytes) return ENOMEM;
  return !anonymous && at > ~uint64_t{0} / 2 - bytes ? EOVERFLOW : 0;
}

// The plain call's answer to what the library's function could not do, without its effect.
long RefuseAs(int error, uint64_t addr, uint64_t bytes, int prot, int flags, int fd,
              uint64_t offset) {
  if (error != 0) return -error;
  // Another try would cost the program what stands there.
  const bool replaces = (flags & MAP_FIXED) != 0 && (flags & MAP_FIXED_NOREPLACE) == 0;
  if (replaces) return addr == 0 ? -EPERM : -ENOMEM;
  const long got = raw::Call(SYS_mmap, addr, bytes, prot, flags, fd, offset);
  if (raw::Failed(got)) return got;
  raw::Call(SYS_munmap, got, bytes);
  return -ENOMEM;
}

}  // namespace

uint32_t ShareOf(int flags) {
  if ((flags & MAP_SHARED_PT) == 0) return 0;
  const bool dedicated = (flags & MAP_SHARED_DEDICATED) != 0;
  return static_cast<uint32_t>(kRegionSharedPt | (dedicated ? kRegionDedicated : 0));
}

long MapOptIn(uint64_t addr, uint64_t bytes, int prot, int flags, int fd, uint64_t offset,
              Asked asked) {
  const int type = flags & MAP_TYPE;
  const int plain_flags = flags & ~static_cast<int>(kOptInFlags);
  const bool anonymous = (flags & MAP_ANONYMOUS) != 0;
  // MAP_SHARED_VALIDATE refuses bits that the kernel does not know; private memory of no file is
  // nobody else's.
  if ((type != MAP_SHARED && type != MAP_PRIVATE) || (type == MAP_PRIVATE && anonymous)) {
    if (type == MAP_PRIVATE && (prot & PROT_WRITE) != 0) return -EINVAL;
    if (asked == Asked::kPlainCall) return kPlain;
    return raw::Call(SYS_mmap, addr, bytes, prot, flags, fd, offset);
  }
  if (const int error = WhyNot(addr, bytes, prot, flags, offset); error != 0) return -error;
  int error = 0;
  long got;
  if (anonymous) {
    got = MapAnonymous(addr, bytes, prot, plain_flags, ShareOf(flags), &error);
  } else {
    const long mode = raw::Call(SYS_fcntl, fd, F_GETFL);
    if (raw::Failed(mode)) return mode;
    const long seals = raw::Call(SYS_fcntl, fd, F_GET_SEALS);
    const bool sealed = !raw::Failed(seals) && (seals & (F_SEAL_WRITE | kSealFutureWrite)) != 0;
    const bool read_only = (mode & O_ACCMODE) == O_RDONLY || sealed;
    uint32_t share = ShareOf(flags);
    if (type == MAP_PRIVATE) share |= kRegionPrivate;
    if (read_only || type == MAP_PRIVATE) share |= kRegionNeverWrite;
    const int held_back = MAP_POPULATE | MAP_LOCKED;
    got = MapFile({addr, bytes, prot, plain_flags & ~held_back, fd, offset, share}, flags, asked,
                  &error);
  }
  if (got != kPlain || asked == Asked::kPlainCall) return got;
  return RefuseAs(error, addr, bytes, prot, plain_flags, fd, offset);
}

long Protect(uint64_t addr, uint64_t bytes, int prot, Asked asked) {
  const uint64_t end = addr + RoundUp(bytes, kPage);
  const uint32_t share = end > addr ? ShareIn(addr, end) : 0;
  if (share == 0) return ProtectPlain(addr, bytes, prot);
  if (addr % kPage != 0 || (prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC)) != 0) return -EINVAL;
  if ((share & kRegionDedicated) != 0 && asked == Asked::kPlainCall) return -EPERM;
  if ((share & kRegionNeverWrite) != 0 && (prot & PROT_WRITE) != 0) return -EACCES;
  for (uint64_t at = addr; at < end;) {
    const Piece piece = NextPiece(at, end);
    const uint64_t length = piece.end - at;
    long result = piece.share == 0 ? ProtectPlain(at, length, prot)
                                   : ForAll(at, length, BoardOp::kProtect, prot, 0);
    if (result == -ENOTCONN && asked == Asked::kPlainCall) result = ProtectPlain(at, length, prot);
    if (result != 0) return result;
    at = piece.end;
  }
  return 0;
}

long Advise(uint64_t addr, uint64_t bytes, int advice, Asked asked) {
  const uint64_t end = addr + RoundUp(bytes, kPage);
  const uint32_t share = end > addr ? ShareIn(addr, end) : 0;
  if (share == 0 || addr % kPage != 0) return AdvisePlain(addr, bytes, advice);
  long first_error = 0;
  for (uint64_t at = addr; at < end;) {
    const Piece piece = NextPiece(at, end);
    const uint64_t length = piece.end - at;
    long result =
        piece.share == 0 ? AdvisePlain(at, length, advice) : AdviseForAll(at, length, advice);
    if (result == -ENOTCONN && asked == Asked::kPlainCall) result = AdvisePlain(at, length, advice);
    // madvise goes on behind a hole, and says so in the end.
    if (result != 0 && result != -ENOMEM) return result;
    if (first_error == 0) first_error = result;
    at = piece.end;
  }
  return first_error;
}

bool HasRoomForBoardLocked() {
  protocol::MmHandle seen[kMaxBoards];
  int count = 0;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    if (!IsOptIn(region)) continue;
    bool known = false;
    for (int j = 0; j < count && !known; ++j) {
      known = seen[j].slot == region.mm.slot && seen[j].generation == region.mm.generation;
    }
    if (known) continue;
    if (count == kMaxBoards) return false;
    seen[count++] = region.mm;
  }
  return count < kMaxBoards;
}

Message AccessAtLocked(uint64_t va) {
  Message answer = {};
  if (AskLocked(RangeMessage(Kind::kAccess, va, 0), nullptr, 0, &answer, nullptr) != Io::kOk) {
    answer.length = 0;
  }
  return answer;
}

void ApplyAccessLocked(uint64_t va, uint64_t bytes, const Message& first) {
  const Region* region = g_client.regions.Find(va);
  const bool never_write = region != nullptr && (region->share & kRegionNeverWrite) != 0;
  const uint64_t end = va + bytes;
  Message run = first;
  while (va < end && run.length != 0) {
    const uint64_t length = run.length < end - va ? run.length : end - va;
    const uint32_t prot = never_write ? run.prot & ~uint32_t{PROT_WRITE} : run.prot;
    raw::Call(SYS_mprotect, va, length, prot);
    va += length;
    if (va < end) run = AccessAtLocked(va);
  }
}

long IsShared(uint64_t addr) {
  GuestLockHolder hold(g_client.lock);
  const Region* region = g_client.regions.Find(addr);
  if (region == nullptr) return -ENOMEM;
  if (CurrentPhase() != Phase::kAttached) return -ENOTCONN;
  if ((region->share & kRegionPrivate) != 0) {
    // What a debugger has written is no page of the file any more.
    const long pagemap =
        raw::Call(SYS_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (raw::Failed(pagemap)) return pagemap;
    uint64_t entry = 0;
    raw::Call(SYS_pread64, pagemap, &entry, sizeof(entry), addr / kPage * sizeof(entry));
    raw::Call(SYS_close, pagemap);
    constexpr uint64_t kPresent = uint64_t{1} << 63;
    constexpr uint64_t kOfFile = uint64_t{1} << 61;
    if ((entry & kPresent) != 0 && (entry & kOfFile) == 0) return 0;
  }
  Message answer = {};
  if (AskLocked(RangeMessage(Kind::kIsShared, addr, 0), nullptr, 0, &answer, nullptr) != Io::kOk) {
    return CurrentPhase() == Phase::kOff ? -ENOTCONN : -ErrnoOf(answer);
  }
  return answer.value[0] == 1 ? 1 : 0;
}

}  // namespace hostmm::guest
