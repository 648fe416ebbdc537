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
#include "runtime/region_flags.h"

namespace hostmm::guest {

enum class RegionKind : uint8_t { kOwnFrames, kOwnHugetlb, kAdopted };

struct Region {
  uint64_t va = 0;
  uint64_t bytes = 0;
  uint64_t offset = 0;  // in the file
  protocol::MmHandle mm = {};
  RegionKind kind = RegionKind::kOwnFrames;
  bool dont_fork = false;
  uint32_t share = 0;  // kRegionSharedPt, ... of region_flags.h; 0: not opt-in, no view
  // The file has snapshots: every first write to a page comes to the pager, also in a forked child.
  bool frozen = false;
  // A view that is SIGBUS memory now.
  bool lost = false;
  // PROT_*, known of copy-on-write memory and of views alone: what takes their place has it too.
  uint8_t prot = 0;
};

// A mapping of a snapshot.
inline bool IsView(const Region& region) { return (region.share & kRegionView) != 0; }
// Private memory whose fork is a snapshot (MAP_PRIVATE_COW), in the process that mapped it.
inline bool IsCow(const Region& region) {
  return (region.share & (kRegionCow | kRegionView | kRegionPrivate)) == kRegionCow;
}
// The same when it has become the kernel's: a private mapping of its file, of which no pager knows.
inline bool IsGonePrivate(const Region& region) {
  return (region.share & (kRegionCow | kRegionPrivate)) == (kRegionCow | kRegionPrivate);
}
// The same in a child: a view, but private memory of its program.
inline bool IsCowView(const Region& region) {
  return (region.share & kRegionCow) != 0 && IsView(region);
}
// Any of these: memory that is of a program in a way that the kernel does not know.
inline bool IsCowOrView(const Region& region) {
  return (region.share & (kRegionCow | kRegionView)) != 0;
}
inline bool IsSame(protocol::MmHandle a, protocol::MmHandle b) {
  return a.slot == b.slot && a.generation == b.generation;
}

class RegionTable {
 public:
  // Arbitrary: programs that manage their own shared memory have a handful of large mappings. 12
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
  // Whether any region is frozen, a view or copy-on-write. Lock-free, as HasOptIn.
  bool HasTracked() const { return __atomic_load_n(&tracked_, __ATOMIC_RELAXED); }
  // Whether any region is a view that is not lost. Lock-free, as HasOptIn.
  bool HasViews() const { return __atomic_load_n(&views_, __ATOMIC_RELAXED); }

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
  // Records the protection of what overlaps the range and is copy-on-write or a view, split as in
  // SetDontFork.
  void SetProt(uint64_t va, uint64_t bytes, int prot);
  // Whether any region of the file may be written.
  bool MayWrite(protocol::MmHandle mm) const;
  // Marks or clears frozen on all regions of the file that may be written.
  void SetFrozen(protocol::MmHandle mm, bool frozen);
  // Marks the views that lie wholly within the range as lost.
  void SetLost(uint64_t va, uint64_t bytes);
  // REQUIRES: `region` has the range of the i-th.
  void Replace(size_t i, const Region& region);
  // Nothing is opt-in or frozen any more. What is copy-on-write or a view remains so.
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
  // Calls change(Region*) for what lies in [va, end) and wants(region) is true of, cut off from the
  // rest; what there is no room to cut off is left as it is.
  template <class Wants, class Apply>
  void ChangeParts(uint64_t va, uint64_t end, Wants wants, Apply change);
  void UpdateBounds();

  // All zero is an empty table: the client's state lies in zeroed memory and needs no constructor.
  uint64_t sequence_ = 0;  // written under the lock; readers without it compare before and after
  uint64_t low_ = 0;
  uint64_t high_ = 0;
  bool opt_in_ = false;  // as the bounds: brought up to date by each change
  bool tracked_ = false;
  bool views_ = false;
  size_t size_ = 0;
  Region regions_[kCapacity] = {};
};

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_REGION_TABLE_H_
