// SnapshotChecker: the part of CheckInvariants that is about snapshots (I14, and what I4, I5 and I6
// say of their tables).
//
// Flow:    CheckList for each live file, then CheckTables for each snapshot, then CheckFrames; if
//          nothing is wrong, CheckOrder for each snapshot.
// Units:   messages carry the numbers that disagree.
// Threads: any reader, on any bytes.
// Errors:  all go to the hooks; damaged bytes never do worse. CheckOrder REQUIRES sound tables.

#ifndef HOSTMM_VMM_SNAPSHOT_INVARIANTS_H_
#define HOSTMM_VMM_SNAPSHOT_INVARIANTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "vmm/host_mm.h"
#include "vmm/pte.h"
#include "vmm/segment.h"

namespace hostmm {

class SnapshotChecker {
 public:
  struct Hooks {
    std::function<void(const std::string& text)> problem;
    // Marks an own table of a snapshot as met. RETURNS: whether it may be looked into.
    std::function<bool(HostOffset table, int level, const std::string& owner)> enter;
    // Counts one entry, or one owner of a top, that names the table.
    std::function<void(HostOffset table)> name;
  };

  SnapshotChecker(const SegmentView& view, Hooks hooks)
      : view_(view), hooks_(std::move(hooks)), listed_(size_t{view.config().max_mms} + 1) {}

  // The list of a file's snapshots: newest first, both ways, each with its pin.
  void CheckList(MmId id, const MmRecord& file);
  // What a snapshot shares is live, what it has of its own makes sense, and is counted.
  void CheckTables(MmId id, const MmRecord& mm);
  // A pre-image frame holds one page only.
  void CheckFrames();
  // Where a snapshot has a page for itself, the next older one that has the page has it so too.
  void CheckOrder(MmId id, const MmRecord& mm);

 private:
  // One snapshot, and what it is of.
  struct Snapshot {
    std::string name;
    MmId source;
    MmTraits traits;
  };
  // An own table of one or more snapshots, as it was met first.
  struct OwnTable {
    MmId source;
    int level = 0;
    FilePage first;
    uint64_t copied = 0;  // pages in and below it
  };
  struct Preimage {
    MmId source;
    FrameNumber frame;
    FilePage page;
    auto operator<=>(const Preimage&) const = default;
  };

  template <class... Parts>
  void Problem(const Parts&... parts);
  static bool IsOf(const Snapshot& snapshot, const MmRecord& mm, const MmRecord* file);
  // `live`: the live file's table of the same place; null if it has none.
  uint64_t WalkOwnTable(const Snapshot& snapshot, HostOffset table, HostOffset live, int level,
                        FilePage first);
  uint64_t CheckEntry(const Snapshot& snapshot, Pte entry, Pte live, int level, FilePage page);
  void CheckLeaf(const Snapshot& snapshot, Pte entry, int level, FilePage page);
  void CheckOlderHas(const std::string& owner, const MmRecord& older, HostOffset table, int level,
                     FilePage first);

  const SegmentView& view_;
  Hooks hooks_;
  std::vector<bool> listed_;                 // mms met in a file's list
  std::map<uint64_t, OwnTable> own_tables_;  // by offset
  std::vector<Preimage> preimages_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_SNAPSHOT_INVARIANTS_H_
