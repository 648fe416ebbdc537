// The snapshots of one live file, newest first.
//
// Memory:  the list runs through the mm records; nothing is allocated. The file's record names the
//          newest and counts them, each snapshot its older and its newer neighbour. Numbers
//          (`taken`) fall along the list.
// Units:   none.
// Threads: visiting reads and may run anywhere on any bytes; Link and Unlink are the writer's.
// Errors:  none; a damaged list ends the visit.

#ifndef HOSTMM_VMM_SNAPSHOT_LIST_H_
#define HOSTMM_VMM_SNAPSHOT_LIST_H_

#include "vmm/region.h"
#include "vmm/segment.h"

namespace hostmm {

// Makes it the newest, gives it its number and its pin on the file. REQUIRES: in no list.
void LinkSnapshot(const Segment& segment, MmId source, RecordIndex snapshot);
// The file keeps the pin; afterwards the snapshot is of no file. REQUIRES: the source is alive.
void UnlinkSnapshot(const Segment& segment, RecordIndex snapshot);

inline MmId SourceOf(const MmRecord& snapshot) {
  return {snapshot.source.LoadLow(), snapshot.source.LoadHigh()};
}

// nullptr: the file has none. Wherever it has a page of its own, older ones have too: a first write
// copies for all that share the page, and they share everything when they are taken.
inline const MmRecord* NewestSnapshotOf(const SegmentView& view, const MmRecord& source) {
  return view.mm(source.snapshots.LoadLow());
}
inline const MmRecord* OlderSnapshot(const SegmentView& view, const MmRecord& snapshot) {
  return view.mm(snapshot.snapshots.LoadLow());
}

// `fn(MmId, const MmRecord&)`, newest first. `source` is no snapshot.
template <class Fn>
void ForEachSnapshotOf(const SegmentView& view, const MmRecord& source, Fn fn) {
  RecordIndex index = source.snapshots.LoadLow();
  for (uint32_t i = 0; i < view.config().max_mms; ++i) {
    const MmRecord* record = view.mm(index);
    if (record == nullptr) return;
    const RecordIndex older = record->snapshots.LoadLow();
    fn(MmId{index, record->identity.LoadLow()}, *record);
    index = older;
  }
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_SNAPSHOT_LIST_H_
