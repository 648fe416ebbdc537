#include "vmm/cow_tables.h"

#include <algorithm>
#include <cassert>

#include "vmm/host_mm.h"
#include "vmm/mm_directory.h"
#include "vmm/record_pool.h"
#include "vmm/snapshot_list.h"
#include "vmm/snapshot_tables.h"

namespace hostmm {
namespace {

bool IsSnapshot(const MmRecord& record) {
  return MmTraits::Load(record).frames == FrameKind::kSnapshot;
}

// The record of a mm that can have snapshots; nullptr otherwise.
MmRecord* FindFile(const Segment& segment, MmId id) {
  MmRecord* record = segment.Find(id);
  return record == nullptr || IsSnapshot(*record) ? nullptr : record;
}

// Number of snapshots that share the page. They are the newest ones.
size_t CountSharing(const Segment& segment, const MmRecord& source, FilePage page) {
  size_t count = 0;
  for (const MmRecord* snapshot = NewestSnapshotOf(segment, source);
       snapshot != nullptr && SharesLivePage(segment, *snapshot, page);
       snapshot = OlderSnapshot(segment, *snapshot)) {
    ++count;
  }
  return count;
}

// What one snapshot has for itself and another has not, or has otherwise: a walk down both.
//
// Two snapshots have one table of a place, or something below differs: a page that was written when
// only the earlier one was there. But for few: those that were copied at once (CowPolicy), and the
// last one of a file that has grown. So a walk finds something in the first place where it goes
// down, or, if that lies before `from`, in the next.
class Difference {
 public:
  // `other` is nullptr for the live file.
  Difference(const SegmentView& view, const MmRecord& snapshot, const MmRecord* other)
      : view_(view), snapshot_(snapshot), other_(other) {}

  // The first of it at or after `from`.
  std::optional<CowTables::Run> Next(FilePage from) const {
    const HostOffset theirs = other_ == nullptr ? kNullOffset : HostOffset(other_->top.Load());
    std::optional<CowTables::Run> run =
        Walk(HostOffset(snapshot_.top.Load()), theirs, MmTraits::Load(snapshot_).top_level,
             FilePage(0), from);
    const FilePage end = FilePage(std::min(
        snapshot_.length.Load(), other_ == nullptr ? ~uint64_t{0} : other_->length.Load()));
    if (!run.has_value() || run->first >= end) return std::nullopt;
    run->count = std::min(run->count, end - run->first);
    return run;
  }

 private:
  // `theirs`: the other's own table of the same place; null if it shares there. `first`: the page
  // where they begin.
  std::optional<CowTables::Run> Walk(HostOffset own, HostOffset theirs, int level, FilePage first,
                                     FilePage from) const {
    const int shift = view_.geometry().SpanShift(level);
    std::optional<CowTables::Run> run;
    const uint64_t skipped = from > first ? (from - first).value() >> shift : 0;
    for (uint64_t i = skipped; i < view_.geometry().EntriesAt(level); ++i) {
      const Pte entry = Pte::FromRaw(view_.entries(own)[i].Load());
      const Pte other =
          theirs == kNullOffset ? Pte() : Pte::FromRaw(view_.entries(theirs)[i].Load());
      const FilePage page = first + PageCount(i << shift);
      // Equal: one table, or one frame, for both.
      const bool copied = entry.is_copied() && entry != other;
      if (!copied && run.has_value()) return run;
      if (copied) {
        const FilePage start = run.has_value() ? run->first : std::max(page, from);
        run = {start, page + view_.geometry().SpanOf(level) - start};
      } else if (entry != other && IsOwnTable(view_, entry)) {
        const HostOffset below = IsOwnTable(view_, other) ? other.table() : kNullOffset;
        if (const auto found = Walk(entry.table(), below, level - 1, page, from)) return found;
      }
    }
    return run;
  }

