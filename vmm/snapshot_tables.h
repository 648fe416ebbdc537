// The tables of snapshots: what they share with the live file, and what they have of their own.
//
// What:    a snapshot has a top of its own. Below it stand the live file's tables, which it shares
//          (their use counts say so), and its own ones (NodeKind::kSnapshot), which tables become
//          when the first page under them is written. Only an own table can hold a copied entry;
//          every other entry of a snapshot, whatever it says, means "as in the live file".
//
//            live top        top of snapshot 2     top of snapshot 1
//            [0][1]          [0][1]                [0][1]
//             |  `--.---------|--'  .---------------|--'      shared: pmd table of span 1
//             |     v         |     |               |
//             v               `-----|-------.-------'
//            pmd table              |       v
//            [a][b] - - - - - -|- - |  own pmd table, one for both    [a] shares the live pte
//            table,
//             |  v             |    |  [a][b]                         [b] is their own: the page
//             was v  pte table     `----|---'  `-> own pte table          written after both were
//             taken
//            pte table              |          [as live][copied] ...
//
// Copies:  snapshots that share a table never differ later below it: what is written is copied for
//          all that share the page. So they get one table, and an own table is never copied again.
// Units:   FilePage, PageCount, levels as in geometry.h.
// Threads: FindCopied, SharesLivePage and IsOwnTable read and may run anywhere on any bytes; the
//          rest is the writer's.
// Errors:  what allocates says before how many nodes it needs; nothing fails half way.

#ifndef HOSTMM_VMM_SNAPSHOT_TABLES_H_
#define HOSTMM_VMM_SNAPSHOT_TABLES_H_

#include <cstdint>
#include <vector>

#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/pte.h"
#include "vmm/segment.h"

namespace hostmm {

// A run of pre-image frames that an entry of a table has named, and no longer does.
struct FreedFrames {
  MmId source;
  FrameNumber first;
  PageCount count;
  friend bool operator==(const FreedFrames&, const FreedFrames&) = default;
};

// Whether the entry, of a snapshot's table, names a table that snapshots have and the file has not.
bool IsOwnTable(const SegmentView& view, Pte entry);
// Where the snapshot has the page for itself: a copied entry that names the page's own frame, also
// where the entry is huge. Empty: it is as in the live file.
Pte FindCopied(const SegmentView& view, const MmRecord& snapshot, FilePage page);
// Whether the snapshot has the page (on hugetlb frames: any of its block) from the live file.
bool SharesLivePage(const SegmentView& view, const MmRecord& snapshot, FilePage page);
// Whether any snapshot of the file shares the page with it.
bool IsLivePageShared(const SegmentView& view, const MmRecord& source, FilePage page);

// Takes a live table, which is about to be freed, out of the own tables of snapshots that name it.
// `level` is that of the entries that may name it, on the way to `page`.
void WithdrawFromSnapshots(const Segment& segment, const MmRecord& source, HostOffset table,
                           int level, FilePage page);

// Of one live file.
class SnapshotTables {
 public:
  SnapshotTables(const Segment& segment, MmRecord* source)
      : segment_(segment), source_(source), nodes_(segment), traits_(MmTraits::Load(*source)) {}

  enum class Depth : uint8_t { kShareLower, kCopyLower };
  // Whether a snapshot shares the tables below its top: not if the live file has fewer than
  // `min_shared_tables` lowest ones (those with nothing but leaves).
  Depth DepthOfTake(uint32_t min_shared_tables) const;
  // Tables that it gets at once.
  uint32_t TablesAtTake(Depth depth) const;
  // REQUIRES: so many nodes are available. RETURNS: the top.
  HostOffset CopyTop(Depth depth);

  // Pages [first, first + count) of one block, for those that share them.
  struct Range {
    FilePage first;
    PageCount count;
  };
  // Tables that Privatize adds.
  uint32_t TablesToPrivatize(FilePage page) const;
  // Makes the entries name frames from `frame` on. REQUIRES: so many nodes are available; the same
  // snapshots share all pages of the range, which on hugetlb frames is the block.
  // RETURNS: the number of tables that name each frame now.
  uint32_t Privatize(Range range, FrameNumber frame);

  // Empties the snapshot's top; what that leaves without a use is freed.
  void Drop(MmRecord* snapshot, std::vector<FreedFrames>* freed);

 private:
  // The level of the table whose entries name pre-image frames.
  int LeafLevel() const { return traits_.live_frames == FrameKind::kHugetlb ? 1 : 0; }
  uint64_t IndexAt(int level, FilePage page) const {
    return segment_.geometry().IndexAt(level, page);
  }
  Pte EntryAt(HostOffset table, uint64_t index) const {
    return Pte::FromRaw(segment_.entries(table)[index].Load());
  }
  // Entries of a table at `level` that the file's length leaves in use.
  uint64_t EntriesAt(int level) const {
    if (level != traits_.top_level) return segment_.geometry().EntriesAt(level);
    return TopEntries(segment_.geometry(), PageCount(source_->length.Load()), level);
  }
  // The live file's entry at `level` on the way to the page; empty if no table has one.
  Pte LiveEntryAt(int level, FilePage page) const;
  uint32_t CountLowest(HostOffset table, int level, uint32_t enough) const;
  uint32_t CountTables(HostOffset table, int level) const;

  // A new own table that says what `live` does: a table at `level`, a huge leaf to be split, or
  // nothing. `first` is the first page that it covers.
  HostOffset CopyOf(Pte live, int level, FilePage first, Depth depth);
  void CopyEntries(HostOffset from, HostOffset to, int level, FilePage first, Depth depth);
  void SplitInto(HostOffset table, FilePage first);
  void SetEntry(HostOffset table, uint64_t index, Pte next);
  // Takes the use of an entry that is not in its table any more off what it names.
  void Release(Pte entry, int level, MmId source, std::vector<FreedFrames>* freed);

  const Segment& segment_;
  MmRecord* source_;
  NodeAllocator nodes_;
  MmTraits traits_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_SNAPSHOT_TABLES_H_
