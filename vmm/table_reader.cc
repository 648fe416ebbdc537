#include "vmm/table_reader.h"

#include "vmm/attachments.h"
#include "vmm/guest_directory.h"
#include "vmm/host_mm.h"
#include "vmm/page_table_walker.h"
#include "vmm/snapshot_list.h"

namespace hostmm {
namespace {

// Frees are rare beside lookups; a reader that meets this many in a row reads a damaged segment, or
// one that is being torn down.
constexpr int kWalkAttempts = 100;

PageView ViewOf(const WalkResult& walk) {
  switch (walk.end) {
    case WalkEnd::kEmpty:
      return {.state = PageState::kEmpty};
    case WalkEnd::kDamaged:
      return {.state = PageState::kUnreadable};
    case WalkEnd::kLeaf:
      break;
  }
  PageState state = walk.entry.is_huge() ? PageState::kPresentHuge : PageState::kPresentSmall;
  if (walk.entry.is_in_flight()) state = PageState::kInFlight;
  if (walk.entry.is_copied()) state = PageState::kCopied;
  return {state, walk.entry.access(), walk.entry.frame()};
}

}  // namespace

AttachStatus TableReader::Attach(std::span<const std::byte> bytes, TableReader* reader) {
  return SegmentView::Attach(bytes, &reader->view_);
}

FaultStats TableReader::Stats() const {
  FaultStats stats;
  const SegmentHeader& header = view_.header();
  for (size_t i = 0; i < kStatCount; ++i) stats.values[i] = header.stats[i].Load();
  stats.in_flight_entries = header.in_flight_entries.Load();
  stats.outstanding_faults = header.outstanding_faults.Load();
  return stats;
}

PoolUse TableReader::Pools() const {
  const SegmentHeader& header = view_.header();
  return {.guests = header.guests.used.LoadLow(),
          .mms = header.mms.used.LoadLow(),
          .regions = header.regions.used.LoadLow(),
          .attachments = header.attachments.used.LoadLow(),
          .nodes = header.nodes.used.LoadLow(),
          .table_bytes = header.nodes.used.LoadLow() * view_.node_bytes()};
}

std::optional<Region> TableReader::FindRegion(GuestId guest, GuestAddr addr) const {
  const GuestRecord* record = view_.Find(guest);
  if (record == nullptr) return std::nullopt;
  const RegionRecord* region = view_.region(FindRegionRecord(view_, *record, addr));
  if (region == nullptr) return std::nullopt;
  return LoadRegion(*region);
}

std::optional<GuestInfo> TableReader::Info(GuestId guest) const {
  const GuestRecord* record = view_.Find(guest);
  if (record == nullptr) return std::nullopt;
  return LoadGuestInfo(guest, *record);
}

std::optional<MmInfo> TableReader::Info(MmId mm) const {
  const MmRecord* record = view_.Find(mm);
  if (record == nullptr) return std::nullopt;
  return LoadMmInfo(mm, *record);
}

const SharedWord* TableReader::TopOf(const Top& which) const {
  if (!which.guest.valid()) {
    const MmRecord* mm = view_.Find(which.mm);
    return mm == nullptr ? nullptr : &mm->top;
  }
  const GuestRecord* guest = view_.Find(which.guest);
  if (guest == nullptr) return nullptr;
  const AttachmentRecord* attachment = view_.attachment(FindAttachment(view_, *guest, which.mm));
  return attachment == nullptr ? nullptr : &attachment->top;
}

PageView TableReader::LookupThrough(const Top& which, FilePage page) const {
  const SharedWord& epoch = view_.header().free_epoch;
  for (int i = 0; i < kWalkAttempts; ++i) {
    const uint64_t before = epoch.Load();
    PageView view;
    const MmRecord* mm = view_.Find(which.mm);
    const SharedWord* top = TopOf(which);
    if (mm != nullptr && top != nullptr && page.value() < mm->length.Load()) {
      view = ViewOf(Walk(view_, HostOffset(top->Load()), MmTraits::Load(*mm).top_level, page));
    }
    if (epoch.Load() == before) return view;
  }
  return {.state = PageState::kUnreadable};
}

PageView TableReader::Lookup(MmId mm, FilePage page) const {
  const PageView view = LookupThrough({GuestId(), mm}, page);
  const MmRecord* record = view_.Find(mm);
  if (record == nullptr || MmTraits::Load(*record).frames != FrameKind::kSnapshot) return view;
  if (view.state == PageState::kCopied || view.state == PageState::kUnreadable) return view;
  const bool has_page = page.value() < record->length.Load();
  return has_page ? LookupThrough({GuestId(), SourceOf(*record)}, page) : PageView();
}

PageView TableReader::LookupFrom(GuestId guest, MmId mm, FilePage page) const {
  if (!guest.valid()) return {};
  const PageView view = LookupThrough({guest, mm}, page);
  // Where the guest does not share, it reads through the canonical top.
  return view.state == PageState::kEmpty ? Lookup(mm, page) : view;
}

TableReader::Sharing TableReader::IsShared(GuestId guest, GuestAddr addr) const {
  Sharing sharing = Sharing::kNotShared;
  ReadConsistently(kWalkAttempts, [&] {
    sharing = Sharing::kNotShared;
    const std::optional<Region> region = FindRegion(guest, addr);
    if (!region.has_value()) return;
    const MmRecord* mm = view_.Find(region->mm);
    const SharedWord* top = TopOf({guest, region->mm});
    if (mm == nullptr || top == nullptr) return;
    const int level = MmTraits::Load(*mm).top_level;
    const SharedWord* entries = view_.entries(HostOffset(top->Load()));
    if (entries == nullptr || level >= view_.geometry().levels) return;
    const uint64_t index = view_.geometry().IndexAt(level, region->PageAt(addr));
    if (Pte::FromRaw(entries[index].Load()).is_table()) sharing = Sharing::kShared;
  });
  return sharing;
}

}  // namespace hostmm
