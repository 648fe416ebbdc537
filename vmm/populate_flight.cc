#include "vmm/populate_flight.h"

namespace hostmm {

HostOffset PopulateFlight::SmallTable() const {
  const PteSlot slot = table_.FindBlock(block_);
  return slot.exists() && slot.entry.is_table() ? slot.entry.table() : kNullOffset;
}

IndexRange PopulateFlight::ClearAround(HostOffset small, uint64_t fault, IndexRange window) const {
  const auto is_clear = [&](uint64_t i) { return !table_.EntryAt(small, i).is_in_flight(); };
  IndexRange range{fault, fault + 1};
  while (range.begin > window.begin && is_clear(range.begin - 1)) --range.begin;
  while (range.end < window.end && is_clear(range.end)) ++range.end;
  return range;
}

bool PopulateFlight::ClosesLastHole(HostOffset small, IndexRange range) const {
  const NodeFill fill = table_.FillOf(small);
  uint64_t holes = 0;
  for (uint64_t i = range.begin; i < range.end; ++i) holes += table_.EntryAt(small, i).is_empty();
  return fill.in_flight == 0 && fill.live + holes == kPagesPerBlock;
}

void PopulateFlight::TakeOffHoles(HostOffset small, IndexRange range) {
  for (uint64_t i = range.begin; i < range.end; ++i) {
    if (!table_.EntryAt(small, i).is_empty()) continue;
    table_.Replace(small, i,
                   table_.LeafInFlight(LeafSize::kSmall, FirstPageOf(block_) + PageCount(i)));
  }
}

void PopulateFlight::TakeOffWholeBlock(HostOffset small) {
  for (uint64_t i = 0; i < kPagesPerBlock; ++i) {
    const Pte entry = table_.EntryAt(small, i);
    table_.Replace(small, i,
                   entry.is_present()
                       ? entry.TakeOffFromPresent()
                       : table_.LeafInFlight(LeafSize::kSmall, FirstPageOf(block_) + PageCount(i)));
  }
}

uint64_t PopulateFlight::Land(IndexRange range) {
  const HostOffset small = SmallTable();
  if (small == kNullOffset) return 0;
  uint64_t made = 0;
  for (uint64_t i = range.begin; i < range.end; ++i) {
    const Pte entry = table_.EntryAt(small, i);
    if (!entry.is_in_flight()) continue;
    made += !entry.was_present();
    table_.Replace(small, i, entry.LandFromInFlight());
  }
  return made;
}

void PopulateFlight::Abandon(IndexRange range) {
  const HostOffset small = SmallTable();
  if (small == kNullOffset) return;
  for (uint64_t i = range.begin; i < range.end; ++i) {
    const Pte entry = table_.EntryAt(small, i);
    if (entry.is_in_flight()) table_.Replace(small, i, entry.AbandonFromInFlight());
  }
}

}  // namespace hostmm
