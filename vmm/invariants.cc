#include "vmm/invariants.h"

#include <algorithm>
#include <compare>
#include <map>
#include <sstream>
#include <utility>

#include "vmm/attachments.h"
#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/rmap.h"
#include "vmm/snapshot_invariants.h"
#include "vmm/table_sharing.h"

namespace hostmm {
namespace {

// One pass over a segment. Every record and node is marked when it is met, so that a cycle or a
// record with two owners is a problem and not an endless loop.
class Checker {
 public:
  explicit Checker(const SegmentView& view)
      : view_(view),
        in_tree_(size_t{view.config().max_regions} + 1),
        in_list_(size_t{view.config().max_regions} + 1),
        attached_(size_t{view.config().max_regions} + 1),
        reached_(size_t{view.config().max_nodes} + 1),
        named_(size_t{view.config().max_nodes} + 1) {}

  std::vector<std::string> Run() {
    ForEachLiveGuest([this](GuestId id, const GuestRecord& guest) { CheckGuest(id, guest); });
    ForEachLiveMm([this](MmId id, const MmRecord& mm) { CheckMm(id, mm); });
    CheckLists();
    CheckSnapshots();
    // The rule of sharing reads regions and attachments; it says nothing useful if those are wrong.
    if (problems_.empty()) {
      ForEachLiveMm([this](MmId id, const MmRecord& mm) { CheckSharing(id, mm); });
      ForEachLiveMm([this](MmId id, const MmRecord& mm) { CheckAgreement(id, mm); });
      CheckUses();
    }
    CheckPools();
    CheckFaultAccounts();
    return std::move(problems_);
  }

 private:
  // What a walk over one table found.
  struct Recount {
    uint64_t small = 0;
    uint64_t huge = 0;
    uint64_t in_flight = 0;
  };

  template <class... Parts>
  void Problem(const Parts&... parts) {
    if (problems_.size() == kMaxProblems) return;
    std::ostringstream text;
    (text << ... << parts);
    problems_.push_back(text.str());
  }
  template <class A, class B, class... Parts>
  void ExpectEqual(const A& found, const B& wanted, const Parts&... parts) {
    if (found != static_cast<A>(wanted)) Problem(parts..., ": ", found, " instead of ", wanted);
  }
  static std::string Str(GuestId id) {
    return "guest " + std::to_string(id.slot) + "." + std::to_string(id.generation);
  }
  static std::string Str(MmId id) {
    return "mm " + std::to_string(id.slot) + "." + std::to_string(id.generation);
  }

  template <class Fn>
  void ForEachLiveGuest(Fn fn) const {
    for (RecordIndex slot = 1; const GuestRecord* record = view_.guest(slot); ++slot) {
      if (record->identity.LoadHigh() != 0) fn(GuestId{slot, record->identity.LoadLow()}, *record);
    }
  }
  template <class Fn>
  void ForEachLiveMm(Fn fn) const {
    for (RecordIndex slot = 1; const MmRecord* record = view_.mm(slot); ++slot) {
      if (record->identity.LoadHigh() != 0) fn(MmId{slot, record->identity.LoadLow()}, *record);
    }
  }

  void CheckGuest(GuestId id, const GuestRecord& guest);
  std::vector<RecordIndex> RegionsInTreeOrder(GuestId id, const GuestRecord& guest);
  void CheckRegion(GuestId id, const RegionRecord& record, const RegionRecord* previous);
  void CheckMm(MmId id, const MmRecord& mm);
  void CheckTables(MmId id, const MmRecord& mm);
  bool EnterNode(HostOffset table, int level, NodeKind kind, const std::string& owner);
  void WalkTable(const std::string& owner, const MmRecord& mm, HostOffset table, int level,
                 FilePage first, Recount* total);
  void CheckLeaf(const std::string& owner, const MmRecord& mm, Pte entry, int level, FilePage page,
                 Recount* total);
  void CheckLists();
  void CheckSharing(MmId id, const MmRecord& mm);
  void CheckAgreement(MmId id, const MmRecord& mm);
  // The mm's canonical top, loaded once: a live segment may change between two looks.
  struct CanonicalTop {
    MmId id;
    const SharedWord* entries;
    int level;
  };
  void CheckPrivateTop(const CanonicalTop& mm, const AttachmentRecord& attachment);
  // Counts one entry, or one owner of a top, that names the table.
  void Name(HostOffset table) { ++named_[view_.NodeAt(table)]; }
  void CheckUses();
  void CheckSnapshots();

