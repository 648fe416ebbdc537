// A fault as the tables see it, and the answer to it, both plain values.
//
// Flow:    runtime decodes a uffd_msg into a FaultEvent; Decide (fault_policy.h) turns it into a
//          FaultDecision; the runtime carries that out; Commit records how it went.
// Units:   GuestAddr in bytes, FilePage and PageCount in 4 KiB pages, wake_bytes in bytes.
// Threads: values; no shared state.
// Errors:  none.

#ifndef HOSTMM_VMM_FAULT_H_
#define HOSTMM_VMM_FAULT_H_

#include <cstdint>

#include "vmm/access.h"
#include "vmm/units.h"

namespace hostmm {

// kMissing: the file has no page there. kMinor: it has, this guest's kernel table has not (tracked
// regions). kWriteProtect: mapped, but write-protected by userfaultfd.
enum class FaultKind : uint8_t { kMissing, kMinor, kWriteProtect };

struct FaultEvent {
  GuestId guest{};
  GuestAddr addr{};  // any byte of the page
  Access access = Access::kRead;
  FaultKind kind = FaultKind::kMissing;
};

enum class FaultAction : uint8_t {
  kPopulate,   // make frames for [first, first + count) with the given grain, Commit, then wake
  kContinue,   // the frames exist: UFFDIO_CONTINUE [first, first + count) in this guest, Commit
  kJoin,       // somebody else's populate covers it: park until that Commit, then wake
  kWake,       // nothing to make: lift a write protection if the kind was that, and wake
  kDeny,       // not ours to answer: unregister the range and wake, so that the kernel answers as
               // without us
  kPrivatize,  // first write since a snapshot: copy [first, first + count) to a pre-image frame,
               // tell CowTables, take the pages away from the views, then let the writer go on
  kUnprotect,  // lift the write protection of [first, first + count) in this guest, and wake
  kView,       // a view of a snapshot: answer with what CowTables::Find says
};

// Why a decision is what it is. Every event has exactly one cause (invariant I7).
enum class FaultCause : uint8_t {
  kFirstTouch,     // first fault of an untouched block, small frames
  kFillAround,     // later fault in a block of small frames
  kDense,          // the block proved to be in use: fill it and collapse it
  kFilled,         // base frames: this fault fills the block, so it can be collapsed
  kHugeHint,       // the region asked for huge frames
  kHugeNeighbour,  // the block before or behind is huge: the region is being filled
  kHugetlbFrames,  // the file has only huge frames
  kRefill,         // the table thinks it present: a hole was punched behind us, or two events raced
  kStaleAccess,  // as the others, but the region forbids this access: the kernel will answer after
                 // the wake
  kUntracked,    // no table node left: populated, but not remembered
  kPresent,      // minor fault on an entry that we know
  kUnknownPresent,  // minor fault on an entry that we did not know
  kInFlight,        // joined to a populate that is running
  kWriteProtected,  // write to a page that userfaultfd protects, allowed by the region
  kNoSuchGuest,     // the id names no live guest
  kNoRegion,        // no region of the guest contains the address
  kBeyondFile,      // inside a region, but behind the file's last page
  kForbidden,       // write-protect fault in a region that is not writable
  kAdoptedFile,     // adopted files are never registered; this one was
  kFirstWrite,      // first write to the page since the newest snapshot
  kPrivatized,      // its snapshots have a copy already
  kViewTouch,       // touch of a snapshot's view
  kLostSnapshot,    // touch of a view whose snapshot is lost
  kCount,
};

// kCollapse: fill every hole of the block with small pages, then collapse the block to one huge
// frame.
enum class Grain : uint8_t { kSmall, kHuge, kCollapse };

// kNeighbour: take the huge grain only if a sample of `neighbour` shows that it is really used;
// otherwise make the small fallback and say so in Commit.
enum class Probe : uint8_t { kNone, kNeighbour };

struct FaultDecision {
  FaultAction action = FaultAction::kDeny;
  FaultCause cause = FaultCause::kNoSuchGuest;
  Grain grain = Grain::kSmall;
  GuestId guest{};
  MmId mm{};
  BlockIndex block{};
  FilePage first{};  // kHuge, kCollapse: the block's first page
  PageCount count{};
  // The part of the guest's region to wake: the block or the pages, clipped to the region.
  GuestAddr wake_start{};
  uint64_t wake_bytes = 0;
  Probe probe = Probe::kNone;
  BlockIndex neighbour{};
  // What to populate instead when a kHuge grain cannot be had. Zero pages where the file has only
  // huge frames.
  FilePage fallback_first{};
  PageCount fallback_count{};
  // kContinue: map it write-protected, a snapshot shares it. The first write is an event then.
  bool write_protect = false;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_FAULT_H_
