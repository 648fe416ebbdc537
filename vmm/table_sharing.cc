#include "vmm/table_sharing.h"

#include <algorithm>
#include <cassert>

#include "vmm/attachments.h"
#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/region_map.h"

namespace hostmm {
namespace {

// A range of top indices, [first, end).
struct Spans {
  uint64_t first = 0;
  uint64_t end = 0;
};

class SpanRule {
 public:
  SpanRule(const SegmentView& view, const MmRecord& mm)
      : geometry_(view.geometry()), length_(mm.length.Load()) {
    // A damaged level must not index past the geometry.
    const int level = std::min<int>(MmTraits::Load(mm).top_level, geometry_.levels - 1);
    shift_ = geometry_.SpanShift(level);
    entries_ = TopEntries(geometry_, length_, level);
  }

  // The guest's regions of the file, by address.
  void Apply(const Region& region, AccessSet mapped_access) {
    // A damaged region may overflow; FitsInFile holds for every region that was accepted.
    if (!FitsInFile(region.file_page, region.length)) return;
    if (region.access != mapped_access) Set(Touched(region), &changed_);
    if (Continues(region)) {
      window_.length = window_.length + region.length;
      return;
    }
    EndWindow();
    window_ = region;
  }
  SpanSet Result() {
    EndWindow();
    return covered_ & ~changed_;
  }

 private:
  bool Continues(const Region& region) const {
    return window_.length.value() != 0 && window_.end() == region.va &&
           window_.file_end() == region.file_page && window_.IsOptIn() == region.IsOptIn();
  }
  void EndWindow() {
    if (CanShare(window_)) Set(Covered(window_), &covered_);
    window_ = {};
  }
  bool CanShare(const Region& window) const {
    const uint64_t min_blocks = window.IsOptIn() ? 1 : kMinSharedBlocks;
    const uint64_t unit_bytes = BytesOf(geometry_.ShareUnit());
    const uint64_t offset = window.file_page.value() << kPageShift;
    return window.length.value() >= min_blocks * kPagesPerBlock &&
           (window.va.value() - offset) % unit_bytes == 0;
  }
  Spans Touched(const Region& region) const {
    return {region.file_page.value() >> shift_, ((region.file_end().value() - 1) >> shift_) + 1};
  }
  // The spans of which at least one whole unit lies inside the region.
  Spans Covered(const Region& region) const {
    const uint64_t unit = geometry_.ShareUnit().value();
    const uint64_t first = (region.file_page.value() + unit - 1) / unit;
    const bool to_end = region.file_end().value() >= length_.value();
    const uint64_t end = (to_end ? length_.value() + unit - 1 : region.file_end().value()) / unit;
    if (first >= end) return {};
    return {(first * unit) >> shift_, ((end * unit - 1) >> shift_) + 1};
  }
  void Set(Spans spans, SpanSet* set) const {
    for (uint64_t i = spans.first; i < std::min(spans.end, entries_); ++i) set->set(i);
  }

  const Geometry& geometry_;
  PageCount length_;
  int shift_;
  uint64_t entries_;
  Region window_;  // met so far; no length: none
  SpanSet covered_;
  SpanSet changed_;
};

void SetShare(const Segment& segment, SharedWord* private_entry, Pte canonical) {
  const Pte old = Pte::FromRaw(private_entry->Load());
  if (old == canonical) return;
  NodeAllocator nodes(segment);
  if (canonical.is_table()) nodes.RaiseUse(canonical.table());
  private_entry->Store(canonical.raw());
  if (old.is_table()) {
    [[maybe_unused]] const uint32_t left = nodes.DropUse(old.table());
    assert(left != 0);  // the canonical entry is the last to go
  }
}

SharedWord* TopOf(const Segment& segment, const AttachmentRecord& attachment) {
  return segment.entries(HostOffset(attachment.top.Load()));
}

uint64_t TopEntriesOf(const Segment& segment, const MmRecord& mm) {
  return TopEntries(segment.geometry(), PageCount(mm.length.Load()), MmTraits::Load(mm).top_level);
}

GuestId GuestOf(const AttachmentRecord& attachment) {
  return {attachment.guest.LoadLow(), attachment.guest.LoadHigh()};
}

MmId MmOf(const AttachmentRecord& attachment) {
  return {attachment.mm.LoadLow(), attachment.mm.LoadHigh()};
}

}  // namespace

SpanSet SharableSpans(const SegmentView& view, GuestId guest, MmId mm) {
  const GuestRecord* guest_record = view.Find(guest);
  const MmRecord* mm_record = view.Find(mm);
  if (guest_record == nullptr || mm_record == nullptr) return {};
  const FrameKind frames = MmTraits::Load(*mm_record).frames;
  if (frames == FrameKind::kForeign || frames == FrameKind::kSnapshot) return {};
  SpanRule rule(view, *mm_record);
  ForEachRegionRecord(view, *guest_record, [&](const RegionRecord& record) {
    const Region region = LoadRegion(record);
    if (region.mm != mm) return;
    rule.Apply(region, RegionAttributes::Unpack(record.attributes.Load()).mapped_access);
  });
  return rule.Result();
}

void RefreshShares(const Segment& segment, RecordIndex attachment) {
  const AttachmentRecord* record = segment.attachment(attachment);
  const MmRecord* mm = segment.Find(MmOf(*record));
  const SpanSet wanted = SharableSpans(segment, GuestOf(*record), MmOf(*record));
  const SharedWord* canonical = segment.entries(HostOffset(mm->top.Load()));
  SharedWord* top = TopOf(segment, *record);
  const uint64_t entries = TopEntriesOf(segment, *mm);
  for (uint64_t i = 0; i < entries; ++i) {
    SetShare(segment, &top[i], wanted[i] ? Pte::FromRaw(canonical[i].Load()) : Pte());
  }
}

void OfferTable(const Segment& segment, MmRecord* mm, uint64_t top_index) {
  const Pte canonical = Pte::FromRaw(segment.entries(HostOffset(mm->top.Load()))[top_index].Load());
  ForEachAttachmentOfMm(segment, *mm, [&](RecordIndex, const AttachmentRecord& record) {
    if (!SharableSpans(segment, GuestOf(record), MmOf(record))[top_index]) return;
    SetShare(segment, &TopOf(segment, record)[top_index], canonical);
  });
}

void WithdrawTable(const Segment& segment, MmRecord* mm, uint64_t top_index) {
  ForEachAttachmentOfMm(segment, *mm, [&](RecordIndex, const AttachmentRecord& record) {
    SetShare(segment, &TopOf(segment, record)[top_index], Pte());
  });
}

void DropAllShares(const Segment& segment, RecordIndex attachment) {
  const AttachmentRecord* record = segment.attachment(attachment);
  const MmRecord* mm = segment.mm(record->mm.LoadLow());
  SharedWord* top = TopOf(segment, *record);
  const uint64_t entries = TopEntriesOf(segment, *mm);
  for (uint64_t i = 0; i < entries; ++i) SetShare(segment, &top[i], Pte());
}

void CopyShares(const Segment& segment, RecordIndex from, RecordIndex to) {
  const MmRecord* mm = segment.mm(segment.attachment(from)->mm.LoadLow());
  const SharedWord* source = TopOf(segment, *segment.attachment(from));
  SharedWord* target = TopOf(segment, *segment.attachment(to));
  const uint64_t entries = TopEntriesOf(segment, *mm);
  for (uint64_t i = 0; i < entries; ++i) {
    SetShare(segment, &target[i], Pte::FromRaw(source[i].Load()));
  }
}

}  // namespace hostmm
