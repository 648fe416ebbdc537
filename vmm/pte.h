// Pte: one entry of a software page table, at any level, as a value with checked transitions.
//
// States:  empty -> in flight -> present (small or huge leaf) and back, or a reference to a table.
//          An entry in flight remembers whether it was empty or present before, so that an
//          abandoned fault can put it back. Copied is a state of a snapshot's entries only: the
//          page was written since, and stands as it was in a pre-image frame.
//
//            bits 0-2   state: 0 empty, 1 table, 2 present, 3 in flight, 4 copied
//            bit  3     leaf size: huge
//            bit  4     in flight: was present before
//            bits 5-7   access
//            bits 8-63  leaf: number of the frame (4 KiB units of the frame store)
//                       table: HostOffset of the table
//
// Units:   frame numbers count 4 KiB. In the frame stores of today a frame lies at its page's own
//          offset, so that frame number and file page are equal (CheckInvariants holds us to it).
//          Frames of copied entries are those of the file's pre-image store, wherever there was
//          room.
// Threads: a value. Errors: a word that no Pte wrote has valid() == false; transitions REQUIRE the
//          state that they start from.

#ifndef HOSTMM_VMM_PTE_H_
#define HOSTMM_VMM_PTE_H_

#include <cassert>
#include <cstdint>

#include "vmm/access.h"
#include "vmm/units.h"

namespace hostmm {

using FrameNumber = Unit<struct FrameNumberTag>;

enum class LeafSize : uint8_t { kSmall, kHuge };

class Pte {
 public:
  constexpr Pte() = default;

  static constexpr Pte Table(HostOffset table) { return Pte(kTable | table.value() << kShift); }
  static constexpr Pte Present(LeafSize size, FrameNumber frame, AccessSet access) {
    return Pte(kPresent | SizeBit(size) | uint64_t{access.bits()} << kAccessShift |
               frame.value() << kShift);
  }
  // An empty entry that a populate has taken on.
  static constexpr Pte InFlight(LeafSize size, FrameNumber frame, AccessSet access) {
    return Pte((Present(size, frame, access).word_ & ~kStateMask) | kInFlight);
  }

  // The first of the frames that hold the page (huge: the block) as it was. Nobody's access is
  // decided by it: who maps a snapshot has the access of his region.
  static constexpr Pte Copied(LeafSize size, FrameNumber frame) {
    return Pte(kCopied | SizeBit(size) | frame.value() << kShift);
  }

  // The word in the segment. FromRaw takes any bits; check valid() before trusting them.
  constexpr uint64_t raw() const { return word_; }
  static constexpr Pte FromRaw(uint64_t word) { return Pte(word); }

  constexpr bool valid() const {
    switch (word_ & kStateMask) {
      case kEmpty:
        return word_ == 0;
      case kTable:
        return (word_ & kLeafBits) == 0;
      case kPresent:
        return (word_ & kWasPresentBit) == 0;
      case kCopied:
        return (word_ & (kLeafBits & ~kHugeBit)) == 0;
      default:
        return is_in_flight();
    }
  }
  constexpr bool is_empty() const { return word_ == 0; }
  constexpr bool is_table() const { return (word_ & kStateMask) == kTable; }
  constexpr bool is_present() const { return (word_ & kStateMask) == kPresent; }
  constexpr bool is_in_flight() const { return (word_ & kStateMask) == kInFlight; }
  constexpr bool is_copied() const { return (word_ & kStateMask) == kCopied; }
  constexpr bool is_leaf() const { return is_present() || is_in_flight() || is_copied(); }
  constexpr bool is_huge() const { return (word_ & kHugeBit) != 0; }
  constexpr bool was_present() const { return (word_ & kWasPresentBit) != 0; }

  // REQUIRES: is_table().
  constexpr HostOffset table() const { return HostOffset(word_ >> kShift); }
  // REQUIRES: is_leaf().
  constexpr FrameNumber frame() const { return FrameNumber(word_ >> kShift); }
  constexpr AccessSet access() const {
    return AccessSet::FromBits(static_cast<uint8_t>(word_ >> kAccessShift));
  }

  // Transitions. Each REQUIRES what its name says of the entry that it starts from.
  constexpr Pte TakeOffFromPresent() const {
    assert(is_present());
    return Pte((word_ & ~kStateMask) | kInFlight | kWasPresentBit);
  }
  constexpr Pte LandFromInFlight() const {
    assert(is_in_flight());
    return Pte((word_ & ~(kStateMask | kWasPresentBit)) | kPresent);
  }
  constexpr Pte AbandonFromInFlight() const {
    assert(is_in_flight());
    return was_present() ? LandFromInFlight() : Pte();
  }
  // What a copy of the entry says, which nobody will commit.
  constexpr Pte ForCopy() const { return is_in_flight() ? AbandonFromInFlight() : *this; }
  // A hole was punched under a running populate: if that fails, the entry is empty.
  constexpr Pte ForgetOldInFlight() const {
    assert(is_in_flight());
    return Pte(word_ & ~kWasPresentBit);
  }

  friend constexpr bool operator==(Pte, Pte) = default;

 private:
  static constexpr uint64_t kStateMask = 7;
  static constexpr uint64_t kEmpty = 0;
  static constexpr uint64_t kTable = 1;
  static constexpr uint64_t kPresent = 2;
  static constexpr uint64_t kInFlight = 3;
  static constexpr uint64_t kCopied = 4;
  static constexpr uint64_t kHugeBit = 8;
  static constexpr uint64_t kWasPresentBit = 16;
  static constexpr int kAccessShift = 5;
  static constexpr int kShift = 8;
  static constexpr uint64_t kLeafBits = 0xff & ~kStateMask;

  explicit constexpr Pte(uint64_t word) : word_(word) {}
  static constexpr uint64_t SizeBit(LeafSize size) {
    return size == LeafSize::kHuge ? kHugeBit : 0;
  }

  uint64_t word_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_PTE_H_
