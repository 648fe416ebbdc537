#include "vmm/snapshot_tables.h"

#include <algorithm>
#include <cassert>

#include "vmm/snapshot_list.h"

namespace hostmm {
namespace {

// The snapshot's own table at `level` on the way to the page; null if it shares there.
HostOffset OwnTableAt(const SegmentView& view, const MmRecord& snapshot, int level, FilePage page) {
  HostOffset table(snapshot.top.Load());
  for (int at = MmTraits::Load(snapshot).top_level; at > level; --at) {
    const Pte entry = Pte::FromRaw(view.entries(table)[view.geometry().IndexAt(at, page)].Load());
    if (!IsOwnTable(view, entry)) return kNullOffset;
    table = entry.table();
  }
  return table;
}

}  // namespace

bool IsOwnTable(const SegmentView& view, Pte entry) {
  if (!entry.is_table()) return false;
  const NodeRecord* node = view.node(view.NodeAt(entry.table()));
  return node != nullptr && NodeUse::Load(*node).kind == NodeKind::kSnapshot;
}

Pte FindCopied(const SegmentView& view, const MmRecord& snapshot, FilePage page) {
  const Geometry& geometry = view.geometry();
  HostOffset table(snapshot.top.Load());
  // A damaged level must not index past the geometry.
  for (int level = std::min<int>(MmTraits::Load(snapshot).top_level, geometry.levels - 1);
       level >= 0; --level) {
    const SharedWord* entries = view.entries(table);
    if (entries == nullptr) return Pte();
    const Pte entry = Pte::FromRaw(entries[geometry.IndexAt(level, page)].Load());
    if (entry.is_copied()) {
      const uint64_t offset = entry.is_huge() ? IndexInBlock(page) : 0;
      return Pte::Copied(LeafSize::kSmall, FrameNumber(entry.frame().value() + offset));
    }
    if (!IsOwnTable(view, entry)) return Pte();
    table = entry.table();
  }
  return Pte();
}

bool SharesLivePage(const SegmentView& view, const MmRecord& snapshot, FilePage page) {
  // The file may have grown inside its last block, of which the snapshot has the beginning.
  if (MmTraits::Load(snapshot).live_frames == FrameKind::kHugetlb) {
    page = FirstPageOf(BlockFloor(page));
  }
  return page.value() < snapshot.length.Load() && FindCopied(view, snapshot, page).is_empty();
}

bool IsLivePageShared(const SegmentView& view, const MmRecord& source, FilePage page) {
  const MmRecord* newest = NewestSnapshotOf(view, source);
  return newest != nullptr && SharesLivePage(view, *newest, page);
}

void WithdrawFromSnapshots(const Segment& segment, const MmRecord& source, HostOffset table,
                           int level, FilePage page) {
  NodeAllocator nodes(segment);
  const uint64_t index = segment.geometry().IndexAt(level, page);
  ForEachSnapshotOf(segment, source, [&](MmId, const MmRecord& snapshot) {
    const HostOffset parent = OwnTableAt(segment, snapshot, level, page);
    if (parent == kNullOffset) return;
    SharedWord& entry = segment.entries(parent)[index];
    // Of a table that several snapshots have, the first of them did it.
    if (Pte::FromRaw(entry.Load()) != Pte::Table(table)) return;
    NodeRecord* record = nodes.RecordOf(parent);
    NodeFill fill = NodeFill::Load(*record);
    --fill.live;
    fill.StoreTo(record);
    entry.Store(Pte().raw());
    nodes.DropUse(table);
  });
}

Pte SnapshotTables::LiveEntryAt(int level, FilePage page) const {
  HostOffset table(source_->top.Load());
  for (int at = traits_.top_level; at > level; --at) {
    const Pte entry = EntryAt(table, IndexAt(at, page));
    if (!entry.is_table()) return Pte();
    table = entry.table();
  }
  return EntryAt(table, IndexAt(level, page));
}

uint32_t SnapshotTables::CountLowest(HostOffset table, int level, uint32_t enough) const {
  uint32_t found = 0;
  for (uint64_t i = 0; level > 0 && i < EntriesAt(level) && found < enough; ++i) {
    const Pte entry = EntryAt(table, i);
    if (entry.is_table()) found += CountLowest(entry.table(), level - 1, enough - found);
  }
  return found == 0 && level != traits_.top_level ? 1 : found;
}

uint32_t SnapshotTables::CountTables(HostOffset table, int level) const {
  uint32_t found = 1;
  for (uint64_t i = 0; level > 0 && i < EntriesAt(level); ++i) {
    const Pte entry = EntryAt(table, i);
    if (entry.is_table()) found += CountTables(entry.table(), level - 1);
  }
  return found;
}

SnapshotTables::Depth SnapshotTables::DepthOfTake(uint32_t min_shared_tables) const {
  const uint32_t lowest =
      CountLowest(HostOffset(source_->top.Load()), traits_.top_level, min_shared_tables);
  return lowest < min_shared_tables ? Depth::kCopyLower : Depth::kShareLower;
}

uint32_t SnapshotTables::TablesAtTake(Depth depth) const {
  if (depth == Depth::kShareLower) return 1;
  return CountTables(HostOffset(source_->top.Load()), traits_.top_level);
}

void SnapshotTables::SetEntry(HostOffset table, uint64_t index, Pte next) {
  SharedWord& word = segment_.entries(table)[index];
  NodeRecord* record = nodes_.RecordOf(table);
  NodeFill fill = NodeFill::Load(*record);
  fill.live =
      static_cast<uint16_t>(fill.live + !next.is_empty() - !Pte::FromRaw(word.Load()).is_empty());
  fill.StoreTo(record);
  word.Store(next.raw());
}

void SnapshotTables::CopyEntries(HostOffset from, HostOffset to, int level, FilePage first,
                                 Depth depth) {
  const SharedWord* source = segment_.entries(from);
  SharedWord* target = segment_.entries(to);
  const uint64_t entries = EntriesAt(level);
  NodeFill fill;
  for (uint64_t i = 0; i < entries; ++i) {
    Pte entry = Pte::FromRaw(source[i].Load()).ForCopy();
    if (entry.is_empty()) continue;
    if (entry.is_table() && depth == Depth::kCopyLower) {
      const FilePage below = first + PageCount(i << segment_.geometry().SpanShift(level));
      entry = Pte::Table(CopyOf(entry, level - 1, below, depth));
    } else if (entry.is_table()) {
      nodes_.RaiseUse(entry.table());
    }
    target[i].Store(entry.raw());
    ++fill.live;
  }
  fill.StoreTo(nodes_.RecordOf(to));
}

// The live leaf stays: its kernel mappings are what they were.
void SnapshotTables::SplitInto(HostOffset table, FilePage first) {
  SharedWord* target = segment_.entries(table);
  NodeFill fill;
  fill.live =
      static_cast<uint16_t>(std::min(kPagesPerBlock, source_->length.Load() - first.value()));
  for (uint64_t i = 0; i < fill.live; ++i) {
    const FrameNumber frame(first.value() + i);
    target[i].Store(Pte::Present(LeafSize::kSmall, frame, traits_.access).raw());
  }
  fill.StoreTo(nodes_.RecordOf(table));
}

HostOffset SnapshotTables::CopyOf(Pte live, int level, FilePage first, Depth depth) {
  const HostOffset copy = nodes_.Allocate(level, NodeKind::kSnapshot);
  assert(copy != kNullOffset);
  if (live.is_table()) {
    CopyEntries(live.table(), copy, level, first, depth);
  } else if (live.ForCopy().is_present()) {
    assert(level == 0 && live.is_huge());
    SplitInto(copy, first);
  }
  return copy;
}

HostOffset SnapshotTables::CopyTop(Depth depth) {
  return CopyOf(Pte::Table(HostOffset(source_->top.Load())), traits_.top_level, FilePage(0), depth);
}

uint32_t SnapshotTables::TablesToPrivatize(FilePage page) const {
  // A snapshot that has no own table at some level needs one at each level below, and all that do
  // so get the same: the one that shares highest decides.
  int shares_from = LeafLevel() - 1;
  for (const MmRecord* snapshot = NewestSnapshotOf(segment_, *source_);
       snapshot != nullptr && SharesLivePage(segment_, *snapshot, page);
       snapshot = OlderSnapshot(segment_, *snapshot)) {
    int level = traits_.top_level - 1;
    while (level >= LeafLevel() && OwnTableAt(segment_, *snapshot, level, page) != kNullOffset) {
      --level;
    }
    shares_from = std::max(shares_from, level);
  }
  return static_cast<uint32_t>(shares_from - (LeafLevel() - 1));
}

uint32_t SnapshotTables::Privatize(Range range, FrameNumber frame) {
  const FilePage page = range.first;
  std::vector<HostOffset> tables;  // of those that share the page: each one's at the level at hand
  for (const MmRecord* snapshot = NewestSnapshotOf(segment_, *source_);
       snapshot != nullptr && SharesLivePage(segment_, *snapshot, page);
       snapshot = OlderSnapshot(segment_, *snapshot)) {
    tables.push_back(HostOffset(snapshot->top.Load()));
  }
  for (int level = traits_.top_level; level > LeafLevel(); --level) {
    const uint64_t index = IndexAt(level, page);
    HostOffset made = kNullOffset;
    for (HostOffset& table : tables) {
      const Pte entry = EntryAt(table, index);
      if (IsOwnTable(segment_, entry)) {
        table = entry.table();
        continue;
      }
      if (made == kNullOffset) {
        const FilePage first(page.value() >> segment_.geometry().SpanShift(level)
                                                 << segment_.geometry().SpanShift(level));
        made = CopyOf(LiveEntryAt(level, page), level - 1, first, Depth::kShareLower);
      } else {
        nodes_.RaiseUse(made);
      }
      SetEntry(table, index, Pte::Table(made));
      if (entry.is_table()) nodes_.DropUse(entry.table());
      table = made;
    }
  }
  std::sort(tables.begin(), tables.end());
  tables.erase(std::unique(tables.begin(), tables.end()), tables.end());
  const bool huge = LeafLevel() == 1;
  for (const HostOffset table : tables) {
    for (uint64_t i = 0; i < (huge ? 1 : range.count.value()); ++i) {
      SetEntry(
          table, IndexAt(LeafLevel(), page + PageCount(i)),
          Pte::Copied(huge ? LeafSize::kHuge : LeafSize::kSmall, FrameNumber(frame.value() + i)));
    }
  }
  // Also for those who have the table, but not the page: their files are shorter.
  ForEachSnapshotOf(segment_, *source_, [&](MmId id, const MmRecord& snapshot) {
    const Pte copied = FindCopied(segment_, snapshot, page);
    if (copied == Pte::Copied(LeafSize::kSmall, frame)) {
      segment_.mm(id.slot)->pages_copied.Add(range.count.value());
    }
  });
  return static_cast<uint32_t>(tables.size());
}

void SnapshotTables::Release(Pte entry, int level, MmId source, std::vector<FreedFrames>* freed) {
  if (entry.is_copied()) {
    freed->push_back(
        {source, entry.frame(), PageCount(entry.is_huge() ? kPagesPerBlock : uint64_t{1})});
  }
  if (!entry.is_table()) return;
  const HostOffset table = entry.table();
  const bool own = IsOwnTable(segment_, entry);
  if (nodes_.DropUse(table) != 0) return;
  assert(own);  // the live file names its tables itself
  for (uint64_t i = 0; i < EntriesAt(level - 1); ++i) {
    Release(EntryAt(table, i), level - 1, source, freed);
  }
  nodes_.Free(table);
}

void SnapshotTables::Drop(MmRecord* snapshot, std::vector<FreedFrames>* freed) {
  const HostOffset top(snapshot->top.Load());
  const MmId source = SourceOf(*snapshot);
  for (uint64_t i = 0; i < EntriesAt(traits_.top_level); ++i) {
    const Pte entry = EntryAt(top, i);
    if (entry.is_empty()) continue;
    SetEntry(top, i, Pte());
    Release(entry, traits_.top_level, source, freed);
  }
  snapshot->pages_copied.Store(0);
}

}  // namespace hostmm
