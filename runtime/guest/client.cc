#include "runtime/guest/client.h"

#include <errno.h>
#include <sys/mman.h>

#include "runtime/guest/client_state.h"
#include "runtime/guest/cow.h"
#include "runtime/guest/opt_in.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/region_flags.h"
#include "runtime/uapi_compat.h"

namespace hostmm::guest {
namespace {

using protocol::Kind;
using protocol::Message;

// Asks for a file of the pager's frame store that can hold `bytes` from `offset` on.
Io CreateFile(uint64_t bytes, uint64_t offset, int prot, Message* answer, int* file) {
  Message create = RangeMessage(Kind::kCreate, 0, bytes);
  create.offset = offset;
  create.prot = static_cast<uint32_t>(prot);
  if (AskLocked(create, nullptr, 0, answer, file) != Io::kOk) return Io::kFailed;
  if (*file >= 0) return Io::kOk;
  return Io::kFailed;
}

// Maps `file` as asked. RETURNS: the address, or kPlain; then nothing has changed.
long MapFile(uint64_t addr, uint64_t bytes, int prot, int flags, int file) {
  const Place place = ChoosePlace(addr, bytes, flags, addr);
  if (place.va == 0) return kPlain;
  const int how = MAP_SHARED | MAP_FIXED | (flags & MAP_NORESERVE);
  const long got = raw::Call(SYS_mmap, place.va, bytes, prot, how, file, place.va % kBlock);
  if (!raw::Failed(got)) {
    if (!place.reserved) ForgetLocked(place.va, bytes);
    return got;
  }
  if (place.reserved) Unreserve(place.va, bytes);
  return kPlain;
}

// Records the mapping that the pager has just been told of.
void AddAnonymousLocked(const Message& map, const Message& answer, bool hugetlb, int prot) {
  Region region = {};
  region.va = map.va;
  region.bytes = map.length;
  region.offset = map.offset;
  region.mm = map.mm;
  region.kind = hugetlb ? RegionKind::kOwnHugetlb : RegionKind::kOwnFrames;
  region.share = map.mode;
  region.frozen = IsFrozen(answer);
  region.prot = static_cast<uint8_t>(prot);
  g_client.regions.Add(region);
  if (region.frozen) Zap(region.va, region.bytes);
}

// Room in the tables of this side for one more such mapping.
bool HasRoomLocked(uint32_t share) {
  if ((share & kRegionSharedPt) != 0 && !HasRoomForBoardLocked()) return false;
  if ((share & kRegionCow) != 0 && !HasRoomForCowLocked()) return false;
  return g_client.regions.HasRoom();
}

// `error`: why it is kPlain, if that is not the kernel's to say.
long MapAnonymousLocked(uint64_t addr, uint64_t bytes, int prot, int flags, uint32_t share,
                        int* error) {
  *error = ENOTCONN;
  if (!EnsureAttachedLocked()) return kPlain;
  *error = ENOSPC;
  if (!HasRoomLocked(share)) return kPlain;
  const bool cow = (share & kRegionCow) != 0;
  // Nobody would see what is written after a fork.
  if (cow && g_client.uffd_source == UffdSource::kNone) return kPlain;
  // The file belongs to this region alone, so its first page may stand where the address asks for
  // it: va = offset (mod 2 MiB) always holds.
  Message answer = {};
  int file = -1;
  if (CreateFile(bytes, addr % kBlock, prot, &answer, &file) != Io::kOk) {
    *error = CurrentPhase() == Phase::kOff ? ENOTCONN : ErrnoOf(answer);
    return kPlain;
  }
  const bool hugetlb = answer.value[0] == kBlock;
  const uint64_t mapped = hugetlb ? RoundUp(bytes, kBlock) : bytes;
  // A mapping that is longer than asked for must not replace what lies behind.
  const bool fits = mapped == bytes || (flags & MAP_FIXED) == 0;
  // Nobody touches opt-in memory before it has the protection that is everybody's.
  const bool opt_in = (share & kRegionSharedPt) != 0;
  const long got = fits ? MapFile(addr, mapped, opt_in ? PROT_NONE : prot, flags, file) : kPlain;

  // Sent also when nothing was mapped (length 0): the pager then drops the file.
  const auto va = static_cast<uint64_t>(got);
  Message map = RangeMessage(Kind::kMap, va, got == kPlain ? 0 : mapped);
  map.mm = answer.mm;
  map.offset = va % kBlock;
  map.prot = static_cast<uint32_t>(prot);
  map.mode = got == kPlain ? 0 : share;
  const Io told = AskLocked(map, nullptr, 0, &answer, nullptr);
  *error = got == kPlain ? 0 : ErrnoOf(answer);
  const bool recorded = got != kPlain && told == Io::kOk;
  if (recorded && cow) {
    KeepCowFileLocked(map.mm, file);
  } else {
    raw::Call(SYS_close, file);
  }
  // From here on the memory is there and right, whatever the pager says: a region that could not be
  // recorded is served by the kernel from the same huge frames. Unless it is not all that was asked
  // for.
  if (recorded) {
    AddAnonymousLocked(map, answer, hugetlb, prot);
    if (opt_in) ApplyAccessLocked(va, mapped, answer);
  } else if (got != kPlain && share != 0) {
    if (CurrentPhase() == Phase::kOff) *error = ENOTCONN;
    raw::Call(SYS_munmap, va, mapped);
    return kPlain;
  }
  return got;
}

// What mprotect refuses of views and copy-on-write memory. RETURNS an errno or 0.
int WhyNotProtectLocked(uint64_t addr, uint64_t end, int prot) {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    const bool overlaps = region.va < end && region.va + region.bytes > addr;
    if (!overlaps || !IsCowOrView(region)) continue;
    const bool may_write = (region.share & (kRegionCow | kRegionViewWritable)) != 0;
    if ((prot & PROT_WRITE) != 0 && !may_write) return EACCES;
    // What takes its place one day must have each part's protection.
    const bool splits = region.va < addr || region.va + region.bytes > end;
    if (splits && !g_client.regions.HasRoom()) return ENOMEM;
  }
  return 0;
}

}  // namespace

