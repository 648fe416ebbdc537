#include "vmm/fault_policy.h"

#include <algorithm>
#include <cassert>

#include "vmm/page_table.h"
#include "vmm/populate_flight.h"
#include "vmm/region_map.h"
#include "vmm/snapshot_list.h"
#include "vmm/snapshot_tables.h"

namespace hostmm {
namespace {

// Where a fault happened: all that Decide looks up before it decides.
struct FaultPlace {
  const FaultEvent& event;
  const Climate& climate;
  MmId mm;
  Region region;
  FilePage page;
  BlockIndex block;
};

void Count(const Segment& segment, FaultCause cause) {
  segment.header().stats[StatIndex(cause)].Add(1);
}
void Count(const Segment& segment, FaultCounter counter, uint64_t by = 1) {
  segment.header().stats[StatIndex(counter)].Add(by);
}

FaultDecision Deny(const FaultEvent& event, FaultCause cause) {
  return {.action = FaultAction::kDeny,
          .cause = cause,
          .guest = event.guest,
          .count = PageCount(1),
          .wake_start = PageFloor(event.addr),
          .wake_bytes = kPageSize};
}

// Pages [begin, end) of the place's file, for a decision that concerns the place.
struct PageRange {
  FilePage begin;
  FilePage end;
};

PageRange BlockRange(const FaultPlace& place) {
  return {FirstPageOf(place.block), EndPageOf(place.block)};
}

// The pages of the window around the fault that the region maps and the file has.
PageRange WindowAround(const FaultPlace& place, PageCount window, PageCount file_length) {
  const uint64_t size = std::clamp<uint64_t>(window.value(), 1, kPagesPerBlock);
  const FilePage begin(place.page.value() / size * size);
  return {std::max({begin, FirstPageOf(place.block), place.region.file_page}),
          std::min({begin + PageCount(size), EndPageOf(place.block), place.region.file_end(),
                    FilePage(0) + file_length})};
}

FaultDecision Answer(const FaultPlace& place, FaultAction action, FaultCause cause, Grain grain,
                     PageRange range) {
  // Only the pages that the region maps can have sleepers of this guest.
  const FilePage wake_begin = std::max(range.begin, place.region.file_page);
  const FilePage wake_end = std::min(range.end, place.region.file_end());
  return {.action = action,
          .cause = cause,
          .grain = grain,
          .guest = place.event.guest,
          .mm = place.mm,
          .block = place.block,
          .first = range.begin,
          .count = range.end - range.begin,
          .wake_start = place.region.AddrOf(wake_begin),
          .wake_bytes = BytesOf(wake_end - wake_begin)};
}

PageRange OnlyThePage(const FaultPlace& place) { return {place.page, place.page + PageCount(1)}; }

FaultDecision Join(const FaultPlace& place) {
  return Answer(place, FaultAction::kJoin, FaultCause::kInFlight, Grain::kSmall,
                OnlyThePage(place));
}

// No table node is left: populate what the fault needs and remember nothing.
FaultDecision Untracked(const FaultPlace& place, const PageTable& table) {
  if (table.traits().frames == FrameKind::kHugetlb) {
    return Answer(place, FaultAction::kPopulate, FaultCause::kUntracked, Grain::kHuge,
                  BlockRange(place));
  }
  return Answer(place, FaultAction::kPopulate, FaultCause::kUntracked, Grain::kSmall,
                OnlyThePage(place));
}

HugeHint HintOf(const Region& region) {
  if ((region.flags & kHintHuge) != 0) return HugeHint::kHuge;
  return (region.flags & kHintSmall) != 0 ? HugeHint::kSmall : HugeHint::kNone;
}

// A neighbour counts as huge also while its populate or its collapse is in flight: its frames are
// there before we are told, and with many guests in step the next block is touched in between. A
// chain that broke there would go on in small pages. The probe of its content decides, so that this
// grants nothing to a sparse toucher.
HugeNeighbour NeighbourOf(const PageTable& table, BlockIndex block) {
  const auto is_huge = [&](BlockIndex at) {
    const Pte entry = table.FindBlock(at).entry;
    if (entry.is_table()) return table.FillOf(entry.table()).live == kPagesPerBlock;
    return entry.is_leaf() && entry.is_huge();
  };
  if (block.value() != 0 && is_huge(BlockIndex(block.value() - 1))) return HugeNeighbour::kBefore;
  const BlockIndex behind(block.value() + 1);
  if (FirstPageOf(behind) - FilePage(0) < table.length() && is_huge(behind)) {
    return HugeNeighbour::kBehind;
  }
  return HugeNeighbour::kNone;
}

DensityInput Describe(const Segment& segment, const FaultPlace& place, const PageTable& table,
                      Pte block_entry) {
  DensityInput input{
      .frames = table.traits().frames,
      .hint = HintOf(place.region),
      .tracking = (place.region.flags & kTracked) != 0 ? Tracking::kOn : Tracking::kOff,
      .memory = place.climate.memory,
      .place = table.IsTail(place.block) ? BlockPlace::kTail : BlockPlace::kInner,
      .huge_leaves =
          segment.geometry().HasHugeLeaf() ? HugeLeaves::kPossible : HugeLeaves::kImpossible,
      .tracked_around = place.climate.tracked_around};
  if (block_entry.is_table()) {
    const HostOffset small = block_entry.table();
    const NodeFill fill = table.FillOf(small);
    const uint64_t index = IndexInBlock(place.page);
    input.fill = BlockFill::kSmall;
    input.touches = fill.touches;
    input.present = PageCount(fill.live - fill.in_flight);
    const bool follows = index != 0 && table.EntryAt(small, index - 1).is_present();
    input.order = follows ? Order::kSequential : Order::kScattered;
  } else if (input.frames == FrameKind::kHuge) {
    input.neighbour = NeighbourOf(table, place.block);
  }
  return input;
}

FaultDecision PopulateSmall(const FaultPlace& place, PageTable& table,
                            const DensityChoice& choice) {
  const HostOffset small = table.MakeSmallTable(place.block);
  if (small == kNullOffset) return Untracked(place, table);
  PopulateFlight flight(&table, place.block);
  PageRange range = WindowAround(place, choice.window, table.length());
  const IndexRange clear =
      flight.ClearAround(small, IndexInBlock(place.page),
                         {IndexInBlock(range.begin), IndexInBlock(range.end - PageCount(1)) + 1});
  table.CountTouch(small);
  if (choice.on_full == OnFull::kCollapse && flight.ClosesLastHole(small, clear)) {
    flight.TakeOffWholeBlock(small);
    return Answer(place, FaultAction::kPopulate, FaultCause::kFilled, Grain::kCollapse,
                  BlockRange(place));
  }
  flight.TakeOffHoles(small, clear);
  range = {FirstPageOf(place.block) + PageCount(clear.begin),
           FirstPageOf(place.block) + PageCount(clear.end)};
  return Answer(place, FaultAction::kPopulate, choice.cause, Grain::kSmall, range);
}

FaultDecision PopulateCollapse(const FaultPlace& place, PageTable& table,
                               const DensityChoice& choice) {
  const HostOffset small = table.MakeSmallTable(place.block);
  if (small == kNullOffset) return Untracked(place, table);
  if (table.FillOf(small).in_flight != 0) {
    // Another fault is filling a part: go on in small steps, the next fault may collapse.
    return PopulateSmall(place, table, {.cause = FaultCause::kFillAround, .window = kFirstWindow});
  }
  table.CountTouch(small);
  PopulateFlight(&table, place.block).TakeOffWholeBlock(small);
  return Answer(place, FaultAction::kPopulate, choice.cause, Grain::kCollapse, BlockRange(place));
}

void SetFallback(const FaultPlace& place, const PageTable& table, PageCount window,
                 FaultDecision* decision) {
  decision->fallback_first = place.page;
  if (window.value() == 0) return;
  const PageRange range = WindowAround(place, window, table.length());
  decision->fallback_first = range.begin;
  decision->fallback_count = range.end - range.begin;
}

FaultDecision PopulateHuge(const FaultPlace& place, PageTable& table, const DensityChoice& choice,
                           HugeNeighbour neighbour) {
  const PteSlot slot = table.MakeBlock(place.block);
  if (!slot.exists()) return Untracked(place, table);
  assert(slot.entry.is_empty());
  table.Replace(slot.table, slot.index,
                table.LeafInFlight(LeafSize::kHuge, FirstPageOf(place.block)));
  FaultDecision decision =
      Answer(place, FaultAction::kPopulate, choice.cause, Grain::kHuge, BlockRange(place));
  decision.probe = choice.probe;
  decision.neighbour = BlockIndex(neighbour == HugeNeighbour::kBefore ? place.block.value() - 1
                                                                      : place.block.value() + 1);
  SetFallback(place, table, choice.window, &decision);
  return decision;
}

// The table says huge, the kernel says hole: somebody punched behind us.
FaultDecision RefillHuge(const FaultPlace& place, PageTable& table, const PteSlot& slot) {
  table.Replace(slot.table, slot.index, slot.entry.TakeOffFromPresent());
  FaultDecision decision =
      Answer(place, FaultAction::kPopulate, FaultCause::kRefill, Grain::kHuge, BlockRange(place));
  const bool has_fallback = table.traits().frames != FrameKind::kHugetlb;
  SetFallback(place, table, has_fallback ? kFirstWindow : PageCount(0), &decision);
  return decision;
}

FaultDecision RefillSmall(const FaultPlace& place, PageTable& table, const PteSlot& page) {
  table.Replace(page.table, page.index, page.entry.TakeOffFromPresent());
  return Answer(place, FaultAction::kPopulate, FaultCause::kRefill, Grain::kSmall,
                OnlyThePage(place));
}

FaultDecision DecideMissing(const Segment& segment, const FaultPlace& place, PageTable& table) {
  const PteSlot block = table.FindBlock(place.block);
  if (block.entry.is_in_flight()) return Join(place);
  if (block.entry.is_present()) return RefillHuge(place, table, block);
  if (block.entry.is_table()) {
    const PteSlot page = table.FindPage(place.page);
    if (page.entry.is_in_flight()) return Join(place);
    if (page.entry.is_present()) return RefillSmall(place, table, page);
  }
  const DensityInput input = Describe(segment, place, table, block.entry);
  const DensityChoice choice = ChooseGrain(input);
  FaultDecision decision;
  switch (choice.grain) {
    case Grain::kSmall:
      decision = PopulateSmall(place, table, choice);
      break;
    case Grain::kHuge:
      decision = PopulateHuge(place, table, choice, input.neighbour);
      break;
    case Grain::kCollapse:
      decision = PopulateCollapse(place, table, choice);
      break;
  }
  // The kernel checked the access before it asked us, so that one of us is behind. To populate
  // gives nobody a right; to wake only would loop if it is the table that is behind.
  if (decision.cause != FaultCause::kUntracked &&
      !place.region.KernelAccess().Contains(place.event.access)) {
    decision.cause = FaultCause::kStaleAccess;
  }
  return decision;
}

// A minor fault on an entry that we hold to be empty. It exists in the file, or the kernel would
// not call it minor. Not to know it for want of a node is no reason not to answer.
FaultDecision LearnPresent(const FaultPlace& place, PageTable& table) {
  const HostOffset small = table.MakeSmallTable(place.block);
  if (small != kNullOffset) {
    table.Replace(small, IndexInBlock(place.page), table.Leaf(LeafSize::kSmall, place.page));
  }
  return Answer(place, FaultAction::kContinue, FaultCause::kUnknownPresent, Grain::kSmall,
                OnlyThePage(place));
}

// hugetlb frames are continued, and known, as whole blocks only.
FaultDecision DecideMinorHugetlb(const FaultPlace& place, PageTable& table) {
  const PteSlot block = table.MakeBlock(place.block);
  const bool known = block.exists() && block.entry.is_present();
  if (block.exists() && !known) {
    table.Replace(block.table, block.index, table.Leaf(LeafSize::kHuge, FirstPageOf(place.block)));
  }
  return Answer(place, FaultAction::kContinue,
                known ? FaultCause::kPresent : FaultCause::kUnknownPresent, Grain::kHuge,
                BlockRange(place));
}

FaultDecision DecideMinor(const FaultPlace& place, PageTable& table) {
  const PteSlot block = table.FindBlock(place.block);
  if (block.entry.is_in_flight()) return Join(place);
  if (table.traits().frames == FrameKind::kHugetlb) return DecideMinorHugetlb(place, table);
  const PageRange range = WindowAround(place, place.climate.tracked_around, table.length());
  if (block.entry.is_present()) {
    return Answer(place, FaultAction::kContinue, FaultCause::kPresent, Grain::kSmall, range);
  }
  const PteSlot page = table.FindPage(place.page);
  if (page.entry.is_in_flight()) return Join(place);
  if (!page.entry.is_present()) return LearnPresent(place, table);
  const auto is_present = [&](FilePage at) {
    return table.EntryAt(page.table, IndexInBlock(at)).is_present();
  };
  FilePage begin = place.page;
  while (begin > range.begin && is_present(begin - PageCount(1))) begin = begin - PageCount(1);
  FilePage end = place.page + PageCount(1);
  while (end < range.end && is_present(end)) end = end + PageCount(1);
  return Answer(place, FaultAction::kContinue, FaultCause::kPresent, Grain::kSmall, {begin, end});
}

FaultDecision DecideWriteProtect(const FaultPlace& place) {
  if (!place.region.KernelAccess().Contains(Access::kWrite)) {
    return Deny(place.event, FaultCause::kForbidden);
  }
  return Answer(place, FaultAction::kWake, FaultCause::kWriteProtected, Grain::kSmall,
                OnlyThePage(place));
}

// What may be answered in one go: one page, or the block of a file that has nothing smaller.
FaultDecision AnswerUnit(const FaultPlace& place, FrameKind frames, FaultAction action,
                         FaultCause cause) {
  const bool huge = frames == FrameKind::kHugetlb;
  return Answer(place, action, cause, huge ? Grain::kHuge : Grain::kSmall,
                huge ? BlockRange(place) : OnlyThePage(place));
}

// The file has snapshots: the kernel maps it write-protected where they share pages. What the
// region allows is not asked. To privatize gives nobody a right, and the kernel looks again
// afterwards; while to deny would end the watch over what the region may be allowed a moment later.
FaultDecision DecideMinorFrozen(const FaultPlace& place, PageTable& table, bool shared) {
  FaultDecision decision = DecideMinor(place, table);
  if (decision.action != FaultAction::kContinue) return decision;  // in flight
  const FrameKind frames = table.traits().frames;
  if (!shared) {
    return AnswerUnit(place, frames, FaultAction::kContinue, FaultCause::kPrivatized);
  }
  // A write to a private mapping never reaches the file: the kernel copies the page first.
  const bool writes_to_file =
      place.event.access == Access::kWrite && (place.region.flags & kPrivate) == 0;
  if (writes_to_file) {
    return AnswerUnit(place, frames, FaultAction::kPrivatize, FaultCause::kFirstWrite);
  }
  decision.write_protect = true;
  return decision;
}

FaultDecision DecideWriteProtectFrozen(const FaultPlace& place, FrameKind frames, bool shared) {
  if ((place.region.flags & kPrivate) != 0) {
    return AnswerUnit(place, frames, FaultAction::kUnprotect, FaultCause::kWriteProtected);
  }
  return shared ? AnswerUnit(place, frames, FaultAction::kPrivatize, FaultCause::kFirstWrite)
                : AnswerUnit(place, frames, FaultAction::kUnprotect, FaultCause::kPrivatized);
}

FaultDecision DecideView(const FaultPlace& place, const MmRecord& snapshot) {
  if (!SourceOf(snapshot).valid()) return Deny(place.event, FaultCause::kLostSnapshot);
  return AnswerUnit(place, MmTraits::Load(snapshot).live_frames, FaultAction::kView,
                    FaultCause::kViewTouch);
}

FaultDecision DecideUncounted(const Segment& segment, const FaultEvent& event,
                              const Climate& climate) {
  const GuestRecord* guest = segment.Find(event.guest);
  if (guest == nullptr) return Deny(event, FaultCause::kNoSuchGuest);
  const RegionRecord* record = segment.region(FindRegionRecord(segment, *guest, event.addr));
  if (record == nullptr) return Deny(event, FaultCause::kNoRegion);
  const Region region = LoadRegion(*record);
  MmRecord* mm = segment.Find(region.mm);
  assert(mm != nullptr);
  PageTable table(segment, mm);
  if (IsServedByKernel(table.traits().frames)) return Deny(event, FaultCause::kAdoptedFile);
  const FilePage page = region.PageAt(event.addr);
  if (page - FilePage(0) >= table.length()) return Deny(event, FaultCause::kBeyondFile);
  const FaultPlace place{event, climate, region.mm, region, page, BlockFloor(page)};
  const FrameKind frames = table.traits().frames;
  if (frames == FrameKind::kSnapshot) return DecideView(place, *mm);
  const bool frozen = NewestSnapshotOf(segment, *mm) != nullptr;
  const bool shared = frozen && IsLivePageShared(segment, *mm, page);
  switch (event.kind) {
    case FaultKind::kMinor:
      return frozen ? DecideMinorFrozen(place, table, shared) : DecideMinor(place, table);
    case FaultKind::kWriteProtect:
      return frozen ? DecideWriteProtectFrozen(place, frames, shared) : DecideWriteProtect(place);
    case FaultKind::kMissing:
      break;
  }
  return DecideMissing(segment, place, table);
}

bool MarksEntries(const FaultDecision& decision) {
  return decision.action == FaultAction::kPopulate && decision.cause != FaultCause::kUntracked;
}

FaultCounter CounterOf(Outcome outcome) {
  switch (outcome) {
    case Outcome::kDone:
      return FaultCounter::kDone;
    case Outcome::kOutOfFrames:
      return FaultCounter::kOutOfFrames;
    case Outcome::kGuestGone:
      return FaultCounter::kGuestGone;
    case Outcome::kFailed:
      break;
  }
  return FaultCounter::kFailed;
}

void CommitSmall(const Segment& segment, PageTable& table, const FaultDecision& decision,
                 Outcome outcome) {
  PopulateFlight flight(&table, decision.block);
  const uint64_t begin = IndexInBlock(decision.first);
  const IndexRange range{begin, begin + decision.count.value()};
  if (outcome == Outcome::kDone) {
    Count(segment, FaultCounter::kSmallMade, flight.Land(range));
  } else {
    flight.Abandon(range);
    table.FreeIfEmpty(decision.block);
  }
}

void CommitHuge(const Segment& segment, PageTable& table, const FaultDecision& decision,
                Outcome outcome, Grain actual) {
  const PteSlot slot = table.FindBlock(decision.block);
  assert(slot.exists() && slot.entry.is_in_flight());
  if (outcome != Outcome::kDone) {
    table.Replace(slot.table, slot.index, slot.entry.AbandonFromInFlight());
    return table.FreeIfEmpty(decision.block);
  }
  if (actual != Grain::kSmall) {
    table.Replace(slot.table, slot.index, slot.entry.LandFromInFlight());
    return Count(segment, FaultCounter::kHugeMade);
  }
  Count(segment, FaultCounter::kHugeFallbacks);
  table.Replace(slot.table, slot.index, Pte());
  const HostOffset small =
      decision.fallback_count.value() == 0 ? kNullOffset : table.MakeSmallTable(decision.block);
  if (small == kNullOffset) return table.FreeIfEmpty(decision.block);
  table.CountTouch(small);
  for (uint64_t i = 0; i < decision.fallback_count.value(); ++i) {
    const FilePage page = decision.fallback_first + PageCount(i);
    table.Replace(small, IndexInBlock(page), table.Leaf(LeafSize::kSmall, page));
  }
  Count(segment, FaultCounter::kSmallMade, decision.fallback_count.value());
}

void CommitCollapse(const Segment& segment, PageTable& table, const FaultDecision& decision,
                    Outcome outcome, Grain actual) {
  PopulateFlight flight(&table, decision.block);
  constexpr IndexRange kWhole{0, kPagesPerBlock};
  if (outcome != Outcome::kDone) {
    flight.Abandon(kWhole);
    return table.FreeIfEmpty(decision.block);
  }
  if (actual == Grain::kSmall) {
    Count(segment, FaultCounter::kSmallMade, flight.Land(kWhole));
    return Count(segment, FaultCounter::kCollapseFailures);
  }
  table.MergeIntoHuge(decision.block, table.Leaf(LeafSize::kHuge, FirstPageOf(decision.block)));
  Count(segment, FaultCounter::kCollapses);
}

}  // namespace

FaultDecision Decide(HostTables& tables, const FaultEvent& event, const Climate& climate) {
  const Segment& segment = tables.segment();
  const WriteSection section(segment);
  const FaultDecision decision = DecideUncounted(segment, event, climate);
  Count(segment, FaultCounter::kEvents);
  Count(segment, decision.cause);
  if (MarksEntries(decision)) segment.header().outstanding_faults.Add(1);
  return decision;
}

void Commit(HostTables& tables, const FaultDecision& decision, Outcome outcome, Grain actual) {
  if (decision.action != FaultAction::kPopulate && decision.action != FaultAction::kContinue) {
    return;
  }
  const Segment& segment = tables.segment();
  const WriteSection section(segment);
  Count(segment, CounterOf(outcome));
  if (!MarksEntries(decision)) return;
  segment.header().outstanding_faults.Subtract(1);
  MmRecord* mm = segment.Find(decision.mm);
  if (mm == nullptr) return Count(segment, FaultCounter::kStaleCommits);
  PageTable table(segment, mm);
  switch (decision.grain) {
    case Grain::kSmall:
      return CommitSmall(segment, table, decision, outcome);
    case Grain::kHuge:
      return CommitHuge(segment, table, decision, outcome, actual);
    case Grain::kCollapse:
      return CommitCollapse(segment, table, decision, outcome, actual);
  }
}

}  // namespace hostmm
