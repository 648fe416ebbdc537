#include "vmm/address_space.h"

#include <cassert>

#include "vmm/attachments.h"
#include "vmm/record_pool.h"
#include "vmm/rmap.h"
#include "vmm/table_sharing.h"

namespace hostmm {
namespace {

// The address just before `addr`, for searches that shall find a region that ends at `addr`.
GuestAddr Before(GuestAddr addr) { return GuestAddr(addr.value() == 0 ? 0 : addr.value() - 1); }

bool ContainsInside(const RegionRecord* record, GuestAddr addr) {
  return record != nullptr && record->va.Load() < addr.value();
}

RegionAttributes Attributes(const RegionRecord& record) {
  return RegionAttributes::Unpack(record.attributes.Load());
}

bool Continues(const RegionRecord& a, const RegionRecord& b) {
  const Region first = LoadRegion(a);
  const Region second = LoadRegion(b);
  return first.end() == second.va && first.mm == second.mm &&
         first.file_end() == second.file_page && Attributes(a).ContinuesAs(Attributes(b));
}

}  // namespace

bool AddressSpace::IsFree(AddrRange range) const {
  const RegionRecord* record =
      segment_.region(FirstRegionEndingAfter(segment_, *guest_, range.start));
  return record == nullptr || record->va.Load() >= range.end.value();
}

uint32_t AddressSpace::SplitsAt(AddrRange range) const {
  return ContainsInside(RecordAt(range.start), range.start) +
         ContainsInside(RecordAt(range.end), range.end);
}

void AddressSpace::AddRegion(const RegionSpec& spec, const RegionAttributes& attributes,
                             RecordIndex attachment) {
  const RecordIndex index = RegionPool(segment_).Take();
  RegionRecord* record = segment_.region(index);
  assert(record != nullptr);
  record->va.Store(spec.va.value());
  record->pages.Store(spec.length.value());
  record->mm.StoreHalves(spec.mm.slot, spec.mm.generation);
  record->file_page.Store(spec.file_page.value());
  record->attributes.Store(attributes.Pack());
  record->guest.StoreHalves(id_.slot, id_.generation);
  map_.Insert(index);
  LinkIntoRmap(segment_, segment_.Find(spec.mm), index);
  segment_.attachment(attachment)->regions.Add(1);
}

void AddressSpace::RemoveRegion(RecordIndex region) {
  RegionRecord* record = segment_.region(region);
  const MmId mm = LoadRegion(*record).mm;
  map_.Remove(region);
  UnlinkFromRmap(segment_, segment_.Find(mm), region);
  segment_.attachment(FindAttachment(segment_, *guest_, mm))->regions.Subtract(1);
  record->pages.Store(0);
  RegionPool(segment_).GiveBack(region);
}

void AddressSpace::Settle(MmId mm, Released* released) {
  const RecordIndex attachment = FindAttachment(segment_, *guest_, mm);
  if (attachment == kNullRecord) return;
  if (segment_.attachment(attachment)->regions.Load() != 0) {
    RefreshShares(segment_, attachment);
    return;
  }
  DropAllShares(segment_, attachment);
  Detach(segment_, attachment);
  MmDirectory(segment_).ReleaseIfUnused(mm, released);
}

void AddressSpace::SplitAt(GuestAddr va) {
  RegionRecord* record = RecordAt(va);
  if (!ContainsInside(record, va)) return;
  const Region whole = LoadRegion(*record);
  const PageCount before = PagesBetween(whole.va, va);
  record->pages.Store(before.value());
  AddRegion({.va = va,
             .length = whole.length - before,
             .mm = whole.mm,
             .file_page = whole.file_page + before,
             .access = whole.access,
             .flags = whole.flags},
            RegionAttributes::Unpack(record->attributes.Load()),
            FindAttachment(segment_, *guest_, whole.mm));
}

void AddressSpace::MergeAround(AddrRange range) {
  RecordIndex index = FirstRegionEndingAfter(segment_, *guest_, Before(range.start));
  while (RegionRecord* record = segment_.region(index)) {
    const Region region = LoadRegion(*record);
    if (region.va > range.end) return;
    const RecordIndex next = FirstRegionEndingAfter(segment_, *guest_, region.end());
    const RegionRecord* next_record = segment_.region(next);
    if (next_record == nullptr || !Continues(*record, *next_record)) {
      index = next;
      continue;
    }
    const uint64_t pages = region.length.value() + next_record->pages.Load();
    const RegionAttributes merged = Attributes(*record).MergedWith(Attributes(*next_record));
    RemoveRegion(next);
    record->pages.Store(pages);
    record->attributes.Store(merged.Pack());
  }
}

void AddressSpace::RefreshAround(AddrRange range) {
  MmId last;
  GuestAddr from = Before(range.start);
  while (const RegionRecord* record =
             segment_.region(FirstRegionEndingAfter(segment_, *guest_, from))) {
    const Region region = LoadRegion(*record);
    if (region.va > range.end) return;
    if (region.mm != last) RefreshShares(segment_, FindAttachment(segment_, *guest_, region.mm));
    last = region.mm;
    from = region.end();
  }
}

void AddressSpace::AddRuns(const RegionSpec& spec, const std::vector<AccessRun>& runs,
                           AccessSet mapped_access, RecordIndex attachment) {
  for (const AccessRun& run : runs) {
    RegionSpec part = spec;
    part.va = spec.va + (run.first - spec.file_page);
    part.file_page = run.first;
    part.length = run.length;
    part.access = run.access;
    const bool opt_in = ShareModeOf(spec.flags) != ShareMode::kUnshare;
    const uint32_t flags = (spec.flags & kAllRegionFlags & ~uint32_t{kSettled}) | run.settled;
    AddRegion(part, {run.access, opt_in ? run.access : mapped_access, flags}, attachment);
  }
  MergeAround({spec.va, spec.va + spec.length});
  RefreshShares(segment_, attachment);
}

TableStatus AddressSpace::Map(const RegionSpec& spec) {
  const std::vector<AccessRun> runs = RunsToMap(segment_, spec, {});
  if (runs.size() > RegionPool(segment_).available()) return TableStatus::kNoSpace;
  RecordIndex attachment = FindAttachment(segment_, *guest_, spec.mm);
  if (attachment == kNullRecord) attachment = Attach(segment_, id_, spec.mm);
  if (attachment == kNullRecord) return TableStatus::kNoSpace;
  AddRuns(spec, runs, spec.access, attachment);
  return TableStatus::kOk;
}

TableStatus AddressSpace::Unmap(AddrRange range, Released* released) {
  if (SplitsAt(range) > RegionPool(segment_).available()) return TableStatus::kNoSpace;
  SplitAt(range.start);
  SplitAt(range.end);
  MmId last;
  for (;;) {
    const RecordIndex index = FirstRegionEndingAfter(segment_, *guest_, range.start);
    const RegionRecord* record = segment_.region(index);
    if (record == nullptr || record->va.Load() >= range.end.value()) break;
    const MmId mm = LoadRegion(*record).mm;
    RemoveRegion(index);
    if (last.valid() && last != mm) Settle(last, released);
    last = mm;
  }
  if (last.valid()) Settle(last, released);
  return TableStatus::kOk;
}

template <class Fn>
TableStatus AddressSpace::ChangeAttributes(AddrRange range, Fn change) {
  if (SplitsAt(range) > RegionPool(segment_).available()) return TableStatus::kNoSpace;
  SplitAt(range.start);
  SplitAt(range.end);
  GuestAddr from = range.start;
  while (RegionRecord* record = segment_.region(FirstRegionEndingAfter(segment_, *guest_, from))) {
    if (record->va.Load() >= range.end.value()) break;
    record->attributes.Store(change(RegionAttributes::Unpack(record->attributes.Load())).Pack());
    from = LoadRegion(*record).end();
  }
  return TableStatus::kOk;
}

void AddressSpace::Tidy(AddrRange range) {
  MergeAround(range);
  RefreshAround(range);
}

TableStatus AddressSpace::Protect(AddrRange range, AccessSet access, AccessScope scope) {
  return ChangeAttributes(range, [access, scope](RegionAttributes attributes) {
    attributes.access = access;
    if (scope == AccessScope::kEveryMapper) {
      attributes.mapped_access = access;
      attributes.flags |= kSettled;
    }
    return attributes;
  });
}

TableStatus AddressSpace::Flag(AddrRange range, uint32_t set, uint32_t clear) {
  return ChangeAttributes(range, [set, clear](RegionAttributes attributes) {
    attributes.flags = (attributes.flags & ~(clear & kChangeableFlags)) | (set & kChangeableFlags);
    return attributes;
  });
}

TableStatus AddressSpace::Move(AddrRange from, AddrRange to, Released* released) {
  const RegionRecord* record = RecordAt(from.start);
  assert(record != nullptr);
  const Region old = LoadRegion(*record);
  const RegionSpec moved{.va = to.start,
                         .length = PagesBetween(to.start, to.end),
                         .mm = old.mm,
                         .file_page = old.PageAt(from.start),
                         .access = old.access,
                         .flags = old.flags};
  const std::vector<AccessRun> runs = RunsToMap(segment_, moved, {id_, to});
  if (SplitsAt(from) + SplitsAt(to) + runs.size() > RegionPool(segment_).available()) {
    return TableStatus::kNoSpace;
  }
  const AccessSet mapped_access = RegionAttributes::Unpack(record->attributes.Load()).mapped_access;
  TableStatus status = Unmap(to, released);
  assert(status == TableStatus::kOk);
  // The new window first: the mm must not lose its last region on the way.
  AddRuns(moved, runs, mapped_access, FindAttachment(segment_, *guest_, old.mm));
  if (from.start < from.end) status = Unmap(from, released);
  assert(status == TableStatus::kOk);
  return status;
}

TableStatus AddressSpace::Grow(GuestAddr end, PageCount by) {
  if (!IsFree({end, end + by})) return TableStatus::kOverlap;
  RegionRecord* record = RecordAt(Before(end));
  assert(record != nullptr && LoadRegion(*record).end() == end);
  const Region old = LoadRegion(*record);
  if (old.IsOptIn()) {
    return Map({end, by, old.mm, old.file_end(), old.access, old.flags});
  }
  record->pages.Add(by.value());
  MergeAround({end, end + by});
  RefreshAround({end, end + by});
  return TableStatus::kOk;
}

TableStatus AddressSpace::CopyFrom(const AddressSpace& parent) {
  assert(guest_->regions.Load() == 0);
  uint32_t attachments = 0;
  ForEachAttachmentOfGuest(segment_, *parent.guest_,
                           [&](RecordIndex, const AttachmentRecord&) { ++attachments; });
  if (parent.guest_->regions.LoadHigh() > RegionPool(segment_).available() ||
      attachments > AttachmentPool(segment_).available() ||
      attachments > NodePool(segment_).available()) {
    return TableStatus::kNoSpace;
  }
  ForEachRegionRecord(segment_, *parent.guest_, [&](const RegionRecord& record) {
    const Region region = LoadRegion(record);
    if ((region.flags & (kDontFork | kCow)) != 0) return;
    RecordIndex attachment = FindAttachment(segment_, *guest_, region.mm);
    if (attachment == kNullRecord) attachment = Attach(segment_, id_, region.mm);
    AddRegion({region.va, region.length, region.mm, region.file_page, region.access, region.flags},
              RegionAttributes::Unpack(record.attributes.Load()), attachment);
  });
  ForEachAttachmentOfGuest(
      segment_, *guest_, [&](RecordIndex child, const AttachmentRecord& record) {
        const MmId mm{record.mm.LoadLow(), record.mm.LoadHigh()};
        const RecordIndex original = FindAttachment(segment_, *parent.guest_, mm);
        if (record.regions.Load() == segment_.attachment(original)->regions.Load()) {
          CopyShares(segment_, original, child);
        } else {
          RefreshShares(segment_, child);
        }
      });
  return TableStatus::kOk;
}

void AddressSpace::UnmapAll(Released* released) {
  while (const RecordIndex root = guest_->regions.LoadLow()) RemoveRegion(root);
  while (const AttachmentRecord* record = segment_.attachment(guest_->attachments.LoadLow())) {
    Settle({record->mm.LoadLow(), record->mm.LoadHigh()}, released);
  }
}

}  // namespace hostmm
