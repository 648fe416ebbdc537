// Access rights and the few enumerations that name what kind of memory a file or region is.
//
// Units:   none. AccessSet is a set of the rights read, write and exec in one byte; the
//          translation from PROT_* lives in runtime/, so that this header needs no system header.
// Threads: values; no shared state.
// Errors:  TableStatus names why an operation on the tables was refused; a refused operation
//          changed nothing.

#ifndef HOSTMM_VMM_ACCESS_H_
#define HOSTMM_VMM_ACCESS_H_

#include <cstdint>

namespace hostmm {

enum class Access : uint8_t { kNone = 0, kRead = 1, kWrite = 2, kExec = 4 };

class AccessSet {
 public:
  constexpr AccessSet() = default;
  // Implicit, so that a single right can stand wherever a set is wanted.
  constexpr AccessSet(Access access) : bits_(static_cast<uint8_t>(access)) {}

  static constexpr AccessSet ReadWrite() { return AccessSet(Access::kRead) | Access::kWrite; }
  static constexpr AccessSet All() { return ReadWrite() | Access::kExec; }
  // Bits above the three known rights are dropped.
  static constexpr AccessSet FromBits(uint8_t bits) {
    AccessSet set;
    set.bits_ = bits & kMask;
    return set;
  }

  constexpr uint8_t bits() const { return bits_; }
  constexpr bool empty() const { return bits_ == 0; }
  // kNone is a member of every set.
  constexpr bool Contains(Access access) const {
    return (bits_ & static_cast<uint8_t>(access)) == static_cast<uint8_t>(access);
  }
  constexpr bool IsSubsetOf(AccessSet other) const { return (bits_ & ~other.bits_) == 0; }

  friend constexpr AccessSet operator|(AccessSet a, AccessSet b) {
    return FromBits(a.bits_ | b.bits_);
  }
  friend constexpr AccessSet operator&(AccessSet a, AccessSet b) {
    return FromBits(a.bits_ & b.bits_);
  }
  friend constexpr bool operator==(AccessSet, AccessSet) = default;

 private:
  static constexpr uint8_t kMask = 7;
  uint8_t bits_ = 0;
};

// How a region was mapped. kUnshare: by an unaware program, everything must look like plain Linux.
// kSharedPt: the program opted in, protection is that of everybody who did. kDedicated: as
// kSharedPt, and plain mprotect is refused by the runtime.
enum class ShareMode : uint8_t { kUnshare = 0, kSharedPt = 1, kDedicated = 2 };

// Where a file's frames come from: our huge tmpfs, a hugetlb memfd, a 4 KiB memfd, a file in memory
// that is not ours, or a file of a filesystem that has its own page cache (ext4, xfs). A kForeign
// file is the kernel's: it is in the tables for what its regions allow, but none of its tables is
// shared and none of its blocks collapsed. kSnapshot is no file: the frames of another mm as they
// were at one moment (cow_tables.h).
enum class FrameKind : uint8_t {
  kHuge = 0,
  kHugetlb = 1,
  kBase = 2,
  kAdopted = 3,
  kForeign = 4,
  kSnapshot = 5,
};

// Whose faults are none of ours: the kernel serves the holes of files that it knew before us.
constexpr bool IsServedByKernel(FrameKind frames) {
  return frames == FrameKind::kAdopted || frames == FrameKind::kForeign;
}

enum class TableStatus : uint8_t {
  kOk,
  kNoSpace,      // a pool of the segment (guests, mms, regions, nodes) is exhausted
  kNoSuchGuest,  // the id names no live guest
  kNoSuchMm,     // the id names no live mm
  kBadRange,     // not page-aligned, empty, overflowing, or not mapped where it must be
  kOverlap,      // something is mapped there already
  kBusy,         // entries of the range are in flight; ask again after their Commit
};

enum class Writable : uint8_t { kNo, kYes };

}  // namespace hostmm

#endif  // HOSTMM_VMM_ACCESS_H_
