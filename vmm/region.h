// Region: what a guest asked to have mapped (Linux: vma), as a value, and what there is to say
// about mms and guests.
//
// Units:   GuestAddr in bytes, PageCount and FilePage in 4 KiB pages.
// Threads: values; they hold copies of what was in the segment when they were read.
// Errors:  none here; HostTables refuses specifications that make no sense.

#ifndef HOSTMM_VMM_REGION_H_
#define HOSTMM_VMM_REGION_H_

#include <cstdint>

#include "vmm/access.h"
#include "vmm/units.h"

namespace hostmm {

// Bits of Region::flags.
enum RegionFlags : uint32_t {
  kDontFork = 1,   // MADV_DONTFORK: a child has no such region
  kHintHuge = 2,   // MADV_HUGEPAGE
  kHintSmall = 4,  // MADV_NOHUGEPAGE
  kTracked = 8,    // registered for minor faults: every first access is seen, page by page
  // What a region was mapped as; it stays so for life.
  kSharedPt = 16,   // opt-in (MAP_SHARED_PT): a protect of one is one of all of the page
  kDedicated = 32,  // with kSharedPt: the runtime refuses plain mprotect
  kNeverWrite =
      64,          // mapped from a descriptor that cannot be written: never writable for its guest
  kPrivate = 128,  // MAP_PRIVATE, read-only
  // With kSharedPt: a protect for all has set the access, so that who maps these pages later has it
  // too. Without, each opt-in region has the access that it was mapped with.
  kSettled = 256,
  // Private memory of one guest whose fork is a snapshot: the child gets no region of it, the
  // runtime maps a view there.
  kCow = 512,
  kView = 1024,          // of a snapshot
  kViewWritable = 2048,  // with kView: what its guest writes stays its guest's own
  // With kView: it shares no frame with the live file any more, what is touched is copied.
  kCopyOnly = 4096,
};
// Hints are about the memory, so that one opt-in region gives them for all.
inline constexpr uint32_t kHintFlags = kHintHuge | kHintSmall;
inline constexpr uint32_t kMappedAsFlags =
    kSharedPt | kDedicated | kNeverWrite | kPrivate | kCow | kView | kViewWritable;
inline constexpr uint32_t kChangeableFlags = kDontFork | kHintFlags | kTracked | kCopyOnly;
inline constexpr uint32_t kAllRegionFlags = kChangeableFlags | kMappedAsFlags | kSettled;

struct Region {
  GuestAddr va{};
  PageCount length{};
  MmId mm{};
  FilePage file_page{};  // file page mapped at `va`
  AccessSet access{};
  uint32_t flags = 0;

  GuestAddr end() const { return va + length; }
  FilePage file_end() const { return file_page + length; }
  FilePage PageAt(GuestAddr addr) const { return file_page + PagesBetween(va, PageFloor(addr)); }
  GuestAddr AddrOf(FilePage page) const { return va + (page - file_page); }
  bool IsOptIn() const { return (flags & kSharedPt) != 0; }
  // What the kernel's mapping of this guest is to allow.
  AccessSet KernelAccess() const {
    return (flags & kNeverWrite) == 0 ? access
                                      : access & (AccessSet(Access::kRead) | Access::kExec);
  }
  friend bool operator==(const Region&, const Region&) = default;
};

constexpr ShareMode ShareModeOf(uint32_t region_flags) {
  if ((region_flags & kSharedPt) == 0) return ShareMode::kUnshare;
  return (region_flags & kDedicated) == 0 ? ShareMode::kSharedPt : ShareMode::kDedicated;
}
inline ShareMode ShareModeOf(const Region& region) { return ShareModeOf(region.flags); }

// Addresses [start, end) of one guest.
struct AddrRange {
  GuestAddr start{};
  GuestAddr end{};
};

struct RegionSpec {
  GuestAddr va{};
  PageCount length{};
  MmId mm{};
  FilePage file_page{};
  AccessSet access{};
  uint32_t flags = 0;
};

struct MmSpec {
  PageCount length{};
  FrameKind frames = FrameKind::kHuge;
  uint32_t owner_uid = 0;
  char name[32] = {};  // for people; cut to 31 bytes, need not be unique
};

struct MmInfo {
  MmId id{};
  PageCount length{};
  FrameKind frames = FrameKind::kHuge;
  uint32_t owner_uid = 0;
  char name[32] = {};
  PageCount small_pages{};   // entries present at pte level
  uint64_t huge_blocks = 0;  // entries present at pmd level
  uint64_t in_flight = 0;    // entries in flight, either level
  uint32_t regions = 0;      // regions of all guests that map the file
  uint32_t mappers = 0;      // guests that have at least one of them
  uint32_t pins = 0;         // of whom each snapshot is one
  uint32_t snapshots = 0;    // that are alive and not lost
  // Of a snapshot. Invalid: of no snapshot, or of one that is lost.
  MmId source{};
  uint64_t pages_copied = 0;  // that differ from the live file, in 4 KiB pages
};

struct GuestInfo {
  GuestId id{};
  int32_t pid = 0;
  uint32_t uid = 0;
  uint32_t regions = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_REGION_H_
