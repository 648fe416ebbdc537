// Which pages of snapshots are mapped from the live file, and in which guests: those that must be
// taken away before the live file's page may change.
//
// A set may name more than is mapped, never less.
// Units:    pages of 4 KiB of the file. Threads: the loop thread. No system call, no allocation but
//           of the sets.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_VIEW_PAGES_H_
#define HOSTMM_RUNTIME_SNAPSHOT_VIEW_PAGES_H_

#include <bitset>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "vmm/units.h"

namespace hostmm {

class ViewPages {
 public:
  // REQUIRES: the pages lie in one block.
  void Add(GuestId guest, MmId snapshot, FilePage first, PageCount count);
  void Remove(GuestId guest, MmId snapshot, FilePage first, PageCount count);
  bool Has(GuestId guest, MmId snapshot, FilePage page) const;
  // Who has one of the pages. REQUIRES: they lie in one block.
  std::vector<GuestId> Holders(MmId snapshot, FilePage first, PageCount count) const;

  void DropGuest(GuestId guest);
  void DropSnapshot(MmId snapshot);

 private:
  using Pages = std::bitset<kPagesPerBlock>;
  using Blocks = absl::flat_hash_map<uint64_t, Pages>;
  using Holdings = absl::flat_hash_map<uint64_t, Blocks>;  // by guest

  static uint64_t KeyOf(GuestId guest) {
    return (static_cast<uint64_t>(guest.generation) << 32) | guest.slot;
  }
  static uint64_t KeyOf(MmId mm) { return (static_cast<uint64_t>(mm.generation) << 32) | mm.slot; }

  absl::flat_hash_map<uint64_t, Holdings> snapshots_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_VIEW_PAGES_H_
