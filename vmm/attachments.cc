#include "vmm/attachments.h"

#include <cassert>

#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/record_pool.h"

namespace hostmm {
namespace {

// Both lists are doubly linked through a word of (next, previous).
void PushFront(const Segment& segment, RecordIndex head, RecordIndex index,
               SharedWord AttachmentRecord::*links) {
  (segment.attachment(index)->*links).StoreHalves(head, kNullRecord);
  if (AttachmentRecord* next = segment.attachment(head)) (next->*links).StoreHigh(index);
}

// RETURNS: the new head.
RecordIndex Unlink(const Segment& segment, RecordIndex head, RecordIndex index,
                   SharedWord AttachmentRecord::*links) {
  const RecordIndex next = (segment.attachment(index)->*links).LoadLow();
  const RecordIndex previous = (segment.attachment(index)->*links).LoadHigh();
  if (AttachmentRecord* behind = segment.attachment(next)) (behind->*links).StoreHigh(previous);
  if (AttachmentRecord* before = segment.attachment(previous)) {
    (before->*links).StoreLow(next);
    return head;
  }
  return next;
}

}  // namespace

RecordIndex FindAttachment(const SegmentView& view, const GuestRecord& guest, MmId mm) {
  const uint64_t wanted = mm.slot | uint64_t{mm.generation} << 32;
  RecordIndex index = guest.attachments.LoadLow();
  for (uint32_t i = 0; i < view.config().max_regions; ++i) {
    const AttachmentRecord* record = view.attachment(index);
    if (record == nullptr) return kNullRecord;
    if (record->mm.Load() == wanted) return index;
    index = record->of_guest.LoadLow();
  }
  return kNullRecord;
}

RecordIndex Attach(const Segment& segment, GuestId guest, MmId mm) {
  GuestRecord* guest_record = segment.Find(guest);
  MmRecord* mm_record = segment.Find(mm);
  assert(guest_record != nullptr && mm_record != nullptr);
  auto pool = AttachmentPool(segment);
  NodeAllocator nodes(segment);
  if (pool.available() == 0 || nodes.available() == 0) return kNullRecord;
  const RecordIndex index = pool.Take();
  AttachmentRecord* record = segment.attachment(index);
  record->guest.StoreHalves(guest.slot, guest.generation);
  record->mm.StoreHalves(mm.slot, mm.generation);
  record->top.Store(
      nodes.Allocate(MmTraits::Load(*mm_record).top_level, NodeKind::kPrivateTop).value());
  record->regions.Store(0);
  PushFront(segment, guest_record->attachments.LoadLow(), index, &AttachmentRecord::of_guest);
  guest_record->attachments.Store(index);
  PushFront(segment, mm_record->lists.LoadHigh(), index, &AttachmentRecord::of_mm);
  mm_record->lists.StoreHigh(index);
  mm_record->mappers.Add(1);
  return index;
}

void Detach(const Segment& segment, RecordIndex attachment) {
  AttachmentRecord* record = segment.attachment(attachment);
  assert(record != nullptr && record->regions.Load() == 0);
  GuestRecord* guest = segment.guest(record->guest.LoadLow());
  MmRecord* mm = segment.mm(record->mm.LoadLow());
  guest->attachments.Store(
      Unlink(segment, guest->attachments.LoadLow(), attachment, &AttachmentRecord::of_guest));
  mm->lists.StoreHigh(Unlink(segment, mm->lists.LoadHigh(), attachment, &AttachmentRecord::of_mm));
  mm->mappers.Subtract(1);
  NodeAllocator(segment).Free(HostOffset(record->top.Load()));
  record->guest.Store(0);
  record->mm.Store(0);
  record->top.Store(kNullOffset.value());
  AttachmentPool(segment).GiveBack(attachment);
}

}  // namespace hostmm
