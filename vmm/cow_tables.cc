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
class Difference {
 public:
  // `other` is nullptr for the live file.
  Difference(const SegmentView& view, const MmRecord& snapshot, const MmRecord* other)
      : view_(view),
        other_(other),
        end_(std::min(snapshot.length.Load(),
                      other == nullptr ? ~uint64_t{0} : other->length.Load())) {
    Walk(HostOffset(snapshot.top.Load()),
         other == nullptr ? kNullOffset : HostOffset(other->top.Load()),
         MmTraits::Load(snapshot).top_level, 0);
  }

  // `fn(first, count)` for each run.
  template <class Fn>
  void ForEachRun(Fn fn) const {
    for (const auto& [first, count] : runs_) fn(first, count);
  }
  void Add(uint64_t first, uint64_t count) {
    count = first >= end_ ? 0 : std::min(count, end_ - first);
    if (count == 0) return;
    if (!runs_.empty() && runs_.back().first + runs_.back().second == first) {
      runs_.back().second += count;
    } else {
      runs_.push_back({first, count});
    }
  }

 private:
  // `theirs`: the other's own table of the same place; null if it shares there.
  void Walk(HostOffset own, HostOffset theirs, int level, uint64_t first) {
    for (uint64_t i = 0; i < view_.geometry().EntriesAt(level); ++i) {
      const Pte entry = Pte::FromRaw(view_.entries(own)[i].Load());
      const Pte other =
          theirs == kNullOffset ? Pte() : Pte::FromRaw(view_.entries(theirs)[i].Load());
      // One table, or one frame, for both.
      if (entry == other) continue;
      const uint64_t page = first + (i << view_.geometry().SpanShift(level));
      if (entry.is_copied()) {
        Add(page, view_.geometry().SpanOf(level).value());
      } else if (IsOwnTable(view_, entry)) {
        Walk(entry.table(), IsOwnTable(view_, other) ? other.table() : kNullOffset, level - 1,
             page);
      }
    }
  }

  const SegmentView& view_;
  const MmRecord* other_;
  uint64_t end_;
  std::vector<std::pair<uint64_t, uint64_t>> runs_;
};

}  // namespace

const MmRecord* CowTables::FindSnapshot(MmId id) const {
  const MmRecord* record = segment().Find(id);
  const bool is_one = record != nullptr && IsSnapshot(*record) && hostmm::SourceOf(*record).valid();
  return is_one ? record : nullptr;
}

TableStatus CowTables::Take(MmId source, const CowPolicy& policy, MmId* snapshot) {
  const MmRecord* record = segment().Find(source);
  if (record == nullptr) return TableStatus::kNoSuchMm;
  if (IsSnapshot(*record) || IsServedByKernel(MmTraits::Load(*record).frames)) {
    return TableStatus::kBadRange;
  }
  const WriteSection section(segment());
  return MmDirectory(segment()).CreateSnapshot(source, policy.min_shared_tables, snapshot);
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

std::vector<CowTables::Run> CowTables::Changes(MmId earlier, MmId later) const {
  const MmRecord* to = segment().Find(later);
  if (to == nullptr) return {};
  const uint64_t length = to->length.Load();
  const MmRecord* from = FindSnapshot(earlier);
  const MmRecord* other = FindSnapshot(later);
  const bool in_order =
      from != nullptr && (other == nullptr ? hostmm::SourceOf(*from) == later
                                           : hostmm::SourceOf(*from) == hostmm::SourceOf(*other) &&
                                                 from->taken.Load() <= other->taken.Load());
  if (!in_order) return {{FilePage(0), PageCount(length)}};
  std::vector<Run> runs;
  Difference(segment(), *from, other).ForEachRun([&](uint64_t first, uint64_t count) {
    runs.push_back({FilePage(first), PageCount(count)});
  });
  const uint64_t had = from->length.Load();
  if (had >= length) return runs;
  // The file has grown.
  if (!runs.empty() && runs.back().first + runs.back().count == FilePage(had)) {
    runs.back().count = runs.back().count + PageCount(length - had);
  } else {
    runs.push_back({FilePage(had), PageCount(length - had)});
  }
  return runs;
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
