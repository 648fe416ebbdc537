// RecordPool: hands out the records of one array of the segment and takes them back.
//
// Memory:  freed records form a list through a word of their own; records that were never used are
//          only a watermark, so that a fresh segment stays sparse. A record is taken with whatever
//          its last user left in it.
// Units:   record indices, from 1.
// Threads: the writer only. Errors: Take returns kNullRecord when the pool is exhausted.

#ifndef HOSTMM_VMM_RECORD_POOL_H_
#define HOSTMM_VMM_RECORD_POOL_H_

#include <cassert>
#include <cstdint>

#include "vmm/segment.h"

namespace hostmm {

// The generation of the next incarnation of a guest's or mm's slot. 0 is skipped: it is null.
inline uint32_t NextGeneration(const SharedWord& identity) {
  const uint32_t next = identity.LoadLow() + 1;
  return next == 0 ? 1 : next;
}

// The word that links free records, for each kind.
inline SharedWord& FreeLinkOf(GuestRecord& record) { return record.link; }
inline SharedWord& FreeLinkOf(MmRecord& record) { return record.link; }
inline SharedWord& FreeLinkOf(AttachmentRecord& record) { return record.link; }
inline SharedWord& FreeLinkOf(RegionRecord& record) { return record.tree; }
inline SharedWord& FreeLinkOf(NodeRecord& record) { return record.fill; }

template <class Record>
class RecordPool {
 public:
  // `at` is the accessor of Segment for these records.
  RecordPool(const Segment& segment, PoolState& state, uint32_t capacity,
             Record* (Segment::*at)(RecordIndex) const)
      : segment_(segment), state_(state), capacity_(capacity), at_(at) {}

  uint32_t available() const { return capacity_ - static_cast<uint32_t>(state_.used.Load()); }

  RecordIndex Take() {
    RecordIndex index = state_.free_head.LoadLow();
    if (index != kNullRecord) {
      state_.free_head.Store(FreeLinkOf(*(segment_.*at_)(index)).LoadLow());
    } else {
      if (state_.watermark.Load() == capacity_) return kNullRecord;
      state_.watermark.Add(1);
      index = state_.watermark.LoadLow();
    }
    state_.used.Add(1);
    return index;
  }

  // REQUIRES: nothing reachable names the record any more.
  void GiveBack(RecordIndex index) {
    Record* record = (segment_.*at_)(index);
    assert(record != nullptr);
    FreeLinkOf(*record).Store(state_.free_head.LoadLow());
    state_.free_head.Store(index);
    state_.used.Subtract(1);
  }

 private:
  const Segment& segment_;
  PoolState& state_;
  uint32_t capacity_;
  Record* (Segment::*at_)(RecordIndex) const;
};

inline RecordPool<GuestRecord> GuestPool(const Segment& segment) {
  return {segment, segment.header().guests, segment.config().max_guests, &Segment::guest};
}
inline RecordPool<MmRecord> MmPool(const Segment& segment) {
  return {segment, segment.header().mms, segment.config().max_mms, &Segment::mm};
}
inline RecordPool<RegionRecord> RegionPool(const Segment& segment) {
  return {segment, segment.header().regions, segment.config().max_regions, &Segment::region};
}
inline RecordPool<AttachmentRecord> AttachmentPool(const Segment& segment) {
  return {segment, segment.header().attachments, segment.config().max_regions,
          &Segment::attachment};
}
inline RecordPool<NodeRecord> NodePool(const Segment& segment) {
  return {segment, segment.header().nodes, segment.config().max_nodes, &Segment::node};
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_RECORD_POOL_H_
