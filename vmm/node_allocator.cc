#include "vmm/node_allocator.h"

#include <cassert>

#include "vmm/record_pool.h"

namespace hostmm {

NodeUse NodeUse::Load(const NodeRecord& record) {
  const uint64_t word = record.use.Load();
  return {static_cast<uint32_t>(word), static_cast<uint8_t>(word >> 32),
          static_cast<NodeKind>(static_cast<uint8_t>(word >> 40))};
}

void NodeUse::StoreTo(NodeRecord* record) const {
  record->use.Store(count | uint64_t{level} << 32 | uint64_t{static_cast<uint8_t>(kind)} << 40);
}

NodeFill NodeFill::Load(const NodeRecord& record) {
  const uint64_t word = record.fill.Load();
  return {static_cast<uint16_t>(word), static_cast<uint16_t>(word >> 16),
          static_cast<uint8_t>(word >> 32)};
}

void NodeFill::StoreTo(NodeRecord* record) const {
  record->fill.Store(live | uint64_t{in_flight} << 16 | uint64_t{touches} << 32);
}

uint32_t NodeAllocator::available() const { return NodePool(segment_).available(); }

HostOffset NodeAllocator::Allocate(int level, NodeKind kind) {
  const RecordIndex index = NodePool(segment_).Take();
  if (index == kNullRecord) return kNullOffset;
  NodeRecord* record = segment_.node(index);
  NodeFill().StoreTo(record);
  NodeUse{1, static_cast<uint8_t>(level), kind}.StoreTo(record);
  return segment_.OffsetOfNode(index);
}

void NodeAllocator::Free(HostOffset table) {
  NodeRecord* record = RecordOf(table);
  assert(record != nullptr && NodeUse::Load(*record).kind != NodeKind::kFree);
  const int level = NodeUse::Load(*record).level;
  segment_.BumpFreeEpoch();
  SharedWord* entries = segment_.entries(table);
  for (uint64_t i = 0; i < segment_.geometry().EntriesAt(level); ++i) {
    // Not every node was filled: leave clean cache lines clean.
    if (entries[i].Load() != 0) entries[i].Store(0);
  }
  NodeUse().StoreTo(record);
  NodePool(segment_).GiveBack(segment_.NodeAt(table));
}

void NodeAllocator::RaiseUse(HostOffset table) {
  NodeRecord* record = RecordOf(table);
  NodeUse use = NodeUse::Load(*record);
  ++use.count;
  use.StoreTo(record);
}

uint32_t NodeAllocator::DropUse(HostOffset table) {
  NodeRecord* record = RecordOf(table);
  NodeUse use = NodeUse::Load(*record);
  assert(use.count != 0);
  --use.count;
  use.StoreTo(record);
  return use.count;
}

}  // namespace hostmm