  static bool IsSnapshot(const MmRecord& mm) {
    return MmTraits::Load(mm).frames == FrameKind::kSnapshot;
  }
  void CheckPools();
  template <class LinkOf>
  void CheckPool(const char* name, const PoolState& pool, uint32_t capacity, LinkOf link_of);
  void CheckFaultAccounts();

  const SegmentView& view_;
  std::vector<std::string> problems_;
  std::vector<bool> in_tree_;    // regions met in a guest's tree
  std::vector<bool> in_list_;    // regions met in an mm's list
  std::vector<bool> attached_;   // attachments met in a guest's list
  std::vector<bool> reached_;    // nodes met in a table or as a top
  std::vector<uint32_t> named_;  // by node: entries and owners that name it
  uint64_t nodes_reached_ = 0;
  uint64_t regions_in_trees_ = 0;
  uint64_t attachments_met_ = 0;
  uint64_t guests_met_ = 0;
  uint64_t mms_met_ = 0;
  uint64_t in_flight_ = 0;
};

std::vector<RecordIndex> Checker::RegionsInTreeOrder(GuestId id, const GuestRecord& guest) {
  std::vector<RecordIndex> order;
  std::vector<RecordIndex> path;
  RecordIndex index = guest.regions.LoadLow();
  while (index != kNullRecord || !path.empty()) {
    if (index != kNullRecord) {
      const RegionRecord* record = view_.region(index);
      if (record == nullptr || in_tree_[index]) {
        Problem(Str(id), ": region tree names record ", index, " wrongly or twice");
        return order;
      }
      in_tree_[index] = true;
      path.push_back(index);
      index = record->tree.LoadLow();
      continue;
    }
    order.push_back(path.back());
    path.pop_back();
    index = view_.region(order.back())->tree.LoadHigh();
  }
  return order;
}

void Checker::CheckRegion(GuestId id, const RegionRecord& record, const RegionRecord* previous) {
  const Region region = LoadRegion(record);
  const std::string name = Str(id) + " region at " + std::to_string(region.va.value());
  if (!FitsInGuest(region.va, region.length) || !FitsInFile(region.file_page, region.length)) {
    Problem(name, ": impossible range");
  }
  if (record.guest.LoadLow() != id.slot || record.guest.LoadHigh() != id.generation) {
    Problem(name, ": belongs to another guest");
  }
  if (view_.Find(region.mm) == nullptr) Problem(name, ": maps a dead mm");
  if ((region.flags & ~kAllRegionFlags) != 0) Problem(name, ": unknown flags");
  if (previous == nullptr) return;
  const Region before = LoadRegion(*previous);
  if (before.end() > region.va) Problem(name, ": overlaps the region before it");
  if (before.end() == region.va && before.mm == region.mm &&
      before.file_end() == region.file_page &&
      RegionAttributes::Unpack(previous->attributes.Load())
          .ContinuesAs(RegionAttributes::Unpack(record.attributes.Load()))) {
    Problem(name, ": should be one with the region before it");
  }
}

void Checker::CheckGuest(GuestId id, const GuestRecord& guest) {
  ++guests_met_;
  std::map<MmId, uint64_t> regions_of;
  const RegionRecord* previous = nullptr;
  const std::vector<RecordIndex> order = RegionsInTreeOrder(id, guest);
  for (RecordIndex index : order) {
    const RegionRecord* record = view_.region(index);
    CheckRegion(id, *record, previous);
    ++regions_of[LoadRegion(*record).mm];
    previous = record;
  }
  regions_in_trees_ += order.size();
  ExpectEqual(guest.regions.LoadHigh(), order.size(), Str(id), ": number of regions");
  RecordIndex index = guest.attachments.LoadLow();
  while (const AttachmentRecord* record = view_.attachment(index)) {
    if (attached_[index]) return Problem(Str(id), ": attachment ", index, " met twice");
    attached_[index] = true;
    ++attachments_met_;
    const MmId mm{record->mm.LoadLow(), record->mm.LoadHigh()};
    if (record->guest.LoadLow() != id.slot || record->guest.LoadHigh() != id.generation) {
      Problem(Str(id), ": attachment ", index, " belongs to another guest");
    }
    const auto found = regions_of.find(mm);
    ExpectEqual(record->regions.Load(), found == regions_of.end() ? 0 : found->second, Str(id),
                ": regions of its attachment to ", Str(mm));
    if (found == regions_of.end()) {
      Problem(Str(id), ": attached to ", Str(mm), " without a region or twice");
    } else {
      regions_of.erase(found);
    }
    index = record->of_guest.LoadLow();
  }
  for (const auto& [mm, count] : regions_of) {
    Problem(Str(id), ": maps ", Str(mm), " ", count, " times without an attachment");
  }
}

bool Checker::EnterNode(HostOffset table, int level, NodeKind kind, const std::string& owner) {
  const RecordIndex index = view_.NodeAt(table);
  if (index == kNullRecord) {
    Problem(owner, ": offset ", table.value(), " is no table");
    return false;
  }
  if (reached_[index]) {
    Problem(owner, ": table ", table.value(), " is reached twice");
    return false;
  }
  reached_[index] = true;
  ++nodes_reached_;
  const NodeUse use = NodeUse::Load(*view_.node(index));
  if (use.kind != kind || use.level != level) {
    Problem(owner, ": table ", table.value(), " has kind ", static_cast<int>(use.kind),
            " and level ", static_cast<int>(use.level));
  }
  return true;
}

void Checker::CheckLeaf(const std::string& owner, const MmRecord& mm, Pte entry, int level,
                        FilePage page, Recount* total) {
  const MmTraits traits = MmTraits::Load(mm);
  const PageCount span = view_.geometry().SpanOf(level);
  const bool huge = level == 1 && view_.geometry().HasHugeLeaf();
  if (entry.is_copied()) Problem(owner, ": page ", page.value(), " is copied in the live file");
  if (entry.is_huge() != huge || (level != 0 && !huge)) {
    Problem(owner, ": leaf of page ", page.value(), " cannot be at level ", level);
  }
  if (entry.frame().value() != page.value()) {
    Problem(owner, ": page ", page.value(), " has frame ", entry.frame().value());
  }
  if (!entry.access().IsSubsetOf(traits.access)) {
    Problem(owner, ": page ", page.value(), " allows more than its mm (I4)");
  }
  const bool may_reach_over_end = traits.frames == FrameKind::kHugetlb;
  const FilePage end = may_reach_over_end ? page + PageCount(1) : page + span;
  if (end - FilePage(0) > PageCount(mm.length.Load())) {
    Problem(owner, ": page ", page.value(), " is behind the end of the file (I3)");
  }
  if (entry.is_in_flight()) {
    ++total->in_flight;
  } else {
    ++(entry.is_huge() ? total->huge : total->small);
  }
}

void Checker::WalkTable(const std::string& owner, const MmRecord& mm, HostOffset table, int level,
                        FilePage first, Recount* total) {
  if (!EnterNode(table, level, NodeKind::kTable, owner)) return;
  const NodeRecord& node = *view_.node(view_.NodeAt(table));
  const SharedWord* entries = view_.entries(table);
  uint64_t live = 0;
  const uint64_t in_flight_below = total->in_flight;
  uint64_t in_lower_tables = 0;
  for (uint64_t i = 0; i < view_.geometry().EntriesAt(level); ++i) {
    const Pte entry = Pte::FromRaw(entries[i].Load());
    if (entry.is_empty()) continue;
    ++live;
    const FilePage page = first + PageCount(i << view_.geometry().SpanShift(level));
    if (!entry.valid() || (entry.is_table() && level == 0)) {
      Problem(owner, ": entry of page ", page.value(), " at level ", level, " is damaged");
    } else if (entry.is_table()) {
      const uint64_t before = total->in_flight;
      Name(entry.table());
      WalkTable(owner, mm, entry.table(), level - 1, page, total);
      in_lower_tables += total->in_flight - before;
    } else {
      CheckLeaf(owner, mm, entry, level, page, total);
    }
  }
  const NodeFill fill = NodeFill::Load(node);
  ExpectEqual(uint64_t{fill.live}, live, owner, ": live entries of table ", table.value());
  ExpectEqual(uint64_t{fill.in_flight}, total->in_flight - in_flight_below - in_lower_tables, owner,
              ": entries in flight of table ", table.value());
  if (live == 0 && level != MmTraits::Load(mm).top_level) {
    Problem(owner, ": table ", table.value(), " is empty and not freed");
  }
}

void Checker::CheckTables(MmId id, const MmRecord& mm) {
  const MmTraits traits = MmTraits::Load(mm);
  const std::string owner = Str(id);
  if (view_.geometry().TopLevelFor(PageCount(mm.length.Load())) != traits.top_level ||
      traits.top_level >= view_.geometry().levels) {
    return Problem(owner, ": top level ", static_cast<int>(traits.top_level));
  }
  Recount total;
  const HostOffset top(mm.top.Load());
  Name(top);
  WalkTable(owner, mm, top, traits.top_level, FilePage(0), &total);
  ExpectEqual(mm.small_pages.Load(), total.small, owner, ": small pages");
  ExpectEqual(mm.huge_blocks.Load(), total.huge, owner, ": huge blocks");
  ExpectEqual(mm.in_flight.Load(), total.in_flight, owner, ": entries in flight");
  in_flight_ += total.in_flight;
}

void Checker::CheckMm(MmId id, const MmRecord& mm) {
  ++mms_met_;
  if (!IsSnapshot(mm)) CheckTables(id, mm);
  uint32_t regions = 0;
  RecordIndex previous = kNullRecord;
  RecordIndex index = mm.lists.LoadLow();
  while (const RegionRecord* record = view_.region(index)) {
    if (in_list_[index]) return Problem(Str(id), ": region ", index, " is listed twice");
    in_list_[index] = true;
    ++regions;
    if (!in_tree_[index] || LoadRegion(*record).mm != id) {
      Problem(Str(id), ": lists region ", index, ", which does not map it");
    }
    ExpectEqual(record->siblings.LoadHigh(), previous, Str(id), ": back link of region ", index);
    previous = index;
    index = record->siblings.LoadLow();
  }
  ExpectEqual(mm.regions_pins.LoadLow(), regions, Str(id), ": number of regions");
  uint32_t mappers = 0;
  ForEachAttachmentOfMm(view_, mm, [&](RecordIndex attachment, const AttachmentRecord& record) {
    ++mappers;
    if (!attached_[attachment] || record.mm.LoadLow() != id.slot ||
        record.mm.LoadHigh() != id.generation) {
      Problem(Str(id), ": lists attachment ", attachment, ", which is not its own");
    }
  });
  ExpectEqual(mm.mappers.Load(), mappers, Str(id), ": number of mappers");
}

void Checker::CheckLists() {
  for (size_t i = 1; i < in_tree_.size(); ++i) {
    if (in_tree_[i] && !in_list_[i]) Problem("region ", i, " is in no mm's list (rmap)");
  }
}

void Checker::CheckPrivateTop(const CanonicalTop& mm, const AttachmentRecord& attachment) {
  const GuestId guest{attachment.guest.LoadLow(), attachment.guest.LoadHigh()};
  const std::string owner = Str(guest) + " in " + Str(mm.id);
  const HostOffset top(attachment.top.Load());
  if (!EnterNode(top, mm.level, NodeKind::kPrivateTop, owner)) return;
  Name(top);
  const SharedWord* entries = view_.entries(top);
  const SpanSet sharable = SharableSpans(view_, guest, mm.id);
  for (uint64_t i = 0; i < view_.geometry().EntriesAt(mm.level); ++i) {
    const uint64_t found = entries[i].Load();
    ExpectEqual(found, sharable[i] ? mm.entries[i].Load() : 0, owner, ": shared entry ", i);
    const Pte entry = Pte::FromRaw(found);
    if (entry.is_table()) Name(entry.table());
  }
}

void Checker::CheckSharing(MmId id, const MmRecord& mm) {
  const CanonicalTop top{id, view_.entries(HostOffset(mm.top.Load())),
                         MmTraits::Load(mm).top_level};
  if (top.entries == nullptr || top.level >= view_.geometry().levels) return;
  ForEachAttachmentOfMm(view_, mm, [&](RecordIndex, const AttachmentRecord& record) {
    CheckPrivateTop(top, record);
  });
}

void Checker::CheckSnapshots() {
  SnapshotChecker checker(view_,
                          {.problem = [this](const std::string& text) { Problem(text); },
                           .enter =
                               [this](HostOffset table, int level, const std::string& owner) {
                                 return EnterNode(table, level, NodeKind::kSnapshot, owner);
                               },
                           .name = [this](HostOffset table) { Name(table); }});
  ForEachLiveMm([&](MmId id, const MmRecord& mm) {
    if (!IsSnapshot(mm)) checker.CheckList(id, mm);
  });
  ForEachLiveMm([&](MmId id, const MmRecord& mm) {
    if (IsSnapshot(mm)) checker.CheckTables(id, mm);
  });
  checker.CheckFrames();
  // Only sound tables can be compared.
  if (!problems_.empty()) return;
  ForEachLiveMm([&](MmId id, const MmRecord& mm) {
    if (IsSnapshot(mm)) checker.CheckOrder(id, mm);
  });
}

void Checker::CheckUses() {
  for (RecordIndex index = 1; index < reached_.size(); ++index) {
    if (!reached_[index]) continue;
    ExpectEqual(NodeUse::Load(*view_.node(index)).count, named_[index], "use count of table ",
                view_.OffsetOfNode(index).value(), " (I5)");
  }
}

// I13, by a sweep over the ends of all opt-in regions: between two ends, if one that is there is
// settled, all have its access.
void Checker::CheckAgreement(MmId id, const MmRecord& mm) {
  struct End {
    FilePage page;
    int change;  // -1 sorts before +1: a region that ends here does not overlap one that starts
                 // here
    uint8_t access;
    int settled;  // 1, or 0
    auto operator<=>(const End&) const = default;
  };
  std::vector<End> ends;
  ForEachRegionOfMm(view_, mm, [&](RecordIndex index, const RegionRecord& record) {
    const Region region = LoadRegion(record);
    if (!region.IsOptIn()) return;
    const auto attributes = RegionAttributes::Unpack(record.attributes.Load());
    if (attributes.mapped_access != attributes.access) {
      Problem(Str(id), ": opt-in region ", index, " has another access than it was mapped with");
    }
    const int settled = (region.flags & kSettled) != 0 ? 1 : 0;
    ends.push_back({region.file_page, 1, region.access.bits(), settled});
    ends.push_back({region.file_end(), -1, region.access.bits(), settled});
  });
  std::sort(ends.begin(), ends.end());
  std::map<uint8_t, int> there;  // regions by access
  int settled = 0;
  for (const End& end : ends) {
    if ((there[end.access] += end.change) == 0) there.erase(end.access);
    settled += end.change * end.settled;
    // Only when all that begin here have been counted.
    const bool last = &end == &ends.back() || (&end + 1)->page != end.page;
    if (!last || there.size() < 2 || settled == 0) continue;
    return Problem(Str(id), ": opt-in regions differ in access at page ", end.page.value(),
                   " (I13)");
  }
}

template <class LinkOf>
void Checker::CheckPool(const char* name, const PoolState& pool, uint32_t capacity,
                        LinkOf link_of) {
  const uint64_t watermark = pool.watermark.Load();
  if (watermark > capacity) return Problem(name, " pool: watermark ", watermark);
  uint64_t free = 0;
  for (RecordIndex index = pool.free_head.LoadLow(); index != kNullRecord; ++free) {
    const SharedWord* link = link_of(index);
    if (link == nullptr || index > watermark || free == watermark) {
      return Problem(name, " pool: free list is damaged at record ", index);
    }
    index = link->LoadLow();
  }
  ExpectEqual(pool.used.Load() + free, watermark, name, " pool: records used and free");
}

void Checker::CheckPools() {
  const SegmentHeader& header = view_.header();
  const SegmentConfig& config = view_.config();
  const auto link = [](auto* record, auto member) {
    return record == nullptr ? nullptr : &(record->*member);
  };
  CheckPool("guest", header.guests, config.max_guests,
            [&](RecordIndex i) { return link(view_.guest(i), &GuestRecord::link); });
  CheckPool("mm", header.mms, config.max_mms,
            [&](RecordIndex i) { return link(view_.mm(i), &MmRecord::link); });
  CheckPool("region", header.regions, config.max_regions,
            [&](RecordIndex i) { return link(view_.region(i), &RegionRecord::tree); });
  CheckPool("attachment", header.attachments, config.max_regions,
            [&](RecordIndex i) { return link(view_.attachment(i), &AttachmentRecord::link); });
  CheckPool("node", header.nodes, config.max_nodes,
            [&](RecordIndex i) { return link(view_.node(i), &NodeRecord::fill); });
  ExpectEqual(header.guests.used.Load(), guests_met_, "guests in use");
  ExpectEqual(header.mms.used.Load(), mms_met_, "mms in use");
  ExpectEqual(header.regions.used.Load(), regions_in_trees_, "regions in use");
  ExpectEqual(header.attachments.used.Load(), attachments_met_, "attachments in use");
  // Private tops are entered with the sharing rule, which a damaged segment does not reach.
  if (problems_.empty()) {
    ExpectEqual(header.nodes.used.Load(), nodes_reached_, "nodes in use (leak or early free)");
  }
}

void Checker::CheckFaultAccounts() {
  const FaultStats stats = TableReader(view_).Stats();
  ExpectEqual(stats.in_flight_entries, in_flight_, "entries in flight (I6)");
  if (stats.outstanding_faults == 0 && in_flight_ != 0) {
    Problem(in_flight_, " entries in flight without a fault being handled (I6)");
  }
  if (stats.Unaccounted() != 0) {
    Problem(stats.Unaccounted(), " events not recorded exactly once (I7)");
  }
}

}  // namespace

std::vector<std::string> CheckInvariants(const TableReader& reader) {
  return Checker(reader.view()).Run();
}

ReadStatus CheckLive(const TableReader& reader, int attempts, std::vector<std::string>* problems) {
  const ReadStatus status =
      reader.ReadConsistently(attempts, [&] { *problems = CheckInvariants(reader); });
  if (status == ReadStatus::kBusy) problems->clear();
  return status;
}

}  // namespace hostmm
