// Segment: typed, bounds-checked access to the bytes of the host mm.
//
// Memory:  the bytes belong to the caller and must outlive every view. SegmentView reads (the bytes
//          may be mapped read-only, and may be garbage); Segment also writes. Both are small
//          values; copying one copies no table.
// Threads: one Segment exists, on the pager's loop thread. SegmentViews may exist anywhere.
// Errors:  Attach names what is wrong with the bytes. Accessors return nullptr for an index or
//          offset that is null, outside its array or misaligned (invariant I2).
//
// SYNCHRONIZATION (word level: shm_ref.h)
//   1. The writer makes header.write_sequence odd before the first store of an operation and even
//      after the last (WriteSection). A reader that saw the same even value before and after its
//      loads saw one consistent state: a load that returns a value of a later operation also makes
//      that operation's odd sequence visible (release/acquire), so the second look differs.
//   2. header.free_epoch grows when a table or record that was reachable is given back, after the
//      last reference to it was overwritten and before its memory is used again. A walk that only
//      follows references down (Lookup) needs no more than an unchanged epoch: its result is the
//      value of an entry that was reachable at some moment of the walk. It does not fail while the
//      writer only fills entries, so that a fault storm does not starve it.
//   3. Nothing that a reader loads is trusted before it is checked, also not between 1's two looks:
//      an inconsistent read may name anything. Every loop over segment data is bounded.
//   4. Magic is stored last by Format; a reader that sees it sees a whole empty segment.

#ifndef HOSTMM_VMM_SEGMENT_H_
#define HOSTMM_VMM_SEGMENT_H_

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>

#include "vmm/geometry.h"
#include "vmm/host_mm_layout.h"
#include "vmm/units.h"

namespace hostmm {

struct SegmentConfig {
  uint32_t max_guests = 4096;
  uint32_t max_mms = 1024;
  uint32_t max_regions = 65536;  // also the number of attachments: each has a region
  uint32_t max_nodes = 262144;   // 1 GiB of tables, sparse until used: 512 GiB in 4 KiB pages
  Geometry geometry = kX8664;

  friend bool operator==(const SegmentConfig&, const SegmentConfig&) = default;
};

// Largest number of records in one array: keeps every size computation far from overflow.
inline constexpr uint32_t kMaxRecords = uint32_t{1} << 28;

enum class AttachStatus : uint8_t {
  kOk,
  kTooSmall,     // not even a header
  kMisaligned,   // the bytes do not start on a 64-byte boundary
  kBadMagic,     // not a segment, or not formatted yet
  kBadVersion,   // a segment of another version of this library
  kBadGeometry,  // geometry or array sizes that this library cannot use
  kTruncated,    // the header promises more bytes than there are
};

class SegmentView {
 public:
  SegmentView() = default;
  static AttachStatus Attach(std::span<const std::byte> bytes, SegmentView* view);

  const SegmentConfig& config() const { return config_; }
  const Geometry& geometry() const { return config_.geometry; }
  const SegmentHeader& header() const { return *reinterpret_cast<const SegmentHeader*>(base_); }

  const GuestRecord* guest(RecordIndex index) const {
    return At<GuestRecord>(guests_, index, config_.max_guests);
  }
  const MmRecord* mm(RecordIndex index) const { return At<MmRecord>(mms_, index, config_.max_mms); }
  const RegionRecord* region(RecordIndex index) const {
    return At<RegionRecord>(regions_, index, config_.max_regions);
  }
  const AttachmentRecord* attachment(RecordIndex index) const {
    return At<AttachmentRecord>(attachments_, index, config_.max_regions);
  }
  const NodeRecord* node(RecordIndex index) const {
    return At<NodeRecord>(node_records_, index, config_.max_nodes);
  }
  // Index of the node at `table`, kNullRecord if that is no start of a node.
  RecordIndex NodeAt(HostOffset table) const {
    const uint64_t distance = table.value() - nodes_;  // wraps for offsets below: then too large
    const uint64_t index = distance >> node_shift_;
    if (index >= config_.max_nodes || (distance & (node_bytes() - 1)) != 0) return kNullRecord;
    return static_cast<RecordIndex>(index + 1);
  }
  HostOffset OffsetOfNode(RecordIndex index) const {
    return HostOffset(nodes_ + (uint64_t{index - 1} << node_shift_));
  }
  const SharedWord* entries(HostOffset table) const {
    if (NodeAt(table) == kNullRecord) return nullptr;
    return reinterpret_cast<const SharedWord*>(base_ + table.value());
  }
  uint64_t node_bytes() const { return uint64_t{1} << node_shift_; }