Message RangeMessage(Kind kind, uint64_t va, uint64_t bytes) {
  Message message = NewMessage(kind);
  message.va = va;
  message.length = bytes;
  return message;
}

int WhyNotCutLocked(uint64_t addr, uint64_t end) {
  if (addr >= end || !g_client.regions.HasTracked() || g_client.regions.HasRoom()) return 0;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    const bool cuts = region.va < addr && end < region.va + region.bytes;
    if (cuts && (IsCow(region) || IsCowView(region))) return ENOMEM;
  }
  return 0;
}

void ForgetLocked(uint64_t va, uint64_t bytes) {
  if (!g_client.regions.Remove(va, bytes)) return;
  NoteLocked(RangeMessage(Kind::kUnmap, va, bytes));
  DropCowFilesLocked();
}

Place ChoosePlace(uint64_t addr, uint64_t bytes, int flags, uint64_t offset) {
  const bool replaces = (flags & MAP_FIXED) != 0 && (flags & MAP_FIXED_NOREPLACE) == 0;
  if (replaces) return {addr, false};
  if (addr == 0 && (flags & MAP_FIXED_NOREPLACE) != 0) return {};
  if (addr != 0) {
    const Reservation hint = ReserveAt(addr, bytes);
    if (hint == Reservation::kDone) return {addr, true};
    if ((flags & MAP_FIXED_NOREPLACE) != 0) return {};
    // Taken, and only a hint: the kernel would look elsewhere, and so do we.
  }
  const uint64_t alignment = bytes >= kGigabyte ? kGigabyte : kBlock;
  return {Reserve(bytes, alignment, offset % alignment), true};
}

long FillAsAsked(uint64_t va, uint64_t bytes, int prot, int flags) {
  if ((flags & MAP_LOCKED) != 0) {
    // First the limit alone, which is an error; then the pages, which may be without access.
    const long locked = raw::Call(SYS_mlock2, va, bytes, MLOCK_ONFAULT);
    if (raw::Failed(locked)) return locked == -ENOMEM ? -EAGAIN : locked;
    raw::Call(SYS_mlock, va, bytes);
  }
  if ((flags & MAP_POPULATE) != 0) {
    const int advice = (prot & PROT_WRITE) != 0 ? MADV_POPULATE_WRITE : MADV_POPULATE_READ;
    raw::Call(SYS_madvise, va, bytes, advice);
  }
  return 0;
}

RegionKind KindOf(const Message& adopted) {
  switch (static_cast<protocol::Adopted>(adopted.value[0])) {
    case protocol::Adopted::kOwn:
      return RegionKind::kOwnFrames;
    case protocol::Adopted::kOwnHugetlb:
      return RegionKind::kOwnHugetlb;
    case protocol::Adopted::kForeign:
      break;
  }
  return RegionKind::kAdopted;
}

bool IsOn() { return CurrentPhase() != Phase::kOff; }
bool IsTransparent() { return g_client.transparent; }
uint64_t CowMinBytes() { return g_client.cow_min_bytes; }

bool Manages(uint64_t va, uint64_t bytes) { return g_client.regions.Overlaps(va, bytes); }

