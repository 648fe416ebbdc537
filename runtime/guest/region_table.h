// What this process has mapped through hostmm: a small fixed table, so that a hook can tell in a
// few instructions that a range is none of ours, and a forked child knows what to register again.
//
// Units:    bytes, page-aligned.
// Threads:  Overlaps may be called by any thread without a lock (it may answer "perhaps").
//           Everything else needs the client's lock.
// Limits:   kCapacity ranges. A program with more keeps its further mappings as plain kernel
//           mappings.
#ifndef HOSTMM_RUNTIME_GUEST_REGION_TABLE_H_
#define HOSTMM_RUNTIME_GUEST_REGION_TABLE_H_

#include <cstddef>
#include <cstdint>

#include "runtime/protocol.h"

namespace hostmm::guest {

enum class RegionKind : uint8_t { kOwnFrames, kOwnHugetlb, kAdopted };

struct Region {
  uint64_t va;
  uint64_t bytes;
  uint64_t offset;  // in the file
  protocol::MmHandle mm;
  RegionKind kind;
  bool dont_fork;
  uint32_t share;  // kRegionSharedPt, ... of region_flags.h; 0: not opt-in
};

class RegionTable {
 public:
  // Arbitrary: programs that manage their own shared memory have a handful of large mappings. 10
  // KiB.
  static constexpr size_t kCapacity = 256;

  // Whether anything of ours lies in [va, va + bytes). Lock-free; while the table changes it
  // answers "perhaps", which is true. Exact otherwise: an allocator that gives memory back between
  // two of our regions must not take our lock, it may hold its own, which fork wants while it has
  // ours.
  bool Overlaps(uint64_t va, uint64_t bytes) const {
    return va < __atomic_load_n(&high_, __ATOMIC_RELAXED) &&
           va + bytes > __atomic_load_n(&low_, __ATOMIC_RELAXED) && OverlapsAny(va, va + bytes);
  }

  // Whether any region is opt-in. Lock-free: programs that did not opt in pay one load for it.
  bool HasOptIn() const { return __atomic_load_n(&opt_in_, __ATOMIC_RELAXED); }

  size_t size() const { return size_; }
  const Region& operator[](size_t i) const { return regions_[i]; }
  // Room for one more region, and for the extra one that a hole in the middle of another makes.
  bool HasRoom() const { return size_ + 2 <= kCapacity; }
  // The region that holds `va`, or nullptr.
  const Region* Find(uint64_t va) const;
  // The lowest region that ends behind `va`, or nullptr.
  const Region* FindNext(uint64_t va) const;

  // REQUIRES: HasRoom(); nothing is recorded in the range.
  void Add(const Region& region);
  // Forgets [va, va + bytes): cuts, splits and drops what overlaps it. Returns whether anything
  // did.
  bool Remove(uint64_t va, uint64_t bytes);
  // Marks or clears dont_fork on what overlaps the range; whole regions that are only partly
  // covered are split.
  void SetDontFork(uint64_t va, uint64_t bytes, bool dont_fork);
  // Nothing is opt-in any more.
  void MakePlain();
  // Drops the regions that a child did not inherit.
  void DropDontFork();

 private:
  // Brackets every change: `sequence_` is odd meanwhile.
  class Change {
   public:
    explicit Change(RegionTable* table);
    ~Change();  // also brings the bounds up to date

   private:
    RegionTable* const table_;
  };

  bool OverlapsAny(uint64_t va, uint64_t end) const;
  void UpdateBounds();

  // All zero is an empty table: the client's state lies in zeroed memory and needs no constructor.
  uint64_t sequence_;  // written under the lock; readers without it compare before and after
  uint64_t low_;
  uint64_t high_;
  bool opt_in_;  // as the bounds: brought up to date by each change
  size_t size_;
  Region regions_[kCapacity];
};

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_REGION_TABLE_H_
