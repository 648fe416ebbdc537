// PageTable: the canonical radix page table of one shared file: file page -> Pte.
//
// Memory:  tables are nodes of the segment, linked by HostOffset. This object is a view; copying it
//          copies no table. Every change of an entry goes through Replace, which keeps the table's
//          and the mm's counts. A table without live entries is freed, and taken out of the private
//          tops (table_sharing.h) and the snapshots' tables (snapshot_tables.h) before that. What
//          fills or empties entries, splits or collapses goes on in a table that snapshots share.
// Units:   FilePage, PageCount, BlockIndex. No addresses in this header.
// Threads: the writer only. Readers in any process walk with page_table_walker.h.
// Errors:  an operation that needs tables and finds none changes nothing: kNoSpace, or a slot that
//          does not exist().
//
// The four verbs are Linux's: find (traverse), make (install), punch (zap), free.

#ifndef HOSTMM_VMM_PAGE_TABLE_H_
#define HOSTMM_VMM_PAGE_TABLE_H_

#include <cstdint>

#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/pte.h"
#include "vmm/segment.h"

namespace hostmm {

// A place for an entry, and what is there. The entry is a copy.
struct PteSlot {
  HostOffset table;
  uint64_t index = 0;
  Pte entry;

  bool exists() const { return table != kNullOffset; }
};

class PageTable {
 public:
  PageTable(const Segment& segment, MmRecord* mm)
      : segment_(segment), mm_(mm), nodes_(segment), traits_(MmTraits::Load(*mm)) {}

  PageCount length() const { return PageCount(mm_->length.Load()); }
  const MmTraits& traits() const { return traits_; }
  // The file ends inside the block (or before it).
  bool IsTail(BlockIndex block) const { return EndPageOf(block) - FilePage(0) > length(); }

  // The slot of the block's own entry, one level above its pages: empty, a huge leaf, or a
  // reference to the block's pte table. Does not exist() if no table covers the block yet.
  PteSlot FindBlock(BlockIndex block) const;
  // The slot of a page in the block's pte table. Does not exist() if the block has none.
  PteSlot FindPage(FilePage page) const;
  // FindBlock, adding tables down to the block's entry. Does not exist() if there are not enough.
  PteSlot MakeBlock(BlockIndex block);
  // The block's pte table, added if its entry is empty; null if there are not enough nodes.
  // REQUIRES: the block's entry is not a huge leaf.
  HostOffset MakeSmallTable(BlockIndex block);

  void Replace(HostOffset table, uint64_t index, Pte next);
  Pte EntryAt(HostOffset table, uint64_t index) const {
    return Pte::FromRaw(segment_.entries(table)[index].Load());
  }
  NodeFill FillOf(HostOffset table) const { return NodeFill::Load(*nodes_.RecordOf(table)); }
  // Counts one more populate decided in the block of this pte table.
  void CountTouch(HostOffset table);

  // Frees the block's pte table and the tables above it, as far as they are empty.
  void FreeIfEmpty(BlockIndex block);

  // Replaces a huge leaf that is present by a pte table of present pages. kNoSpace.
  // REQUIRES: the block's entry is present and huge.
  TableStatus SplitHuge(BlockIndex block);
  // Puts `leaf` in place of the block's pte table, which is freed. REQUIRES: the block has one.
  void MergeIntoHuge(BlockIndex block, Pte leaf);

  // Makes entries of [first, first + count) empty. An entry in flight stays, and forgets that it
  // was present. kNoSpace if a huge leaf must be split and cannot be.
  TableStatus Punch(FilePage first, PageCount count);

  // Frees every table, the top included. REQUIRES: no guest has the mm attached.
  void FreeAll();

  // A new leaf for this file.
  Pte Leaf(LeafSize size, FilePage page) const {
    return Pte::Present(size, FrameNumber(page.value()), traits_.access);
  }
  Pte LeafInFlight(LeafSize size, FilePage page) const {
    return Pte::InFlight(size, FrameNumber(page.value()), traits_.access);
  }

 private:
  static constexpr int kBlockLevel = 1;

  HostOffset top() const { return HostOffset(mm_->top.Load()); }
  // Tables that must be added so that the block has an entry at `level`.
  uint32_t NodesMissing(BlockIndex block, int level) const;
  // Adds an empty table below the entry.
  HostOffset AddTable(const PteSlot& slot, int level, BlockIndex block);
  void CountLeaf(Pte entry, uint64_t sign);
  // Takes the leaves of a pte table, which is about to be freed, out of the mm's counts.
  void UncountLeaves(HostOffset table);
  // REQUIRES: nothing but `parent` names the table, and that has been overwritten.
  void FreeTable(HostOffset table);
  void FreeSubtree(HostOffset table, int level);
  TableStatus PunchBlock(BlockIndex block, uint64_t begin, uint64_t end);

  const Segment& segment_;
  MmRecord* mm_;
  NodeAllocator nodes_;
  MmTraits traits_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_PAGE_TABLE_H_