long MapAnonymous(uint64_t addr, uint64_t bytes, int prot, int flags, uint32_t share, int* error) {
  *error = ENOTCONN;
  if (CurrentPhase() == Phase::kOff) return kPlain;
  bytes = RoundUp(bytes, kPage);
  // An overflow, or a fixed address that is none: the kernel has the right answer.
  *error = 0;
  if (bytes == 0 || ((flags & MAP_FIXED) != 0 && addr % kPage != 0)) return kPlain;
  addr -= addr % kPage;
  long got;
  {
    GuestLockHolder hold(g_client.lock);
    got = MapAnonymousLocked(addr, bytes, prot, flags, share, error);
  }
  if (got == kPlain || raw::Failed(got)) return got;
  // Outside the lock: the pages come through the pager, and a fault that waits must not hold up
  // other threads.
  const long filled = FillAsAsked(static_cast<uint64_t>(got), bytes, prot, flags);
  if (filled == 0) return got;
  Unmap(static_cast<uint64_t>(got), bytes);
  return filled;
}

long MapShmemFile(uint64_t addr, uint64_t bytes, int prot, int flags, int fd, uint64_t offset) {
  if (CurrentPhase() == Phase::kOff) return kPlain;
  bytes = RoundUp(bytes, kPage);
  GuestLockHolder hold(g_client.lock);
  if (const int error = WhyNotCutLocked(addr, addr + bytes); error != 0) return -error;
  uint64_t va = addr;
  int fixed = flags;
  if (addr == 0) {
    va = Reserve(bytes, kBlock, offset);
    if (va == 0) return kPlain;
    fixed |= MAP_FIXED;
  }
  const long got = raw::Call(SYS_mmap, va, bytes, prot, fixed, fd, offset);
  if (raw::Failed(got)) {
    if (addr == 0) Unreserve(va, bytes);
    return got;
  }
  va = static_cast<uint64_t>(got);
  ForgetLocked(va, bytes);
  // Only what can be collapsed is worth telling.
  if (va % kBlock == offset % kBlock && g_client.regions.HasRoom() && EnsureAttachedLocked()) {
    Message adopt = RangeMessage(Kind::kAdopt, va, bytes);
    adopt.offset = offset;
    adopt.prot = static_cast<uint32_t>(prot);
    adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
    Message answer;
    if (AskLocked(adopt, &fd, 1, &answer, nullptr) == Io::kOk) {
      const Region region = {va,    bytes, offset,          answer.mm, KindOf(answer),
                             false, 0,     IsFrozen(answer)};
      g_client.regions.Add(region);
      // What MAP_POPULATE has mapped natively.
      if (region.frozen) Zap(va, bytes);
    }
  }
  return got;
}

long MapOver(uint64_t addr, uint64_t bytes, int prot, int flags, int fd, uint64_t offset) {
  GuestLockHolder hold(g_client.lock);
  if (const int error = WhyNotCutLocked(addr, addr + RoundUp(bytes, kPage)); error != 0) {
    return -error;
  }
  const long got = raw::Call(SYS_mmap, addr, bytes, prot, flags, fd, offset);
  if (!raw::Failed(got)) ForgetLocked(static_cast<uint64_t>(got), RoundUp(bytes, kPage));
  return got;
}

long Unmap(uint64_t addr, uint64_t bytes) {
  GuestLockHolder hold(g_client.lock);
  uint64_t whole = RoundUp(bytes, kPage);
  // hugetlb memory is mapped in whole 2 MiB: an unmap that ends with what was asked for takes the
  // rest with it.
  const Region* region = g_client.regions.Find(addr);
  if (region != nullptr && region->kind == RegionKind::kOwnHugetlb) {
    const uint64_t left = region->va + region->bytes - addr;
    if (whole < left && left - whole < kBlock) whole = left;
  }
  if (const int error = WhyNotCutLocked(addr, addr + whole); error != 0) return -error;
  const long result = raw::Call(SYS_munmap, addr, whole);
  if (result == 0) ForgetLocked(addr, whole);
  return result;
}

long Zap(uint64_t va, uint64_t bytes) {
  const long zapped = raw::Call(SYS_madvise, va, bytes, MADV_DONTNEED);
  // Locked memory only so (Linux 5.18).
  return zapped == -EINVAL ? raw::Call(SYS_madvise, va, bytes, MADV_DONTNEED_LOCKED) : zapped;
}

long ProtectPlainLocked(uint64_t addr, uint64_t bytes, int prot) {
  if (g_client.regions.HasTracked()) {
    const int error = WhyNotProtectLocked(addr, addr + RoundUp(bytes, kPage), prot);
    if (error != 0) return -error;
  }
  const long result = raw::Call(SYS_mprotect, addr, bytes, prot);
  if (result == 0) {
    g_client.regions.SetProt(addr, RoundUp(bytes, kPage), prot);
    Message note = RangeMessage(Kind::kProtect, addr, RoundUp(bytes, kPage));
    note.prot = static_cast<uint32_t>(prot);
    NoteLocked(note);
  }
  return result;
}

}  // namespace hostmm::guest
