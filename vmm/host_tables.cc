#include "vmm/host_tables.h"

#include <algorithm>

#include "vmm/address_space.h"
#include "vmm/guest_directory.h"
#include "vmm/host_mm.h"
#include "vmm/mm_directory.h"
#include "vmm/page_table.h"
#include "vmm/record_pool.h"
#include "vmm/rmap.h"
#include "vmm/snapshot_tables.h"

namespace hostmm {
namespace {

AddrRange RangeOf(GuestAddr va, PageCount length) { return {va, va + length}; }

// `fn(const Region&, AddrRange part)` for what the guest has mapped in the range.
template <class Fn>
void ForEachPart(const Segment& segment, GuestId guest, AddrRange range, Fn fn) {
  ForEachRegion(segment, guest, [&](const Region& region) {
    const AddrRange part{std::max(region.va, range.start), std::min(region.end(), range.end)};
    if (part.start < part.end) fn(region, part);
  });
}

// Pages [first, end) of a file.
struct FilePart {
  MmId mm;
  FilePage first;
  FilePage end;
};

// What the guest has mapped opt-in in the range; parts that continue each other are one.
std::vector<FilePart> OptInParts(const Segment& segment, GuestId guest, AddrRange range) {
  std::vector<FilePart> parts;
  ForEachPart(segment, guest, range, [&](const Region& region, AddrRange part) {
    if (!region.IsOptIn()) return;
    const FilePage first = region.PageAt(part.start);
    const FilePage end = first + PagesBetween(part.start, part.end);
    if (!parts.empty() && parts.back().mm == region.mm && parts.back().end == first) {
      parts.back().end = end;
    } else {
      parts.push_back({region.mm, first, end});
    }
  });
  return parts;
}

// `fn(GuestId, AddrRange)` for each place where somebody has pages mapped opt-in that the guest has
// mapped so in the range; its own places are among them.
template <class Fn>
void ForEachSharedPlace(const Segment& segment, GuestId guest, AddrRange range, Fn fn) {
  for (const FilePart& part : OptInParts(segment, guest, range)) {
    ForEachSharer(segment, part.mm, part.first, part.end - part.first,
                  [&](GuestId sharer, const Region& region) {
                    fn(sharer, AddrRange{region.AddrOf(std::max(part.first, region.file_page)),
                                         region.AddrOf(std::min(part.end, region.file_end()))});
                  });
  }
}

// One guest's part of a change of access.
struct ProtectJob {
  GuestId guest;
  AddrRange range;
  AccessScope scope;
};

std::vector<ProtectJob> PlanProtect(const Segment& segment, GuestId caller, AddrRange range) {
  std::vector<ProtectJob> jobs;
  ForEachPart(segment, caller, range, [&](const Region& region, AddrRange part) {
    if (!region.IsOptIn()) jobs.push_back({caller, part, AccessScope::kCallerOnly});
  });
  ForEachSharedPlace(segment, caller, range, [&](GuestId guest, AddrRange place) {
    jobs.push_back({guest, place, AccessScope::kEveryMapper});
  });
  return jobs;
}

// One guest's part of a change of flags.
struct FlagJob {
  GuestId guest;
  AddrRange range;
  uint32_t set;
  uint32_t clear;
};

std::vector<FlagJob> PlanFlag(const Segment& segment, const FlagJob& asked) {
  std::vector<FlagJob> jobs = {asked};
  const uint32_t set = asked.set & kHintFlags;
  const uint32_t clear = asked.clear & kHintFlags;
  if ((set | clear) == 0) return jobs;
  ForEachSharedPlace(segment, asked.guest, asked.range, [&](GuestId guest, AddrRange place) {
    jobs.push_back({guest, place, set, clear});
  });
  return jobs;
}

// Whether there are records for the splits that all jobs need: all of them are done or none, since
// a change that reached only some would be a hole.
template <class Job>
bool HasRoomForSplits(const Segment& segment, const std::vector<Job>& jobs) {
  uint64_t splits = 0;
  for (const Job& job : jobs) splits += AddressSpace(segment, job.guest).SplitsAt(job.range);
  return splits <= RegionPool(segment).available();
}

}  // namespace

template <class Fn>
TableStatus HostTables::Releasing(ReleasedMms* released, Fn operation) {
  Released gone;
  TableStatus status;
  {
    const WriteSection section(segment_);
    status = operation(&gone);
  }
  released->insert(released->end(), gone.mms.begin(), gone.mms.end());
  Report(gone.frames);
  return status;
}

void HostTables::Report(const std::vector<FreedFrames>& frames) const {
  if (!sink_) return;
  for (const FreedFrames& run : frames) sink_(run.source, run.first, run.count);
}

TableStatus HostTables::CreateMm(const MmSpec& spec, MmId* id) {
  const WriteSection section(segment_);
  return MmDirectory(segment_).Create(spec, id);
}

TableStatus HostTables::GrowMm(MmId id, PageCount length) {
  MmRecord* mm = segment_.Find(id);
  if (mm == nullptr) return TableStatus::kNoSuchMm;
  const WriteSection section(segment_);
  return MmDirectory(segment_).Grow(mm, length);
}

TableStatus HostTables::PinMm(MmId id) {
  MmRecord* mm = segment_.Find(id);
  if (mm == nullptr) return TableStatus::kNoSuchMm;
  const WriteSection section(segment_);
  mm->regions_pins.StoreHigh(mm->regions_pins.LoadHigh() + 1);
  return TableStatus::kOk;
}

TableStatus HostTables::UnpinMm(MmId id, ReleasedMms* released) {
  MmRecord* mm = segment_.Find(id);
  if (mm == nullptr) return TableStatus::kNoSuchMm;
  assert(mm->regions_pins.LoadHigh() != 0);
  return Releasing(released, [&](Released* gone) {
    mm->regions_pins.StoreHigh(mm->regions_pins.LoadHigh() - 1);
    MmDirectory(segment_).ReleaseIfUnused(id, gone);
    return TableStatus::kOk;
  });
}

TableStatus HostTables::AddGuest(int32_t pid, uint32_t uid, GuestId* id) {
  const WriteSection section(segment_);
  const GuestId added = GuestDirectory(segment_).Add(pid, uid);
  if (!added.valid()) return TableStatus::kNoSpace;
  *id = added;
  return TableStatus::kOk;
}

TableStatus HostTables::ForkGuest(GuestId parent, GuestId* child) {
  const GuestRecord* record = segment_.Find(parent);
  if (record == nullptr) return TableStatus::kNoSuchGuest;
  const WriteSection section(segment_);
  GuestDirectory guests(segment_);
  const GuestId added = guests.Add(0, record->process.LoadHigh());
  if (!added.valid()) return TableStatus::kNoSpace;
  const TableStatus status = AddressSpace(segment_, added).CopyFrom(AddressSpace(segment_, parent));
  if (status != TableStatus::kOk) {
    guests.Remove(added);
    return status;
  }
  *child = added;
  return TableStatus::kOk;
}

TableStatus HostTables::SetGuestPid(GuestId id, int32_t pid) {
  GuestRecord* record = segment_.Find(id);
  if (record == nullptr) return TableStatus::kNoSuchGuest;
  const WriteSection section(segment_);
  record->process.StoreLow(static_cast<uint32_t>(pid));
  return TableStatus::kOk;
}

TableStatus HostTables::RemoveGuest(GuestId id, ReleasedMms* released) {
  if (segment_.Find(id) == nullptr) return TableStatus::kNoSuchGuest;
  return Releasing(released, [&](Released* gone) {
    AddressSpace(segment_, id).UnmapAll(gone);
    GuestDirectory(segment_).Remove(id);
    return TableStatus::kOk;
  });
}

TableStatus HostTables::MapRegion(GuestId id, const RegionSpec& spec) {
  if (segment_.Find(id) == nullptr) return TableStatus::kNoSuchGuest;
  if (segment_.Find(spec.mm) == nullptr) return TableStatus::kNoSuchMm;
  if (!FitsInGuest(spec.va, spec.length) || !FitsInFile(spec.file_page, spec.length)) {
    return TableStatus::kBadRange;
  }
  AddressSpace space(segment_, id);
  if (!space.IsFree(RangeOf(spec.va, spec.length))) return TableStatus::kOverlap;
  const WriteSection section(segment_);
  return space.Map(spec);
}

TableStatus HostTables::UnmapRange(GuestId id, GuestAddr va, PageCount length,
                                   ReleasedMms* released) {
  if (segment_.Find(id) == nullptr) return TableStatus::kNoSuchGuest;
  if (!FitsInGuest(va, length)) return TableStatus::kBadRange;
  return Releasing(released, [&](Released* gone) {
    return AddressSpace(segment_, id).Unmap(RangeOf(va, length), gone);
  });
}

TableStatus HostTables::ProtectRange(GuestId id, GuestAddr va, PageCount length, AccessSet access) {
  if (segment_.Find(id) == nullptr) return TableStatus::kNoSuchGuest;
  if (!FitsInGuest(va, length)) return TableStatus::kBadRange;
  const std::vector<ProtectJob> jobs = PlanProtect(segment_, id, RangeOf(va, length));
  if (!HasRoomForSplits(segment_, jobs)) return TableStatus::kNoSpace;
  const WriteSection section(segment_);
  for (const ProtectJob& job : jobs) {
    [[maybe_unused]] const TableStatus status =
        AddressSpace(segment_, job.guest).Protect(job.range, access, job.scope);
    assert(status == TableStatus::kOk);
  }
  for (const ProtectJob& job : jobs) AddressSpace(segment_, job.guest).Tidy(job.range);
  return TableStatus::kOk;
}

TableStatus HostTables::FlagRange(GuestId id, GuestAddr va, PageCount length, uint32_t set,
                                  uint32_t clear) {
  if (segment_.Find(id) == nullptr) return TableStatus::kNoSuchGuest;
  if (!FitsInGuest(va, length)) return TableStatus::kBadRange;
  const std::vector<FlagJob> jobs = PlanFlag(segment_, {id, RangeOf(va, length), set, clear});
  if (!HasRoomForSplits(segment_, jobs)) return TableStatus::kNoSpace;
  const WriteSection section(segment_);
  for (const FlagJob& job : jobs) {
    [[maybe_unused]] const TableStatus status =
        AddressSpace(segment_, job.guest).Flag(job.range, job.set, job.clear);
    assert(status == TableStatus::kOk);
  }
  for (const FlagJob& job : jobs) AddressSpace(segment_, job.guest).Tidy(job.range);
  return TableStatus::kOk;
}

TableStatus HostTables::MoveRange(GuestId id, GuestAddr from, PageCount old_len, GuestAddr to,
                                  PageCount new_len, ReleasedMms* released) {
  if (segment_.Find(id) == nullptr) return TableStatus::kNoSuchGuest;
  // An empty old range still names the page at which the second window starts.
  const PageCount touched = std::max(old_len, PageCount(1));
  if (!FitsInGuest(from, touched) || !FitsInGuest(to, new_len)) return TableStatus::kBadRange;
  const AddrRange old_range = RangeOf(from, old_len);
  const AddrRange new_range = RangeOf(to, new_len);
  AddressSpace space(segment_, id);
  if (from == to && new_len <= old_len) {
    if (new_len == old_len) return TableStatus::kOk;
    return Releasing(released, [&](Released* gone) {
      return space.Unmap({new_range.end, old_range.end}, gone);
    });
  }
  const std::optional<Region> region = FindRegion(id, from);
  if (!region.has_value() || region->end() < from + touched ||
      !FitsInFile(region->PageAt(from), new_len)) {
    return TableStatus::kBadRange;
  }
  if (from == to) {
    if (region->end() != old_range.end) return TableStatus::kOverlap;
    const WriteSection section(segment_);
    return space.Grow(old_range.end, new_len - old_len);
  }
  if (old_range.start < new_range.end && new_range.start < from + touched) {
    return TableStatus::kBadRange;
  }
  return Releasing(released,
                   [&](Released* gone) { return space.Move(old_range, new_range, gone); });
}

TableStatus HostTables::PunchRange(MmId id, FilePage first, PageCount count) {
  MmRecord* mm = segment_.Find(id);
  if (mm == nullptr) return TableStatus::kNoSuchMm;
  if (!FitsInFile(first, count) || MmTraits::Load(*mm).frames == FrameKind::kSnapshot) {
    return TableStatus::kBadRange;
  }
  const WriteSection section(segment_);
  return PageTable(segment_, mm).Punch(first, count);
}

TableStatus HostTables::SetBlockCollapsed(MmId id, BlockIndex block) {
  MmRecord* mm = segment_.Find(id);
  if (mm == nullptr) return TableStatus::kNoSuchMm;
  PageTable table(segment_, mm);
  const FrameKind frames = table.traits().frames;
  if (!segment_.geometry().HasHugeLeaf() || frames == FrameKind::kForeign ||
      frames == FrameKind::kSnapshot ||
      block.value() >= BlockCeil(FilePage(0) + table.length()).value() || table.IsTail(block)) {
    return TableStatus::kBadRange;
  }
  const PteSlot slot = table.FindBlock(block);
  const Pte leaf = table.Leaf(LeafSize::kHuge, FirstPageOf(block));
  if (slot.entry.is_in_flight()) return TableStatus::kBusy;
  const WriteSection section(segment_);
  if (slot.entry.is_table()) {
    if (table.FillOf(slot.entry.table()).in_flight != 0) return TableStatus::kBusy;
    table.MergeIntoHuge(block, leaf);
    return TableStatus::kOk;
  }
  const PteSlot made = table.MakeBlock(block);
  if (!made.exists()) return TableStatus::kNoSpace;
  table.Replace(made.table, made.index, leaf);
  return TableStatus::kOk;
}

}  // namespace hostmm
