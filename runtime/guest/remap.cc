// mremap of managed memory: the kernel's, at a place that can be huge, and then told to the pager.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/opt_in.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/region_flags.h"
#include "runtime/uapi_compat.h"

namespace hostmm::guest {
namespace {

using protocol::Kind;
using protocol::Message;

struct Move {
  uint64_t from;
  uint64_t old_bytes;
  uint64_t new_bytes;
  int flags;
  uint64_t to;
};

long CallKernel(const Move& move) {
  return raw::Call(SYS_mremap, move.from, move.old_bytes, move.new_bytes, move.flags, move.to);
}

// Moves what the kernel has as several mappings, because protections or advice differ: it moves one
// at a time, or (from 6.17 on) several unless a userfaultfd watches them. So in halves, until each
// lies in one. REQUIRES: the sizes agree, all of it is mapped, the place is a fixed one.
long MoveInParts(const Move& move, uint64_t unit) {
  const long whole = CallKernel(move);
  if (whole != -EFAULT || move.old_bytes <= unit) return whole;
  const uint64_t half = RoundUp(move.old_bytes / 2, unit);
  const uint64_t rest = move.old_bytes - half;
  const long first = MoveInParts({move.from, half, half, move.flags, move.to}, unit);
  if (raw::Failed(first)) return first;
  const long second = MoveInParts({move.from + half, rest, rest, move.flags, move.to + half}, unit);
  return raw::Failed(second) ? second : first;
}

bool IsWhollyMapped(uint64_t va, uint64_t bytes) {
  // It does nothing else (Linux since 2.6.19).
  return raw::Call(SYS_msync, va, bytes, MS_ASYNC) == 0;
}

bool IsOptIn(const Region& region) { return (region.share & kRegionSharedPt) != 0; }

// The kernel takes the page-table entries along, but not the registration: what of them stands
// there would be neither write-protected nor counted. The pager has registered the new place.
void ZapMovedLocked(const Region& window, Io told, const Message& answer) {
  if (told != Io::kOk) {
    // Nobody sees what is written there.
    if (window.frozen && CurrentPhase() == Phase::kAttached) {
      GoOffLocked("the pager refused frozen memory that has moved");
    }
    return;
  }
  const bool counted = (g_client.register_mode & UFFDIO_REGISTER_MODE_MINOR) != 0;
  if (IsFrozen(answer) || counted) Zap(window.va, window.bytes);
}

// The region `window` has been moved to where it stands now, from [old_va, old_va + old_bytes).
void RecordMoveLocked(const Region& window, uint64_t old_va, uint64_t old_bytes) {
  g_client.regions.Remove(old_va, old_bytes);
  if (!g_client.regions.HasRoom()) {
    if (window.frozen) return GoOffLocked("frozen memory has moved, and there is no room for it");
    return NoteLocked(RangeMessage(Kind::kUnmap, old_va, old_bytes));
  }
  g_client.regions.Add(window);
  Message ask = RangeMessage(Kind::kMove, old_va, old_bytes);
  ask.value[0] = window.va;
  ask.value[1] = window.bytes;
  Message answer = {};
  const Io told = AskLocked(ask, nullptr, 0, &answer, nullptr);
  if (window.kind != RegionKind::kAdopted) ZapMovedLocked(window, told, answer);
  // What it has grown by may be protected otherwise for all.
  if (IsOptIn(window) && told == Io::kOk) {
    ApplyAccessLocked(window.va, window.bytes, AccessAtLocked(window.va));
  }
}

// All regions in [from, from + bytes) are at `to` now, each as far from the start as it was.
void RecordMovesLocked(uint64_t from, uint64_t bytes, uint64_t to) {
  const uint64_t end = from + bytes;
  for (;;) {
    const Region* next = g_client.regions.FindNext(from);
    if (next == nullptr || next->va >= end) return;
    Region part = *next;
    const uint64_t part_from = part.va > from ? part.va : from;
    const uint64_t part_end = part.va + part.bytes < end ? part.va + part.bytes : end;
    part.offset += part_from - part.va;
    part.bytes = part_end - part_from;
    part.va = to + (part_from - from);
    // Takes the old one out of the table.
    RecordMoveLocked(part, part_from, part.bytes);
  }
}

// `window` is a second one of opt-in memory that stays at `first_va`. RETURNS its address or
// -errno; then it is not there.
long RecordSecondWindowLocked(const Region& window, uint64_t first_va) {
  Message map = RangeMessage(Kind::kMap, window.va, window.bytes);
  map.mm = window.mm;
  map.offset = window.offset;
  map.mode = window.share;
  // Counts only for what nobody maps yet, behind the end of the first window.
  map.prot = AccessAtLocked(first_va).prot;
  Message answer = {};
  const bool has_room = g_client.regions.HasRoom();
  if (has_room && AskLocked(map, nullptr, 0, &answer, nullptr) == Io::kOk) {
    Region second = window;
    second.frozen = second.frozen || answer.value[1] == 1;
    g_client.regions.Add(second);
    // The entries that have moved here can be written, whatever is registered.
    if (second.frozen) Zap(second.va, second.bytes);
    ApplyAccessLocked(window.va, window.bytes, answer);
    return static_cast<long>(window.va);
  }
  // Off: all is plain now, and so may this be.
  if (CurrentPhase() == Phase::kOff) return static_cast<long>(window.va);
  raw::Call(SYS_munmap, window.va, window.bytes);
  return has_room ? -ErrnoOf(answer) : -ENOMEM;
}

// If the kernel may choose the place, chooses for it: one that keeps va = offset (mod 2 MiB).
// RETURNS the reservation, now in *move; 0: none was needed or to be had.
uint64_t ChooseLocked(Move* move, uint64_t offset) {
  if ((move->flags & (MREMAP_MAYMOVE | MREMAP_FIXED)) != MREMAP_MAYMOVE) return 0;
  const bool keeps_old = move->old_bytes == 0 || (move->flags & MREMAP_DONTUNMAP) != 0;
  if (!keeps_old) {
    if (move->new_bytes <= move->old_bytes) return 0;
    const Move in_place = {move->from, move->old_bytes, move->new_bytes, 0, 0};
    if (!raw::Failed(CallKernel(in_place))) {
      move->old_bytes = move->new_bytes;
      return 0;
    }
  }
  const uint64_t reserved = Reserve(move->new_bytes, kBlock, offset);
  if (reserved == 0) return 0;
  move->flags |= MREMAP_FIXED;
  move->to = reserved;
  return reserved;
}

// What mremap does of copy-on-write memory and of views: shrinks it where it is; moves, as a whole
// and without growing, copy-on-write memory of one protection. A view's file ends where it ends,
// and its pages are where the pager has put them.
enum class OwnRemap : uint8_t { kNotOurs, kShrinks, kMoves, kCannotGrow, kRefused };
OwnRemap ClassifyLocked(const Move& move) {
  const uint64_t old_bytes = RoundUp(move.old_bytes, kPage);
  const uint64_t new_bytes = RoundUp(move.new_bytes, kPage);
  const uint64_t end = move.from + (old_bytes != 0 ? old_bytes : kPage);
  const Region* of_ours = nullptr;
  for (uint64_t at = move.from; at < end;) {
    const Region* next = g_client.regions.FindNext(at);
    if (next == nullptr || next->va >= end) break;
    if (IsCowOrView(*next)) of_ours = next;
    at = next->va + next->bytes;
  }
  if (of_ours == nullptr) return OwnRemap::kNotOurs;
  const bool stays = (move.flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) == 0;
  if (old_bytes == 0) return OwnRemap::kRefused;
  if (new_bytes > old_bytes) return OwnRemap::kCannotGrow;
  if (stays) return OwnRemap::kShrinks;
  const bool whole = of_ours->va <= move.from && end <= of_ours->va + of_ours->bytes;
  const bool moves =
      IsCow(*of_ours) && whole && old_bytes == new_bytes && (move.flags & MREMAP_DONTUNMAP) == 0;
  return moves ? OwnRemap::kMoves : OwnRemap::kRefused;
}

// RETURNS true, and *result, if that is all there is to do.
bool RemapOwnLocked(const Move& move, long* result) {
  switch (ClassifyLocked(move)) {
    case OwnRemap::kNotOurs:
    case OwnRemap::kMoves:
      return false;
    case OwnRemap::kCannotGrow:
      *result = -ENOMEM;
      return true;
    case OwnRemap::kRefused:
      *result = -EINVAL;
      return true;
    case OwnRemap::kShrinks:
      break;
  }
  *result = CallKernel(move);
  const uint64_t old_end = move.from + RoundUp(move.old_bytes, kPage);
  const uint64_t new_end = move.from + RoundUp(move.new_bytes, kPage);
  if (!raw::Failed(*result) && new_end < old_end) ForgetLocked(new_end, old_end - new_end);
  return true;
}

}  // namespace

long Remap(uint64_t old_addr, uint64_t old_bytes, uint64_t new_bytes, int flags,
           uint64_t new_addr) {
  GuestLockHolder hold(g_client.lock);
  const uint64_t old_whole = RoundUp(old_bytes, kPage);
  const uint64_t new_whole = RoundUp(new_bytes, kPage);
  // What the kernel refuses, with its own errno. (No user space is longer than that.)
  constexpr uint64_t kMostBytes = uint64_t{1} << 47;
  const bool odd = old_addr % kPage != 0 || new_whole == 0 || new_bytes > kMostBytes ||
                   (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0;
  const Region* found = odd ? nullptr : g_client.regions.Find(old_addr);
  const Region source = found != nullptr ? *found : Region{};
  const bool moves_ours = found != nullptr && old_whole <= source.va + source.bytes - old_addr;
  const bool keeps_old = old_whole == 0 || (flags & MREMAP_DONTUNMAP) != 0;
  Region window = source;
  window.offset = source.offset + (old_addr - source.va);
  window.bytes = new_whole;

  // What goes, and what is replaced.
  const uint64_t stays = (flags & MREMAP_FIXED) != 0 ? 0 : new_whole;
  int cut = WhyNotCutLocked(old_addr + stays, old_addr + old_whole);
  if (cut == 0 && (flags & MREMAP_FIXED) != 0)
    cut = WhyNotCutLocked(new_addr, new_addr + new_whole);
  if (!odd && cut != 0) return -cut;

  Move move = {old_addr, old_bytes, new_bytes, flags, new_addr};
  long own = 0;
  if (!odd && g_client.regions.HasTracked() && RemapOwnLocked(move, &own)) return own;
  uint64_t reserved = 0;
  if (moves_ours && (!keeps_old || IsOptIn(source))) {
    move.old_bytes = old_whole;
    move.new_bytes = new_whole;
    reserved = ChooseLocked(&move, window.offset);
  }
  long got = CallKernel(move);
  // Adopted memory is not watched: there the kernel's answer is that of plain Linux.
  const bool parts = got == -EFAULT && moves_ours && source.kind != RegionKind::kAdopted &&
                     old_whole == new_whole && (move.flags & MREMAP_FIXED) != 0 &&
                     IsWhollyMapped(old_addr, old_whole);
  if (parts) {
    const bool hugetlb = source.kind == RegionKind::kOwnHugetlb;
    got = MoveInParts({old_addr, old_whole, new_whole, move.flags, move.to},
                      hugetlb ? kBlock : kPage);
  }
  if (raw::Failed(got)) {
    if (reserved != 0) Unreserve(reserved, new_whole);
    return got;
  }
  window.va = static_cast<uint64_t>(got);
  if (window.va != old_addr) ForgetLocked(window.va, new_whole);
  if (!moves_ours) {
    // More than one region, or a part that is none of ours. What was only named, or cut at its end,
    // is where it was.
    if (!keeps_old && window.va != old_addr) RecordMovesLocked(old_addr, old_whole, window.va);
    if (window.va == old_addr && new_whole < old_whole) {
      ForgetLocked(old_addr + new_whole, old_whole - new_whole);
    }
    return got;
  }
  if (!keeps_old) {
    RecordMoveLocked(window, old_addr, old_whole);
    return got;
  }
  // A second window of the same file. One that did not opt in is the kernel's, which serves it from
  // the same frames; only the first is registered. The pager is told that somebody has it whom it
  // does not watch: of such memory there are no snapshots.
  if (IsOptIn(window)) return RecordSecondWindowLocked(window, old_addr);
  if (source.kind != RegionKind::kAdopted) NoteLocked(NewMessage(Kind::kForkIntent));
  return got;
}

}  // namespace hostmm::guest
