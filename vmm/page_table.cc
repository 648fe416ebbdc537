#include "vmm/page_table.h"

#include <algorithm>
#include <cassert>

#include "vmm/snapshot_tables.h"
#include "vmm/table_sharing.h"

namespace hostmm {

PteSlot PageTable::FindBlock(BlockIndex block) const {
  const Geometry& geometry = segment_.geometry();
  const FilePage page = FirstPageOf(block);
  HostOffset table = top();
  for (int level = traits_.top_level;; --level) {
    const uint64_t index = geometry.IndexAt(level, page);
    const Pte entry = EntryAt(table, index);
    if (level == kBlockLevel) return {table, index, entry};
    if (!entry.is_table()) return {};
    table = entry.table();
  }
}

PteSlot PageTable::FindPage(FilePage page) const {
  const PteSlot block = FindBlock(BlockFloor(page));
  if (!block.exists() || !block.entry.is_table()) return {};
  const uint64_t index = IndexInBlock(page);
  return {block.entry.table(), index, EntryAt(block.entry.table(), index)};
}

uint32_t PageTable::NodesMissing(BlockIndex block, int level) const {
  const Geometry& geometry = segment_.geometry();
  HostOffset table = top();
  for (int at = traits_.top_level; at > level; --at) {
    const Pte entry = EntryAt(table, geometry.IndexAt(at, FirstPageOf(block)));
    if (!entry.is_table()) return static_cast<uint32_t>(at - level);
    table = entry.table();
  }
  return 0;
}

HostOffset PageTable::AddTable(const PteSlot& slot, int level, BlockIndex block) {
  const HostOffset table = nodes_.Allocate(level - 1, NodeKind::kTable);
  assert(table != kNullOffset);
  Replace(slot.table, slot.index, Pte::Table(table));
  if (level == traits_.top_level) {
    OfferTable(segment_, mm_, segment_.geometry().IndexAt(level, FirstPageOf(block)));
  }
  return table;
}

PteSlot PageTable::MakeBlock(BlockIndex block) {
  if (NodesMissing(block, kBlockLevel) > nodes_.available()) return {};
  const Geometry& geometry = segment_.geometry();
  const FilePage page = FirstPageOf(block);
  HostOffset table = top();
  for (int level = traits_.top_level;; --level) {
    const uint64_t index = geometry.IndexAt(level, page);
    const PteSlot slot{table, index, EntryAt(table, index)};
    if (level == kBlockLevel) return slot;
    table = slot.entry.is_table() ? slot.entry.table() : AddTable(slot, level, block);
  }
}

HostOffset PageTable::MakeSmallTable(BlockIndex block) {
  if (NodesMissing(block, kBlockLevel - 1) > nodes_.available()) return kNullOffset;
  const PteSlot slot = MakeBlock(block);
  if (slot.entry.is_table()) return slot.entry.table();
  assert(slot.entry.is_empty());
  return AddTable(slot, kBlockLevel, block);
}

void PageTable::CountLeaf(Pte entry, uint64_t sign) {
  if (entry.is_in_flight()) {
    mm_->in_flight.Add(sign);
    segment_.header().in_flight_entries.Add(sign);
  } else if (entry.is_present()) {
    (entry.is_huge() ? mm_->huge_blocks : mm_->small_pages).Add(sign);
  }
}

void PageTable::Replace(HostOffset table, uint64_t index, Pte next) {
  SharedWord& word = segment_.entries(table)[index];
  const Pte old = Pte::FromRaw(word.Load());
  if (old == next) return;
  NodeRecord* record = nodes_.RecordOf(table);
  NodeFill fill = NodeFill::Load(*record);
  fill.live = static_cast<uint16_t>(fill.live + !next.is_empty() - !old.is_empty());
  fill.in_flight = static_cast<uint16_t>(fill.in_flight + next.is_in_flight() - old.is_in_flight());
  fill.StoreTo(record);
  CountLeaf(old, ~uint64_t{0});
  CountLeaf(next, 1);
  word.Store(next.raw());
}

void PageTable::CountTouch(HostOffset table) {
  NodeRecord* record = nodes_.RecordOf(table);
  NodeFill fill = NodeFill::Load(*record);
  if (fill.touches != UINT8_MAX) ++fill.touches;
  fill.StoreTo(record);
}

void PageTable::UncountLeaves(HostOffset table) {
  const NodeFill fill = FillOf(table);
  mm_->in_flight.Subtract(fill.in_flight);
  segment_.header().in_flight_entries.Subtract(fill.in_flight);
  mm_->small_pages.Subtract(fill.live - fill.in_flight);
}

void PageTable::FreeTable(HostOffset table) {
  [[maybe_unused]] const uint32_t left = nodes_.DropUse(table);
  assert(left == 0);
  nodes_.Free(table);
}

void PageTable::FreeIfEmpty(BlockIndex block) {
  const Geometry& geometry = segment_.geometry();
  const FilePage page = FirstPageOf(block);
  // The tables from the top down to the lowest one that exists.
  HostOffset path[Geometry::kMaxLevels];
  int lowest = traits_.top_level;
  path[lowest] = top();
  while (lowest > 0) {
    const Pte entry = EntryAt(path[lowest], geometry.IndexAt(lowest, page));
    if (!entry.is_table()) break;
    path[--lowest] = entry.table();
  }
  for (int level = lowest; level < traits_.top_level; ++level) {
    if (FillOf(path[level]).live != 0) return;
    const uint64_t parent_index = geometry.IndexAt(level + 1, page);
    if (level + 1 == traits_.top_level) WithdrawTable(segment_, mm_, parent_index);
    WithdrawFromSnapshots(segment_, *mm_, path[level], level + 1, page);
    Replace(path[level + 1], parent_index, Pte());
    FreeTable(path[level]);
  }
}

TableStatus PageTable::SplitHuge(BlockIndex block) {
  const PteSlot slot = FindBlock(block);
  assert(slot.entry.is_present() && slot.entry.is_huge());
  const HostOffset table = nodes_.Allocate(kBlockLevel - 1, NodeKind::kTable);
  if (table == kNullOffset) return TableStatus::kNoSpace;
  const uint64_t pages =
      std::min(kPagesPerBlock, (length() - (FirstPageOf(block) - FilePage(0))).value());
  for (uint64_t i = 0; i < pages; ++i) {
    Replace(table, i, Leaf(LeafSize::kSmall, FirstPageOf(block) + PageCount(i)));
  }
  Replace(slot.table, slot.index, Pte::Table(table));
  return TableStatus::kOk;
}

void PageTable::MergeIntoHuge(BlockIndex block, Pte leaf) {
  const PteSlot slot = FindBlock(block);
  assert(slot.exists() && slot.entry.is_table() && leaf.is_leaf() && leaf.is_huge());
  UncountLeaves(slot.entry.table());
  WithdrawFromSnapshots(segment_, *mm_, slot.entry.table(), kBlockLevel, FirstPageOf(block));
  Replace(slot.table, slot.index, leaf);
  FreeTable(slot.entry.table());
}

TableStatus PageTable::PunchBlock(BlockIndex block, uint64_t begin, uint64_t end) {
  const PteSlot slot = FindBlock(block);
  if (!slot.exists() || slot.entry.is_empty()) return TableStatus::kOk;
  if (!slot.entry.is_table()) {
    if (slot.entry.is_in_flight()) {
      Replace(slot.table, slot.index, slot.entry.ForgetOldInFlight());
      return TableStatus::kOk;
    }
    if (begin == 0 && end == kPagesPerBlock) {
      Replace(slot.table, slot.index, Pte());
      return TableStatus::kOk;
    }
    if (const TableStatus split = SplitHuge(block); split != TableStatus::kOk) return split;
  }
  const HostOffset table = FindBlock(block).entry.table();
  for (uint64_t i = begin; i < end; ++i) {
    const Pte entry = EntryAt(table, i);
    Replace(table, i, entry.is_in_flight() ? entry.ForgetOldInFlight() : Pte());
  }
  return TableStatus::kOk;
}

TableStatus PageTable::Punch(FilePage first, PageCount count) {
  FilePage end = std::min(first + count, FilePage(0) + length());
  if (traits_.frames == FrameKind::kHugetlb) {
    // The kernel only wipes a huge page that is punched in part; the frame stays.
    first = FirstPageOf(BlockCeil(first));
    if (end < FilePage(0) + length()) end = FirstPageOf(BlockFloor(end));
  }
  if (first >= end) return TableStatus::kOk;
  const auto is_present_huge = [this](BlockIndex block) {
    const Pte entry = FindBlock(block).entry;
    return entry.is_present() && entry.is_huge();
  };
  const BlockIndex last = BlockFloor(end - PageCount(1));
  // Only the two ends can hit a huge leaf in part. Both must succeed, or neither is touched.
  uint32_t splits = 0;
  if (first > FirstPageOf(BlockFloor(first))) splits += is_present_huge(BlockFloor(first));
  const bool last_is_partial = end < EndPageOf(last) && end < FilePage(0) + length();
  if (last_is_partial && (last != BlockFloor(first) || splits == 0)) {
    splits += is_present_huge(last);
  }
  if (splits > nodes_.available()) return TableStatus::kNoSpace;

  for (FilePage page = first; page < end;) {
    const BlockIndex block = BlockFloor(page);
    const FilePage stop = std::min(end, EndPageOf(block));
    // The end of the file ends its last block.
    const uint64_t end_index =
        stop == FilePage(0) + length() ? kPagesPerBlock : (stop - FirstPageOf(block)).value();
    [[maybe_unused]] const TableStatus status = PunchBlock(block, IndexInBlock(page), end_index);
    assert(status == TableStatus::kOk);
    FreeIfEmpty(block);
    page = stop;
  }
  return TableStatus::kOk;
}

void PageTable::FreeSubtree(HostOffset table, int level) {
  if (level == 0) {
    UncountLeaves(table);
    return nodes_.Free(table);
  }
  for (uint64_t i = 0; i < segment_.geometry().EntriesAt(level); ++i) {
    const Pte entry = EntryAt(table, i);
    if (entry.is_table()) {
      FreeSubtree(entry.table(), level - 1);
    } else {
      CountLeaf(entry, ~uint64_t{0});
    }
  }
  nodes_.Free(table);
}

void PageTable::FreeAll() {
  FreeSubtree(top(), traits_.top_level);
  mm_->top.Store(kNullOffset.value());
}

}  // namespace hostmm
