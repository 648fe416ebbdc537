// CowTables: point-in-time snapshots of shared files, on copy-on-write page tables.
//
// What:    a snapshot is an mm of its own (FrameKind::kSnapshot), mapped, pinned and released as
//          any other. When it is taken only a top is copied; the first write to a page since then
//          copies the tables above it, then the page, once for all snapshots that share it. The
//          writer keeps its frame: the live tables never change for a snapshot.
// Flow:    runtime freezes everybody who can write -> Take. Decide says kPrivatize for a first
//          write -> runtime copies the page to a frame (FramePool) -> Privatize -> the writer goes
//          on. Decide says kView for a touch in a view -> Find. The last region or pin of a
//          snapshot goes -> HostTables tells the frame sink which frames its tables have named.
// Memory:  the segment's, apart from what is returned; this object is a view of it. A snapshot
//          keeps a pin on its source.
// Units:   FilePage, PageCount and FrameNumber in 4 KiB pages.
// Threads: the pager's loop thread.
// Errors:  TableStatus; an operation that is refused has changed nothing.

#ifndef HOSTMM_VMM_COW_TABLES_H_
#define HOSTMM_VMM_COW_TABLES_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "vmm/host_tables.h"
#include "vmm/pte.h"

namespace hostmm {

struct CowPolicy {
  // With fewer lowest tables (pte tables, or pmd tables full of huge leaves) all are copied at
  // once: "sharing three page-table pages is a loss, from four on it pays" (McCracken's
  // measurements, LWN, January 2003). 1 shares always.
  uint32_t min_shared_tables = 4;
};

class CowTables {
 public:
  explicit CowTables(HostTables* tables) : tables_(*tables) {}

  // A snapshot of all that `source` holds now. Like a new mm it has no region and no pin yet; the
  // caller pins it. `owner_uid`: whose it is, by default the source's. kNoSuchMm. kBadRange:
  // `source` is a snapshot, or served by the kernel, whose first writes nobody sees. kNoSpace.
  TableStatus Take(MmId source, const CowPolicy& policy, MmId* snapshot,
                   std::optional<uint32_t> owner_uid = std::nullopt);
  // Newest first; without lost ones.
  std::vector<MmId> SnapshotsOf(MmId source) const;
  // Invalid: not a snapshot, or lost.
  MmId SourceOf(MmId snapshot) const;

  // Whether some snapshot shares the page with the live file: its next write is a first write.
  bool IsShared(MmId source, FilePage page) const;
  // Those snapshots, newest first.
  std::vector<MmId> Sharing(MmId source, FilePage page) const;

  // The pages of [first, first + count) as they are now stand in pre-image frames from `frame` on:
  // makes the entries of all snapshots that share the pages name these. `uses`: the tables that
  // name each frame now, to be told to FramePool; 0 if nobody shares them, and no frame is needed.
  // kNoSuchMm. kNoSpace. kBadRange: not in one block; on hugetlb frames, not a whole block; not the
  // same snapshots share all of the pages (Sharing; a single page or block is always right).
  TableStatus Privatize(MmId source, FilePage first, PageCount count, FrameNumber frame,
                        uint32_t* uses);

  struct Page {
    enum class From : uint8_t { kLive, kPreimage };
    From from = From::kLive;
    FrameNumber frame{};  // of the live file's store (equal to the page), or of its pre-image store
    friend bool operator==(const Page&, const Page&) = default;
  };
  // Where a page of a snapshot stands. REQUIRES: the snapshot is alive and not lost.
  Page Find(MmId snapshot, FilePage page) const;

  struct Run {
    FilePage first;
    PageCount count;
  };
  // The first pages, at or after `from`, of `later` (a snapshot, or the source) that may differ
  // from `earlier`: they were written in between, or were not there. As far as one table tells;
  // nullopt: none. All pages if the two are not of one source, or `later` is the older one. Takes a
  // few tables' time, whatever the size of the file.
  std::optional<Run> NextChange(MmId earlier, MmId later, FilePage from) const;

  // The snapshot cannot be kept (no frame or table for a first write): its frames go, writes need
  // not care for it any more, and faults in its views are denied with cause kLostSnapshot. Regions
  // and pins keep its id alive. Nothing if it is none or lost already.
  void Lose(MmId snapshot, ReleasedMms* released);

 private:
  const Segment& segment() const { return tables_.segment(); }
  // nullptr: not alive, no snapshot, or lost.
  const MmRecord* FindSnapshot(MmId id) const;

  HostTables& tables_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_COW_TABLES_H_