  // The record that `id` names, nullptr if that incarnation is not alive.
  const GuestRecord* Find(GuestId id) const { return Live(guest(id.slot), id.generation); }
  const MmRecord* Find(MmId id) const { return Live(mm(id.slot), id.generation); }

 protected:
  // REQUIRES: config is valid and the bytes hold such a segment.
  SegmentView(const std::byte* base, const SegmentConfig& config);

  const std::byte* base_ = nullptr;

 private:
  template <class Record>
  const Record* At(uint64_t array, RecordIndex index, uint32_t count) const {
    if (index == kNullRecord || index > count) return nullptr;
    return reinterpret_cast<const Record*>(base_ + array) + index;
  }
  template <class Record>
  static const Record* Live(const Record* record, uint32_t generation) {
    if (record == nullptr || record->identity.Load() != (generation | uint64_t{1} << 32)) {
      return nullptr;
    }
    return record;
  }

  SegmentConfig config_;
  uint64_t guests_ = 0;
  uint64_t mms_ = 0;
  uint64_t regions_ = 0;
  uint64_t attachments_ = 0;
  uint64_t node_records_ = 0;
  uint64_t nodes_ = 0;
  int node_shift_ = 0;
};

// The writer's view: the same accessors, to mutable records.
class Segment : public SegmentView {
 public:
  // Whether a segment of this shape can exist.
  static bool IsValid(const SegmentConfig& config);
  // Bytes that Format needs. REQUIRES: IsValid(config).
  static size_t Bytes(const SegmentConfig& config);
  // Makes an empty segment. REQUIRES: `zeroed` is all zero, word-aligned and at least
  // Bytes(config).
  static Segment Format(std::span<std::byte> zeroed, const SegmentConfig& config);

  SegmentHeader& header() const { return Mutable(SegmentView::header()); }
  GuestRecord* guest(RecordIndex index) const { return Mutable(SegmentView::guest(index)); }
  MmRecord* mm(RecordIndex index) const { return Mutable(SegmentView::mm(index)); }
  RegionRecord* region(RecordIndex index) const { return Mutable(SegmentView::region(index)); }
  AttachmentRecord* attachment(RecordIndex index) const {
    return Mutable(SegmentView::attachment(index));
  }
  NodeRecord* node(RecordIndex index) const { return Mutable(SegmentView::node(index)); }
  SharedWord* entries(HostOffset table) const { return Mutable(SegmentView::entries(table)); }
  GuestRecord* Find(GuestId id) const { return Mutable(SegmentView::Find(id)); }
  MmRecord* Find(MmId id) const { return Mutable(SegmentView::Find(id)); }

  // To be called after the last reference to something reachable was overwritten (2).
  void BumpFreeEpoch() const { header().free_epoch.Add(1); }

 private:
  using SegmentView::SegmentView;

  // The bytes were given to Format as mutable ones.
  template <class T>
  static T* Mutable(const T* record) {
    return const_cast<T*>(record);
  }
  template <class T>
  static T& Mutable(const T& record) {
    return const_cast<T&>(record);
  }
};

// Brackets one operation of the writer (1). Sections do not nest.
class WriteSection {
 public:
  explicit WriteSection(const Segment& segment) : sequence_(segment.header().write_sequence) {
    assert((sequence_.Load() & 1) == 0);
    sequence_.Add(1);
  }
  ~WriteSection() { sequence_.Add(1); }
  WriteSection(const WriteSection&) = delete;
  WriteSection& operator=(const WriteSection&) = delete;

 private:
  SharedWord& sequence_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_SEGMENT_H_
