#include "vmm/snapshot_invariants.h"

#include <algorithm>
#include <sstream>
#include <utility>

#include "vmm/node_allocator.h"
#include "vmm/snapshot_list.h"
#include "vmm/snapshot_tables.h"

namespace hostmm {
namespace {

std::string Str(MmId id) {
  return "mm " + std::to_string(id.slot) + "." + std::to_string(id.generation);
}

bool IsSnapshot(const MmRecord& mm) { return MmTraits::Load(mm).frames == FrameKind::kSnapshot; }

}  // namespace

template <class... Parts>
void SnapshotChecker::Problem(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  hooks_.problem(text.str());
}

void SnapshotChecker::CheckList(MmId id, const MmRecord& file) {
  uint32_t count = 0;
  RecordIndex newer = kNullRecord;
  uint64_t before = file.taken.Load() + 1;
  RecordIndex index = file.snapshots.LoadLow();
  while (const MmRecord* snapshot = view_.mm(index)) {
    if (listed_[index]) return Problem(Str(id), ": snapshot ", index, " is listed twice (I14)");
    listed_[index] = true;
    ++count;
    if (snapshot->identity.LoadHigh() == 0 || !IsSnapshot(*snapshot) || SourceOf(*snapshot) != id) {
      Problem(Str(id), ": lists mm ", index, ", which is no snapshot of it (I14)");
    }
    if (snapshot->snapshots.LoadHigh() != newer) {
      Problem(Str(id), ": back link of snapshot ", index, " (I14)");
    }
    const uint64_t taken = snapshot->taken.Load();
    if (taken >= before) Problem(Str(id), ": snapshot ", index, " is not in time order (I14)");
    before = taken;
    newer = index;
    index = snapshot->snapshots.LoadLow();
  }
  if (file.snapshots.LoadHigh() != count) {
    Problem(Str(id), ": number of snapshots: ", file.snapshots.LoadHigh(), " instead of ", count,
            " (I14)");
  }
  if (file.regions_pins.LoadHigh() < count) {
    Problem(Str(id), ": is not pinned by each snapshot (I14)");
  }
}

bool SnapshotChecker::IsOf(const Snapshot& snapshot, const MmRecord& mm, const MmRecord* file) {
  if (file == nullptr || IsSnapshot(*file)) return false;
  const MmTraits theirs = MmTraits::Load(*file);
  return theirs.top_level == snapshot.traits.top_level &&
         theirs.frames == snapshot.traits.live_frames && mm.length.Load() <= file->length.Load();
}

void SnapshotChecker::CheckLeaf(const Snapshot& snapshot, Pte entry, int level, FilePage page) {
  if (entry.is_in_flight()) {
    return Problem(snapshot.name, ": page ", page.value(), " is in flight in a snapshot (I6)");
  }
  const int copied_level = snapshot.traits.live_frames == FrameKind::kHugetlb ? 1 : 0;
  const bool huge = level == 1 && view_.geometry().HasHugeLeaf();
  if (entry.is_huge() != huge || (level != 0 && !huge) ||
      (entry.is_copied() && level != copied_level)) {
    Problem(snapshot.name, ": leaf of page ", page.value(), " cannot be at level ", level);
  }
  if (entry.is_present() && entry.frame().value() != page.value()) {
    Problem(snapshot.name, ": page ", page.value(), " has frame ", entry.frame().value());
  }
  if (!entry.access().IsSubsetOf(snapshot.traits.access)) {
    Problem(snapshot.name, ": page ", page.value(), " allows more than its mm (I4)");
  }
}

// RETURNS: the pages that are copied by the entry and below it.
uint64_t SnapshotChecker::CheckEntry(const Snapshot& snapshot, Pte entry, Pte live, int level,
                                     FilePage page) {
  if (!entry.valid() || (entry.is_table() && level == 0)) {
    Problem(snapshot.name, ": entry of page ", page.value(), " at level ", level, " is damaged");
    return 0;
  }
  if (!entry.is_table()) {
    CheckLeaf(snapshot, entry, level, page);
    if (!entry.is_copied()) return 0;
    preimages_.push_back({snapshot.source, entry.frame(), page});
    return view_.geometry().SpanOf(level).value();
  }
  hooks_.name(entry.table());
  if (IsOwnTable(view_, entry)) {
    return WalkOwnTable(snapshot, entry.table(), live.is_table() ? live.table() : kNullOffset,
                        level - 1, page);
  }
  if (entry != live) {
    Problem(snapshot.name, ": page ", page.value(),
            " has a table that is neither a snapshot's nor the live file's (I14)");
  }
  return 0;
}

uint64_t SnapshotChecker::WalkOwnTable(const Snapshot& snapshot, HostOffset table, HostOffset live,
                                       int level, FilePage first) {
  if (const auto met = own_tables_.find(table.value()); met != own_tables_.end()) {
    const OwnTable& known = met->second;
    if (known.source != snapshot.source || known.level != level || known.first != first) {
      Problem(snapshot.name, ": table ", table.value(), " stands at two places (I14)");
    }
    return known.copied;
  }
  if (!hooks_.enter(table, level, snapshot.name)) return 0;
  const SharedWord* entries = view_.entries(table);
  const SharedWord* live_entries = view_.entries(live);
  uint64_t used = 0;
  uint64_t copied = 0;
  for (uint64_t i = 0; i < view_.geometry().EntriesAt(level); ++i) {
    const Pte entry = Pte::FromRaw(entries[i].Load());
    if (entry.is_empty()) continue;
    ++used;
    const Pte there = live_entries == nullptr ? Pte() : Pte::FromRaw(live_entries[i].Load());
    copied += CheckEntry(snapshot, entry, there, level,
                         first + PageCount(i << view_.geometry().SpanShift(level)));
  }
  const NodeFill fill = NodeFill::Load(*view_.node(view_.NodeAt(table)));
  if (fill.live != used || fill.in_flight != 0) {
    Problem(snapshot.name, ": live entries of table ", table.value(), ": ", fill.live,
            " instead of ", used);
  }
  own_tables_[table.value()] = {snapshot.source, level, first, copied};
  return copied;
}

void SnapshotChecker::CheckTables(MmId id, const MmRecord& mm) {
  const Snapshot snapshot{Str(id), SourceOf(mm), MmTraits::Load(mm)};
  const bool is_lost = !snapshot.source.valid();
  if (is_lost == listed_[id.slot]) {
    Problem(snapshot.name, ": a snapshot must be in the list of its source (I14)");
  }
  // Looked for once: beside a writer it may be gone the next time.
  const MmRecord* file = is_lost ? nullptr : view_.Find(snapshot.source);
  if (snapshot.traits.top_level >= view_.geometry().levels ||
      (!is_lost && !IsOf(snapshot, mm, file))) {
    return Problem(snapshot.name, ": is no snapshot of ", Str(snapshot.source), " (I14)");
  }
  const HostOffset top(mm.top.Load());
  hooks_.name(top);
  const HostOffset live = is_lost ? kNullOffset : HostOffset(file->top.Load());
  const uint64_t copied = WalkOwnTable(snapshot, top, live, snapshot.traits.top_level, FilePage(0));
  if (mm.pages_copied.Load() != copied) {
    Problem(snapshot.name, ": pages copied: ", mm.pages_copied.Load(), " instead of ", copied);
  }
  if (is_lost && copied != 0) Problem(snapshot.name, ": is lost and has pages (I14)");
  if ((mm.small_pages.Load() | mm.huge_blocks.Load() | mm.in_flight.Load()) != 0) {
    Problem(snapshot.name, ": has entries as a live file (I14)");
  }
}

void SnapshotChecker::CheckFrames() {
  std::sort(preimages_.begin(), preimages_.end());
  for (size_t i = 1; i < preimages_.size(); ++i) {
    const Preimage& before = preimages_[i - 1];
    const Preimage& after = preimages_[i];
    if (before.source != after.source || before.frame != after.frame || before.page == after.page) {
      continue;
    }
    Problem(Str(after.source), ": pages ", before.page.value(), " and ", after.page.value(),
            " have one pre-image frame (I5)");
  }
}

void SnapshotChecker::CheckOlderHas(const std::string& owner, const MmRecord& older,
                                    HostOffset table, int level, FilePage first) {
  const SharedWord* entries = view_.entries(table);
  // A damaged table; or one of another mm by now, beside a writer.
  if (entries == nullptr || level < 0 || level >= view_.geometry().levels) return;
  for (uint64_t i = 0; i < view_.geometry().EntriesAt(level); ++i) {
    const Pte entry = Pte::FromRaw(entries[i].Load());
    const FilePage page = first + PageCount(i << view_.geometry().SpanShift(level));
    if (IsOwnTable(view_, entry)) {
      CheckOlderHas(owner, older, entry.table(), level - 1, page);
    } else if (entry.is_copied() && SharesLivePage(view_, older, page)) {
      Problem(owner, ": page ", page.value(), " is copied, but not in an older snapshot (I14)");
    }
  }
}

void SnapshotChecker::CheckOrder(MmId id, const MmRecord& mm) {
  const MmRecord* older = OlderSnapshot(view_, mm);
  if (older == nullptr) return;
  CheckOlderHas(Str(id), *older, HostOffset(mm.top.Load()), MmTraits::Load(mm).top_level,
                FilePage(0));
}

}  // namespace hostmm
