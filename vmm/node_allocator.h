// NodeAllocator: the tables of the segment, and what is known about each beside its entries.
//
// Memory:  a node is Geometry::NodeBytes() of entries, all empty when it is allocated. Freeing
//          bumps the free epoch before the entries are wiped, so that a reader that still walks
//          through the node notices (segment.h, SYNCHRONIZATION 2).
// Units:   HostOffset in bytes.
// Threads: the writer only. Errors: Allocate returns kNullOffset when no node is left.

#ifndef HOSTMM_VMM_NODE_ALLOCATOR_H_
#define HOSTMM_VMM_NODE_ALLOCATOR_H_

#include <cstdint>

#include "vmm/segment.h"

namespace hostmm {

// NodeRecord::use.
struct NodeUse {
  uint32_t count =
      0;  // upper entries that name the table; a canonical or private top has one owner
  uint8_t level = 0;
  NodeKind kind = NodeKind::kFree;

  static NodeUse Load(const NodeRecord& record);
  void StoreTo(NodeRecord* record) const;
};

// NodeRecord::fill of a node that is in use.
struct NodeFill {
  uint16_t live = 0;       // entries that are not empty
  uint16_t in_flight = 0;  // of these, in flight
  uint8_t touches = 0;     // pte tables: populates that were decided in this block, saturating

  static NodeFill Load(const NodeRecord& record);
  void StoreTo(NodeRecord* record) const;
};

class NodeAllocator {
 public:
  explicit NodeAllocator(const Segment& segment) : segment_(segment) {}

  uint32_t available() const;
  // An empty table with use count 1.
  HostOffset Allocate(int level, NodeKind kind);
  // REQUIRES: nothing names the table any more.
  void Free(HostOffset table);

  // REQUIRES: `table` is in use.
  NodeRecord* RecordOf(HostOffset table) const { return segment_.node(segment_.NodeAt(table)); }
  void RaiseUse(HostOffset table);
  // RETURNS: the count that is left.
  uint32_t DropUse(HostOffset table);

 private:
  const Segment& segment_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_NODE_ALLOCATOR_H_