  const SegmentView& view_;
  const MmRecord& snapshot_;
  const MmRecord* other_;
};

}  // namespace

const MmRecord* CowTables::FindSnapshot(MmId id) const {
  const MmRecord* record = segment().Find(id);
  const bool is_one = record != nullptr && IsSnapshot(*record) && hostmm::SourceOf(*record).valid();
  return is_one ? record : nullptr;
}

TableStatus CowTables::Take(MmId source, const CowPolicy& policy, MmId* snapshot,
                            std::optional<uint32_t> owner_uid) {
  const MmRecord* record = segment().Find(source);
  if (record == nullptr) return TableStatus::kNoSuchMm;
  if (IsSnapshot(*record) || IsServedByKernel(MmTraits::Load(*record).frames)) {
    return TableStatus::kBadRange;
  }
  const WriteSection section(segment());
  const uint32_t owner = owner_uid.value_or(MmTraits::Load(*record).owner_uid);
  return MmDirectory(segment()).CreateSnapshot(source, policy.min_shared_tables, owner, snapshot);
}

std::vector<MmId> CowTables::SnapshotsOf(MmId source) const {
  std::vector<MmId> ids;
  const MmRecord* record = FindFile(segment(), source);
  if (record == nullptr) return ids;
  ForEachSnapshotOf(segment(), *record, [&](MmId id, const MmRecord&) { ids.push_back(id); });
  return ids;
}

MmId CowTables::SourceOf(MmId snapshot) const {
  const MmRecord* record = FindSnapshot(snapshot);
  return record == nullptr ? MmId() : hostmm::SourceOf(*record);
}

bool CowTables::IsShared(MmId source, FilePage page) const {
  const MmRecord* record = FindFile(segment(), source);
  return record != nullptr && IsLivePageShared(segment(), *record, page);
}

std::vector<MmId> CowTables::Sharing(MmId source, FilePage page) const {
  const MmRecord* record = FindFile(segment(), source);
  std::vector<MmId> ids = SnapshotsOf(source);
  ids.resize(record == nullptr ? 0 : CountSharing(segment(), *record, page));
  return ids;
}

TableStatus CowTables::Privatize(MmId source, FilePage first, PageCount count, FrameNumber frame,
                                 uint32_t* uses) {
  MmRecord* record = FindFile(segment(), source);
  if (record == nullptr) return TableStatus::kNoSuchMm;
  const bool one_block = FitsInFile(first, count) && count.value() <= kPagesPerBlock &&
                         BlockFloor(first) == BlockFloor(first + count - PageCount(1));
  const bool huge = MmTraits::Load(*record).frames == FrameKind::kHugetlb;
  if (!one_block || (huge && count.value() != kPagesPerBlock)) return TableStatus::kBadRange;
  const size_t sharing = CountSharing(segment(), *record, first);
  for (uint64_t i = 1; !huge && i < count.value(); ++i) {
    if (CountSharing(segment(), *record, first + PageCount(i)) != sharing) {
      return TableStatus::kBadRange;
    }
  }
  *uses = 0;
  if (sharing == 0) return TableStatus::kOk;
  SnapshotTables tables(segment(), record);
  const uint32_t nodes = tables.TablesToPrivatize(first);
  if (NodePool(segment()).available() < nodes) return TableStatus::kNoSpace;
  const WriteSection section(segment());
  *uses = tables.Privatize({first, count}, frame);
  SharedWord* stats = segment().header().stats;
  stats[StatIndex(FaultCounter::kTablesCopiedLater)].Add(nodes);
  stats[StatIndex(FaultCounter::kPagesCopied)].Add(count.value());
  return TableStatus::kOk;
}

CowTables::Page CowTables::Find(MmId snapshot, FilePage page) const {
  const MmRecord* record = FindSnapshot(snapshot);
  assert(record != nullptr);
  const Pte copied = FindCopied(segment(), *record, page);
  if (copied.is_copied()) return {Page::From::kPreimage, copied.frame()};
  return {Page::From::kLive, FrameNumber(page.value())};
}

std::optional<CowTables::Run> CowTables::NextChange(MmId earlier, MmId later, FilePage from) const {
  const MmRecord* to = segment().Find(later);
  if (to == nullptr) return std::nullopt;
  const MmRecord* had = FindSnapshot(earlier);
  const MmRecord* other = FindSnapshot(later);
  const bool in_order =
      had != nullptr && (other == nullptr ? hostmm::SourceOf(*had) == later
                                          : hostmm::SourceOf(*had) == hostmm::SourceOf(*other) &&
                                                had->taken.Load() <= other->taken.Load());
  if (in_order) {
    if (const auto run = Difference(segment(), *had, other).Next(from)) return run;
    // The file has grown.
    from = std::max(from, FilePage(had->length.Load()));
  }
  const FilePage end(to->length.Load());
  return from < end ? std::optional<Run>({from, end - from}) : std::nullopt;
}

void CowTables::Lose(MmId snapshot, ReleasedMms* released) {
  if (FindSnapshot(snapshot) == nullptr) return;
  Released gone;
  {
    const WriteSection section(segment());
    MmDirectory(segment()).EndSnapshot(snapshot, &gone);
    segment().header().stats[StatIndex(FaultCounter::kSnapshotsLost)].Add(1);
  }
  released->insert(released->end(), gone.mms.begin(), gone.mms.end());
  tables_.Report(gone.frames);
}

}  // namespace hostmm
