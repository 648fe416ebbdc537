// PopulateFlight: the entries of one block that a running populate has taken on.
//
// What:    takes entries off (in flight), and lands or abandons them. Ranges of outstanding
//          populates of a block never overlap: ClearAround keeps a new one out of what is in
//          flight.
// Units:   indices of the block's pte table, 0..511.
// Threads: the writer only.
// Errors:  none. A range whose table is gone is left alone.

#ifndef HOSTMM_VMM_POPULATE_FLIGHT_H_
#define HOSTMM_VMM_POPULATE_FLIGHT_H_

#include <cstdint>

#include "vmm/page_table.h"

namespace hostmm {

// Entries [begin, end) of a pte table.
struct IndexRange {
  uint64_t begin = 0;
  uint64_t end = 0;
};

class PopulateFlight {
 public:
  PopulateFlight(PageTable* table, BlockIndex block) : table_(*table), block_(block) {}

  // The part of `window` around `fault` that reaches no entry in flight.
  // REQUIRES: `fault` is in the window and its entry is not in flight.
  IndexRange ClearAround(HostOffset small, uint64_t fault, IndexRange window) const;
  // Whether the block has no hole outside `range`, and nothing in flight.
  bool ClosesLastHole(HostOffset small, IndexRange range) const;

  void TakeOffHoles(HostOffset small, IndexRange range);
  // Holes and present entries alike: until Commit nobody may touch the block.
  // REQUIRES: nothing of the block is in flight.
  void TakeOffWholeBlock(HostOffset small);

  // RETURNS: the number of entries that are present now and were not before.
  uint64_t Land(IndexRange range);
  void Abandon(IndexRange range);

 private:
  // The block's pte table; null if it has none.
  HostOffset SmallTable() const;

  PageTable& table_;
  BlockIndex block_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_POPULATE_FLIGHT_H_
