// Attachments: the pairs (guest, mm) with at least one region, each with the guest's private top.
//
// Memory:  a record and one top table per pair. The private top's entries name the same lower
//          tables as the canonical top; what they may name is decided in table_sharing.h.
// Units:   record indices.
// Threads: FindAttachment reads and may run anywhere; the rest is the writer's.
// Errors:  Attach returns kNullRecord when a pool is exhausted, having changed nothing.

#ifndef HOSTMM_VMM_ATTACHMENTS_H_
#define HOSTMM_VMM_ATTACHMENTS_H_

#include "vmm/segment.h"

namespace hostmm {

RecordIndex FindAttachment(const SegmentView& view, const GuestRecord& guest, MmId mm);

// A new attachment without regions, its top empty. REQUIRES: there is none of this pair; both
// alive.
RecordIndex Attach(const Segment& segment, GuestId guest, MmId mm);

// Frees the private top and the record. REQUIRES: no region is left, and the top is empty
// (DropAllShares).
void Detach(const Segment& segment, RecordIndex attachment);

// `fn(RecordIndex, const AttachmentRecord&)` for each guest that maps the mm.
template <class Fn>
void ForEachAttachmentOfMm(const SegmentView& view, const MmRecord& mm, Fn fn) {
  RecordIndex index = mm.lists.LoadHigh();
  for (uint32_t i = 0; i < view.config().max_regions; ++i) {
    const AttachmentRecord* record = view.attachment(index);
    if (record == nullptr) return;
    fn(index, *record);
    index = record->of_mm.LoadLow();
  }
}

template <class Fn>
void ForEachAttachmentOfGuest(const SegmentView& view, const GuestRecord& guest, Fn fn) {
  RecordIndex index = guest.attachments.LoadLow();
  for (uint32_t i = 0; i < view.config().max_regions; ++i) {
    const AttachmentRecord* record = view.attachment(index);
    if (record == nullptr) return;
    fn(index, *record);
    index = record->of_guest.LoadLow();
  }
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_ATTACHMENTS_H_
