#include "vmm/table_model.h"

#include <algorithm>
#include <sstream>

namespace hostmm {
namespace {

template <class... Parts>
std::string Text(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

bool Continues(const ModelMapping& a, const ModelMapping& b) {
  return a.mm == b.mm && a.file_page + 1 == b.file_page && a.access == b.access &&
         a.mapped_access == b.mapped_access && ((a.flags ^ b.flags) & ~uint32_t{kSettled}) == 0;
}

bool IsPresent(const ModelEntry& entry) {
  return entry.state == PageState::kPresentSmall || entry.state == PageState::kPresentHuge;
}

bool IsOptIn(const ModelMapping& mapping) { return (mapping.flags & kSharedPt) != 0; }

ModelEntry InFlight(const ModelEntry& old, bool huge) {
  return {PageState::kInFlight, IsPresent(old), huge};
}

}  // namespace

bool ModelMm::AnyInFlight(uint64_t first, uint64_t end) const {
  for (auto it = entries.lower_bound(first); it != entries.end() && it->first < end; ++it) {
    if (it->second.state == PageState::kInFlight) return true;
  }
  return false;
}

bool TableModel::IsFree(size_t guest, uint64_t va, uint64_t pages) const {
  const auto it = guests[guest].pages.lower_bound(va);
  return it == guests[guest].pages.end() || it->first >= va + pages;
}

TableModel::Places TableModel::OptInPlaces(size_t guest, uint64_t va, uint64_t pages) const {
  const auto& map = guests[guest].pages;
  Places places;
  for (auto it = map.lower_bound(va); it != map.end() && it->first < va + pages; ++it) {
    if (!IsOptIn(it->second)) continue;
    std::vector<bool>& of_mm = places[it->second.mm];
    if (of_mm.size() <= it->second.file_page) of_mm.resize(it->second.file_page + 1);
    of_mm[it->second.file_page] = true;
  }
  return places;
}

template <class Fn>
void TableModel::ForEachOptIn(const Places& places, Fn fn) {
  if (places.empty()) return;
  for (ModelGuest& guest : guests) {
    for (auto& [page, mapping] : guest.pages) {
      if (!IsOptIn(mapping)) continue;
      const auto found = places.find(mapping.mm);
      if (found == places.end() || mapping.file_page >= found->second.size()) continue;
      if (found->second[mapping.file_page]) fn(mapping);
    }
  }
}

// Neighbours that have become one region are settled only if all of them were.
void TableModel::MergeSettled() {
  for (ModelGuest& guest : guests) {
    for (auto begin = guest.pages.begin(); begin != guest.pages.end();) {
      auto end = std::next(begin);
      uint32_t settled = begin->second.flags & kSettled;
      for (auto last = begin; end != guest.pages.end() && end->first == last->first + 1 &&
                              Continues(last->second, end->second);
           last = end++) {
        settled &= end->second.flags;
      }
      for (; begin != end; ++begin) {
        begin->second.flags = (begin->second.flags & ~kSettled) | settled;
      }
    }
  }
}

void TableModel::Map(size_t guest, uint64_t va, uint64_t pages, const ModelMapping& first) {
  Places places;
  if (IsOptIn(first)) {
    std::vector<bool>& of_mm = places[first.mm];
    of_mm.resize(first.file_page + pages);
    std::fill(of_mm.begin() + first.file_page, of_mm.end(), true);
  }
  std::map<uint64_t, AccessSet> access_there;
  ForEachOptIn(places, [&](const ModelMapping& mapping) {
    if ((mapping.flags & kSettled) == 0) return;
    access_there[mapping.file_page] = mapping.access;
  });
  for (uint64_t i = 0; i < pages; ++i) {
    ModelMapping mapping = first;
    mapping.file_page += i;
    const auto there = access_there.find(mapping.file_page);
    mapping.flags &= ~kSettled;
    if (there != access_there.end()) {
      mapping.access = there->second;
      mapping.flags |= kSettled;
    }
    if (IsOptIn(first)) mapping.mapped_access = mapping.access;
    guests[guest].pages[va + i] = mapping;
  }
  MergeSettled();
}

void TableModel::Unmap(size_t guest, uint64_t va, uint64_t pages) {
  auto& map = guests[guest].pages;
  map.erase(map.lower_bound(va), map.lower_bound(va + pages));
}

void TableModel::Protect(size_t guest, uint64_t va, uint64_t pages, AccessSet access) {
  auto& map = guests[guest].pages;
  for (auto it = map.lower_bound(va); it != map.end() && it->first < va + pages; ++it) {
    if (!IsOptIn(it->second)) it->second.access = access;
  }
  ForEachOptIn(OptInPlaces(guest, va, pages), [access](ModelMapping& mapping) {
    mapping.access = mapping.mapped_access = access;
    mapping.flags |= kSettled;
  });
  MergeSettled();
}

void TableModel::Flag(size_t guest, uint64_t va, uint64_t pages, uint32_t set, uint32_t clear) {
  constexpr uint32_t kOwn = kDontFork | kTracked;
  constexpr uint32_t kOfAll = kHintHuge | kHintSmall;
  const auto change = [&](ModelMapping& mapping, uint32_t which) {
    mapping.flags = (mapping.flags & ~(clear & which)) | (set & which);
  };
  auto& map = guests[guest].pages;
  for (auto it = map.lower_bound(va); it != map.end() && it->first < va + pages; ++it) {
    change(it->second, IsOptIn(it->second) ? kOwn : kOwn | kOfAll);
  }
  ForEachOptIn(OptInPlaces(guest, va, pages),
               [&](ModelMapping& mapping) { change(mapping, kOfAll); });
  MergeSettled();
}

bool TableModel::CanMove(size_t guest, uint64_t from, uint64_t old_pages, uint64_t to,
                         uint64_t new_pages) const {
  if (new_pages == 0) return false;
  if (from == to && new_pages <= old_pages) return true;
  const auto& map = guests[guest].pages;
  const uint64_t touched = std::max<uint64_t>(old_pages, 1);
  auto it = map.find(from);
  if (it == map.end()) return false;
  for (uint64_t i = 1; i < touched; ++i) {
    const auto next = std::next(it);
    if (next == map.end() || next->first != from + i || !Continues(it->second, next->second)) {
      return false;
    }
    it = next;
  }
  // Growing in place: the region must end there, and the room must be free.
  if (from == to) return old_pages != 0 && IsFree(guest, from + old_pages, new_pages - old_pages);
  return from >= to + new_pages || to >= from + touched;
}

void TableModel::Move(size_t guest, uint64_t from, uint64_t old_pages, uint64_t to,
                      uint64_t new_pages) {
  if (from == to && new_pages <= old_pages) {
    return Unmap(guest, from + new_pages, old_pages - new_pages);
  }
  ModelMapping first = guests[guest].pages.at(from);
  if (from == to) {
    first.file_page += old_pages;
    return Map(guest, from + old_pages, new_pages - old_pages, first);
  }
  Unmap(guest, to, new_pages);
  Map(guest, to, new_pages, first);
  Unmap(guest, from, old_pages);
}

void TableModel::Fork(size_t parent, GuestId child) {
  ModelGuest copy{.id = child};
  for (const auto& [page, mapping] : guests[parent].pages) {
    if ((mapping.flags & kDontFork) == 0) copy.pages[page] = mapping;
  }
  guests.push_back(copy);
}

void TableModel::Punch(size_t mm, uint64_t first, uint64_t pages) {
  ModelMm& model = mms[mm];
  uint64_t end = std::min(first + pages, model.length);
  if (model.spec.frames == FrameKind::kHugetlb) {
    first = (first + kPagesPerBlock - 1) / kPagesPerBlock * kPagesPerBlock;
    if (end < model.length) end = end / kPagesPerBlock * kPagesPerBlock;
  }
  for (uint64_t page = first; page < end; ++page) {
    const ModelEntry entry = model.At(page);
    if (entry.state == PageState::kInFlight) {
      // A huge entry in flight is one entry: what is punched in part is forgotten as a whole.
      const uint64_t begin = entry.huge ? page / kPagesPerBlock * kPagesPerBlock : page;
      const uint64_t stop = entry.huge ? begin + kPagesPerBlock : page + 1;
      for (uint64_t i = begin; i < stop; ++i) model.entries[i].was_present = false;
      continue;
    }
    if (entry.state == PageState::kPresentHuge) {
      const uint64_t begin = page / kPagesPerBlock * kPagesPerBlock;
      for (uint64_t i = begin; i < begin + kPagesPerBlock; ++i) {
        model.entries[i] = {PageState::kPresentSmall, false, false};
      }
    }
    model.entries.erase(page);
  }
}

void TableModel::Collapse(size_t mm, uint64_t block) {
  for (uint64_t i = 0; i < kPagesPerBlock; ++i) {
    mms[mm].entries[block * kPagesPerBlock + i] = {PageState::kPresentHuge, false, false};
  }
}

std::optional<size_t> TableModel::IndexOf(MmId id) const {
  for (size_t i = 0; i < mms.size(); ++i) {
    if (mms[i].alive && mms[i].id == id) return i;
  }
  return std::nullopt;
}

std::optional<std::string> TableModel::DecidedMissing(ModelMm& mm, uint64_t page,
                                                      const FaultEvent& event,
                                                      const FaultDecision& decision) {
  const ModelEntry entry = mm.At(page);
  if (entry.state == PageState::kInFlight) {
    if (decision.action != FaultAction::kJoin) return "should have joined";
    return std::nullopt;
  }
  if (decision.action != FaultAction::kPopulate) return "should have populated";
  if (decision.cause == FaultCause::kUntracked) return std::nullopt;
  const uint64_t first = decision.first.value();
  const uint64_t end = first + decision.count.value();
  if (page < first || page >= end) return "populates another page";
  if (mm.AnyInFlight(first, end)) return "overlaps a running populate";
  if (IsPresent(entry) != (decision.cause == FaultCause::kRefill)) return "refill or not";
  if (decision.cause != FaultCause::kRefill && decision.cause != FaultCause::kStaleAccess &&
      decision.cause == FaultCause::kHugeHint && (mm.spec.frames != FrameKind::kHuge)) {
    return "a hint made other than huge frames huge";
  }
  if (mm.spec.frames == FrameKind::kBase && decision.grain == Grain::kHuge &&
      entry.state != PageState::kPresentHuge) {
    return "base frames are never huge at once";
  }
  if (mm.spec.frames != FrameKind::kHugetlb && decision.grain != Grain::kSmall && end > mm.length) {
    return "a huge populate behind the end of the file";
  }
  if (event.kind != FaultKind::kMissing) return "not a missing fault";
  for (uint64_t i = first; i < end; ++i) {
    const ModelEntry old = mm.At(i);
    // A small populate takes on holes, or the one page that it refills; a collapse takes on all.
    if (decision.grain == Grain::kSmall && IsPresent(old) && i != page) continue;
    mm.entries[i] = InFlight(old, decision.grain == Grain::kHuge);
  }
  return std::nullopt;
}

std::optional<std::string> TableModel::DecidedMinor(ModelMm& mm, uint64_t page,
                                                    const FaultDecision& decision,
                                                    const HostTables& tables) {
  const ModelEntry entry = mm.At(page);
  if (entry.state == PageState::kInFlight) {
    if (decision.action != FaultAction::kJoin) return "should have joined";
    return std::nullopt;
  }
  if (decision.action != FaultAction::kContinue) return "should have continued";
  const uint64_t first = decision.first.value();
  const uint64_t end = first + decision.count.value();
  if (page < first || page >= end) return "continues another page";
  if (IsPresent(entry)) {
    for (uint64_t i = first; i < end; ++i) {
      if (!IsPresent(mm.At(i))) return "continues a page that does not exist";
    }
    return std::nullopt;
  }
  const bool hugetlb = mm.spec.frames == FrameKind::kHugetlb;
  if (decision.cause != FaultCause::kUnknownPresent) return "unknown present";
  if (end - first != (hugetlb ? kPagesPerBlock : 1)) return "wrong unit to continue";
  // Without a node for it, the page stays unknown.
  const PageState found = tables.reader().Lookup(mm.id, FilePage(page)).state;
  if (found == (hugetlb ? PageState::kPresentHuge : PageState::kPresentSmall)) {
    for (uint64_t i = first; i < end; ++i) mm.entries[i] = {found, false, false};
  } else if (tables.reader().Pools().nodes + 4 <= tables.segment().config().max_nodes) {
    return "a page that exists was not remembered";
  }
  return std::nullopt;
}

std::optional<std::string> TableModel::Decided(size_t guest, const FaultEvent& event,
                                               const FaultDecision& decision,
                                               const HostTables& tables) {
  const auto denied = [&](FaultCause cause) -> std::optional<std::string> {
    if (decision.action == FaultAction::kDeny && decision.cause == cause) return std::nullopt;
    return Text("should have been denied as ", Name(cause), ", not ", Name(decision.cause));
  };
  if (!guests[guest].alive) return denied(FaultCause::kNoSuchGuest);
  const auto it = guests[guest].pages.find(event.addr.value() / kPageSize);
  if (it == guests[guest].pages.end()) return denied(FaultCause::kNoRegion);
  const ModelMapping& mapping = it->second;
  ModelMm& mm = mms[mapping.mm];
  if (mm.spec.frames == FrameKind::kAdopted || mm.spec.frames == FrameKind::kForeign) {
    return denied(FaultCause::kAdoptedFile);
  }
  if (mapping.file_page >= mm.length) return denied(FaultCause::kBeyondFile);
  if (event.kind == FaultKind::kWriteProtect) {
    if (!mapping.access.Contains(Access::kWrite) || (mapping.flags & kNeverWrite) != 0) {
      return denied(FaultCause::kForbidden);
    }
    if (decision.action != FaultAction::kWake) return "should have woken";
    return std::nullopt;
  }
  if (decision.mm != mm.id || decision.guest != guests[guest].id) return "wrong guest or mm";
  const uint64_t wake_end = decision.wake_start.value() + decision.wake_bytes;
  if (event.addr < decision.wake_start || event.addr.value() >= wake_end) {
    return "does not wake the page that faulted";
  }
  for (uint64_t page = decision.wake_start.value() / kPageSize; page < wake_end / kPageSize;
       ++page) {
    if (!guests[guest].pages.contains(page)) return "wakes outside the region";
  }
  return event.kind == FaultKind::kMissing ? DecidedMissing(mm, mapping.file_page, event, decision)
                                           : DecidedMinor(mm, mapping.file_page, decision, tables);
}

void TableModel::Committed(const FaultDecision& decision, Outcome outcome, Grain actual,
                           const HostTables& tables) {
  const std::optional<size_t> index = IndexOf(decision.mm);
  if (!index.has_value() || decision.action != FaultAction::kPopulate ||
      decision.cause == FaultCause::kUntracked) {
    return;
  }
  ModelMm& mm = mms[*index];
  const bool becomes_huge = decision.grain != Grain::kSmall && actual != Grain::kSmall;
  for (uint64_t i = 0; i < decision.count.value(); ++i) {
    const uint64_t page = decision.first.value() + i;
    const ModelEntry entry = mm.At(page);
    if (entry.state != PageState::kInFlight) continue;
    PageState next = PageState::kEmpty;
    if (outcome == Outcome::kDone) {
      if (becomes_huge) {
        next = PageState::kPresentHuge;
      } else if (decision.grain != Grain::kHuge) {
        next = PageState::kPresentSmall;
      }
    } else if (entry.was_present) {
      next = entry.huge ? PageState::kPresentHuge : PageState::kPresentSmall;
    }
    mm.entries.erase(page);
    if (next != PageState::kEmpty) mm.entries[page] = {next, false, false};
  }
  if (outcome != Outcome::kDone || decision.grain != Grain::kHuge || becomes_huge) return;
  // The small fallback; remembered only if there is a node for it.
  const FilePage first = decision.fallback_first;
  if (decision.fallback_count.value() == 0 ||
      tables.reader().Lookup(mm.id, first).state != PageState::kPresentSmall) {
    return;
  }
  for (uint64_t i = 0; i < decision.fallback_count.value(); ++i) {
    mm.entries[first.value() + i] = {PageState::kPresentSmall, false, false};
  }
}

std::vector<bool> TableModel::UsedMms() const {
  std::vector<bool> used(mms.size());
  for (size_t i = 0; i < mms.size(); ++i) used[i] = mms[i].pins != 0;
  for (const ModelGuest& guest : guests) {
    for (const auto& [page, mapping] : guest.pages) used[mapping.mm] = true;
  }
  return used;
}

std::vector<MmId> TableModel::CollectUnused(const std::vector<bool>& had_user) {
  const std::vector<bool> used = UsedMms();
  std::vector<MmId> gone;
  for (size_t i = 0; i < had_user.size(); ++i) {
    if (!mms[i].alive || !had_user[i] || used[i]) continue;
    mms[i].alive = false;
    mms[i].entries.clear();
    gone.push_back(mms[i].id);
  }
  return gone;
}

std::vector<Region> TableModel::RegionsOf(const ModelGuest& guest) const {
  std::vector<Region> regions;
  const ModelMapping* last = nullptr;
  for (const auto& [page, mapping] : guest.pages) {
    if (last != nullptr && regions.back().end() == GuestAddr(page * kPageSize) &&
        Continues(*last, mapping)) {
      regions.back().length = regions.back().length + PageCount(1);
    } else {
      regions.push_back({.va = GuestAddr(page * kPageSize),
                         .length = PageCount(1),
                         .mm = mms[mapping.mm].id,
                         .file_page = FilePage(mapping.file_page),
                         .access = mapping.access,
                         .flags = mapping.flags});
    }
    last = &mapping;
  }
  return regions;
}

std::optional<std::string> TableModel::CompareMm(const HostTables& tables,
                                                 const ModelMm& mm) const {
  const MmInfo info = tables.Info(mm.id);
  if (!mm.alive) {
    if (info.id.valid()) return "a released mm is alive";
    return std::nullopt;
  }
  if (info.length.value() != mm.length || info.pins != mm.pins) return "length or pins of an mm";
  uint64_t small = 0;
  uint64_t huge = 0;
  for (uint64_t page = 0; page < mm.length; ++page) {
    const PageState found = tables.reader().Lookup(mm.id, FilePage(page)).state;
    const PageState wanted = mm.At(page).state;
    if (found != wanted) {
      return Text("page ", page, " of mm ", mm.id.slot, " is in state ", static_cast<int>(found),
                  " instead of ", static_cast<int>(wanted));
    }
    small += wanted == PageState::kPresentSmall;
    huge += wanted == PageState::kPresentHuge && page % kPagesPerBlock == 0;
  }
  if (info.small_pages.value() != small || info.huge_blocks != huge) return "counts of an mm";
  return std::nullopt;
}

std::optional<std::string> TableModel::Compare(const HostTables& tables) const {
  for (const ModelGuest& guest : guests) {
    if (!guest.alive) {
      if (tables.reader().Info(guest.id).has_value()) return "a removed guest is alive";
      continue;
    }
    std::vector<Region> found;
    tables.ForEachRegion(guest.id, [&](const Region& region) { found.push_back(region); });
    if (found != RegionsOf(guest)) return Text("regions of guest ", guest.id.slot, " differ");
  }
  for (const ModelMm& mm : mms) {
    if (auto difference = CompareMm(tables, mm)) return difference;
  }
  return std::nullopt;
}

}  // namespace hostmm
