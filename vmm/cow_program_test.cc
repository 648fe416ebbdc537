// Random programs of writes, snapshots and everything that moves tables under them, against a plain
// model: a vector of versions per moment. The test plays the runtime: it keeps pre-images in a map,
// and does what Decide says.

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/frame_pool.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

enum class Kind : uint8_t {
  kTake,
  kDrop,
  kLose,
  kWrite,
  kWriteRange,
  kFault,
  kCommit,
  kPunch,
  kCollapse,
  kGrow,
  kView,
  kUnmapView,
};
constexpr const char* kNames[] = {"kTake",       "kDrop",  "kLose",   "kWrite",
                                  "kWriteRange", "kFault", "kCommit", "kPunch",
                                  "kCollapse",   "kGrow",  "kView",   "kUnmapView"};

struct Op {
  Kind kind;
  uint32_t a = 0;
  uint32_t b = 0;
};
using Program = std::vector<Op>;

struct Setting {
  Geometry geometry;
  FrameKind frames;
  uint64_t blocks;
  uint32_t max_nodes;
};

constexpr uint64_t kBase = uint64_t{1} << 34;
constexpr uint64_t kViews = uint64_t{1} << 36;
constexpr size_t kMaxSnapshots = 6;

class World {
 public:
  explicit World(const Setting& setting)
      : setting_(setting),
        segment_({.max_guests = 2,
                  .max_mms = 16,
                  .max_regions = 64,
                  .max_nodes = setting.max_nodes,
                  .geometry = setting.geometry}),
        tables_(segment_.tables),
        cow_(&tables_),
        live_(setting.blocks * kPagesPerBlock - 3) {
    guest_ = segment_.AddGuest();
    // The last block is a tail.
    file_ = segment_.AddMm(PageCount(live_.size()), setting.frames);
    tables_.PinMm(file_);
    tables_.MapRegion(guest_, {.va = GuestAddr(kBase),
                               .length = PageCount(setting.blocks * 2 * kPagesPerBlock),
                               .mm = file_,
                               .file_page = FilePage(0),
                               .access = AccessSet::ReadWrite()});
    tables_.SetFrameSink([this](MmId, FrameNumber first, PageCount count) {
      for (uint64_t i = 0; i < count.value(); ++i) {
        const FrameNumber frame(first.value() + i);
        if (!pool_.Drop(frame)) continue;
        store_.erase(frame.value());
        pool_.Recycle(frame, 1);
      }
    });
  }

  // What went wrong, if anything.
  std::optional<std::string> Step(const Op& op) {
    complaint_.reset();
    Do(op);
    if (!complaint_.has_value()) Check();
    return complaint_;
  }

  // Drops everything. Nothing may be left.
  std::optional<std::string> Finish() {
    CheckEveryPage();
    while (!snapshots_.empty()) DropSnapshot(snapshots_.size() / 2);
    for (const FaultDecision& decision : running_) {
      Commit(tables_, decision, Outcome::kFailed, decision.grain);
    }
    if (pool_.used() != 0 || !store_.empty()) Complain("frames are left");
    ReleasedMms released;
    tables_.RemoveGuest(guest_, &released);
    tables_.UnpinMm(file_, &released);
    if (segment_.reader().Pools().nodes != 0) Complain("tables are left");
    return complaint_;
  }

  uint64_t no_space() const { return no_space_; }

 private:
  struct Snapshot {
    MmId id;
    std::vector<uint64_t> seen;
    bool lost = false;
    std::vector<uint64_t> views;  // addresses
  };

  void Complain(const std::string& text) {
    if (!complaint_.has_value()) complaint_ = text;
  }
  bool huge() const { return setting_.frames == FrameKind::kHugetlb; }
  // Few places, so that they are met again: the corners of blocks.
  uint64_t PageOf(uint32_t number) const {
    constexpr uint64_t kCorners[] = {0, 1, 300, kPagesPerBlock - 1};
    const uint64_t blocks = (live_.size() + kPagesPerBlock - 1) / kPagesPerBlock;
    const uint64_t page = number / 4 % blocks * kPagesPerBlock + kCorners[number % 4];
    return std::min<uint64_t>(page, live_.size() - 1);
  }
  uint64_t UnitStart(uint64_t page) const { return huge() ? page & ~(kPagesPerBlock - 1) : page; }

  static bool Shares(const Snapshot& snapshot, const std::vector<uint64_t>& live, uint64_t page) {
    return !snapshot.lost && page < snapshot.seen.size() && snapshot.seen[page] == live[page];
  }
  bool AnyShares(uint64_t page) const {
    return std::any_of(snapshots_.begin(), snapshots_.end(),
                       [&](const Snapshot& s) { return Shares(s, live_, UnitStart(page)); });
  }

  // What a pager does on a first write, and the write. RETURNS: whether it could.
  bool Write(uint64_t page, uint64_t count) {
    const uint64_t first = UnitStart(page);
    if (huge()) count = kPagesPerBlock;
    const uint64_t end = std::min<uint64_t>(first + count, live_.size());
    if (AnyShares(page)) {
      const FrameNumber frame = *pool_.Allocate(count);
      uint32_t uses = 0;
      const TableStatus status =
          cow_.Privatize(file_, FilePage(first), PageCount(count), frame, &uses);
      if (status == TableStatus::kOk && uses == 0) Complain("a shared page needed no frame");
      if (status == TableStatus::kOk) {
        for (uint64_t i = first; i < end; ++i) store_[frame.value() + i - first] = live_[i];
      }
      pool_.SetUses(frame, count, uses);
      if (uses == 0) pool_.Recycle(frame, count);
      if (status == TableStatus::kNoSpace) ++no_space_;
      if (status != TableStatus::kOk) return false;
    }
    for (uint64_t i = first; i < end; ++i) live_[i] = ++version_;
    return true;
  }

  void DropSnapshot(size_t index) {
    Snapshot& snapshot = snapshots_[index];
    ReleasedMms released;
    tables_.UnpinMm(snapshot.id, &released);
    for (uint64_t va : snapshot.views) {
      if (!released.empty()) Complain("released with a view left");
      tables_.UnmapRange(guest_, GuestAddr(va), PageCount(snapshot.seen.size()), &released);
    }
    if (released != ReleasedMms({snapshot.id})) Complain("not released");
    snapshots_.erase(snapshots_.begin() + index);
  }

  void Take(uint32_t threshold) {
    if (snapshots_.size() == kMaxSnapshots) return;
    MmId id;
    const TableStatus status = cow_.Take(file_, {.min_shared_tables = threshold}, &id);
    if (status == TableStatus::kNoSpace) {
      ++no_space_;
      return;
    }
    if (status != TableStatus::kOk) return Complain("not taken");
    tables_.PinMm(id);
    snapshots_.push_back({.id = id, .seen = live_, .views = {}});
  }

  void Fault(uint32_t place, uint32_t what) {
    const uint64_t page = PageOf(place);
    const Access access = what % 2 == 0 ? Access::kRead : Access::kWrite;
    const auto kind = static_cast<FaultKind>(what / 2 % 3);
    const bool shared = AnyShares(page);
    const bool frozen = std::any_of(snapshots_.begin(), snapshots_.end(),
                                    [](const Snapshot& s) { return !s.lost; });
    const FaultDecision decision =
        Decide(tables_, {guest_, GuestAddr(kBase + page * kPageSize), access, kind}, Climate());
    const bool writes = access == Access::kWrite || kind == FaultKind::kWriteProtect;
    switch (decision.action) {
      case FaultAction::kPopulate:
        running_.push_back(decision);
        return;
      case FaultAction::kPrivatize:
        if (!shared || !writes) Complain("privatizes for nothing");
        Write(decision.first.value(), decision.count.value());
        return;
      case FaultAction::kUnprotect:
        if (shared) Complain("a shared page becomes writable");
        break;
      case FaultAction::kContinue:
        if (decision.write_protect != shared) Complain("write protection and sharing differ");
        if (shared && writes) Complain("a write is let through");
        break;
      case FaultAction::kWake:
        if (frozen) Complain("a frozen page is released unseen");
        break;
      case FaultAction::kJoin:
        break;
      default:
        Complain("unexpected action");
    }
    Commit(tables_, decision, Outcome::kDone, decision.grain);
  }

  void Do(const Op& op) {
    const size_t which = snapshots_.empty() ? 0 : op.a % snapshots_.size();
    ReleasedMms released;
    switch (op.kind) {
      case Kind::kTake:
        return Take(op.a % 8);
      case Kind::kDrop:
        if (!snapshots_.empty()) DropSnapshot(which);
        return;
      case Kind::kLose:
        if (snapshots_.empty()) return;
        cow_.Lose(snapshots_[which].id, &released);
        snapshots_[which].lost = true;
        return;
      case Kind::kWrite:
        Write(PageOf(op.a), 1);
        return;
      case Kind::kWriteRange:
        return WriteRange(PageOf(op.a), 1 + op.b % 4);
      case Kind::kFault:
        return Fault(op.a, op.b);
      case Kind::kCommit:
        return CommitOne(op.a, op.b);
      case Kind::kPunch:  // as a vote: the tables forget, the data stays
        tables_.PunchRange(file_, FilePage(PageOf(op.a)), PageCount(1 + op.b % 1200));
        return;
      case Kind::kCollapse:
        tables_.SetBlockCollapsed(file_, BlockFloor(FilePage(PageOf(op.a))));
        return;
      case Kind::kGrow:
        return Grow(op.a % 700);
      case Kind::kView:
        return MapView(which);
      case Kind::kUnmapView:
        if (snapshots_.empty() || snapshots_[which].views.empty()) return;
        tables_.UnmapRange(guest_, GuestAddr(snapshots_[which].views.back()),
                           PageCount(snapshots_[which].seen.size()), &released);
        snapshots_[which].views.pop_back();
        return;
    }
  }
  // Several pages at once, or, where not the same snapshots share them, refused.
  void WriteRange(uint64_t page, uint64_t count) {
    if (huge() || page + count > live_.size() || page / 512 != (page + count - 1) / 512) return;
    bool same = true;
    for (const Snapshot& snapshot : snapshots_) {
      for (uint64_t i = 1; i < count; ++i) {
        same &= Shares(snapshot, live_, page) == Shares(snapshot, live_, page + i);
      }
    }
    if (same) {
      Write(page, count);
      return;
    }
    uint32_t uses = 0;
    if (cow_.Privatize(file_, FilePage(page), PageCount(count), FrameNumber(1 << 30), &uses) !=
        TableStatus::kBadRange) {
      Complain("a range that is shared unevenly is not refused");
    }
  }
  void CommitOne(uint32_t number, uint32_t how) {
    if (running_.empty()) return;
    const size_t index = number % running_.size();
    const FaultDecision decision = running_[index];
    running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
    Commit(tables_, decision, how % 4 == 0 ? Outcome::kFailed : Outcome::kDone,
           how % 3 == 0 ? Grain::kSmall : decision.grain);
  }
  void Grow(uint64_t by) {
    if (tables_.GrowMm(file_, PageCount(live_.size() + by)) != TableStatus::kOk) return;
    if (live_.size() + by > setting_.blocks * 2 * kPagesPerBlock) return Complain("grew too far");
    live_.resize(live_.size() + by);
  }
  void MapView(size_t which) {
    if (snapshots_.empty()) return;
    const uint64_t va = kViews + next_view_++ * (uint64_t{1} << 30);
    Snapshot& snapshot = snapshots_[which];
    const RegionSpec spec{.va = GuestAddr(va),
                          .length = PageCount(snapshot.seen.size()),
                          .mm = snapshot.id,
                          .file_page = FilePage(0),
                          .access = Access::kRead,
                          .flags = kView};
    if (tables_.MapRegion(guest_, spec) == TableStatus::kOk) snapshot.views.push_back(va);
  }

  void CheckPage(const Snapshot& snapshot, uint64_t page) {
    if (snapshot.lost || page >= snapshot.seen.size()) return;
    const CowTables::Page found = cow_.Find(snapshot.id, FilePage(page));
    const bool live = found.from == CowTables::Page::From::kLive;
    const auto at = store_.find(found.frame.value());
    const uint64_t version = live ? live_[page] : at == store_.end() ? ~uint64_t{0} : at->second;
    if (version != snapshot.seen[page]) {
      Complain("page " + std::to_string(page) + " of a snapshot has version " +
               std::to_string(version) + " instead of " + std::to_string(snapshot.seen[page]));
    }
    if (live != Shares(snapshot, live_, page)) Complain("copied for nothing, or not at all");
  }
  void CheckSharing(uint64_t page) {
    std::vector<MmId> sharing;
    for (auto it = snapshots_.rbegin(); it != snapshots_.rend(); ++it) {
      if (Shares(*it, live_, UnitStart(page))) sharing.push_back(it->id);
    }
    if (cow_.Sharing(file_, FilePage(page)) != sharing) Complain("other snapshots share the page");
    if (cow_.IsShared(file_, FilePage(page)) == sharing.empty()) Complain("IsShared differs");
  }
  void CheckChanges(const Snapshot& from, MmId later, const std::vector<uint64_t>& to) {
    std::vector<bool> changed(to.size());
    FilePage at(0);
    while (const auto run = cow_.NextChange(from.id, later, at)) {
      at = run->first + run->count;
      for (FilePage page = run->first; page < at; page = page + PageCount(1)) {
        changed[page.value()] = true;
      }
    }
    for (uint64_t page = 0; page < to.size(); ++page) {
      const bool differs = page >= from.seen.size() || from.seen[page] != to[page];
      if (changed[page] != differs) return Complain("changes differ at " + std::to_string(page));
    }
  }
  void CheckEveryPage() {
    for (const Snapshot& snapshot : snapshots_) {
      for (uint64_t page = 0; page < snapshot.seen.size(); ++page) CheckPage(snapshot, page);
    }
    for (size_t i = 0; i < snapshots_.size(); ++i) {
      if (snapshots_[i].lost) continue;
      CheckChanges(snapshots_[i], file_, live_);
      for (size_t j = i; j < snapshots_.size(); ++j) {
        if (!snapshots_[j].lost) CheckChanges(snapshots_[i], snapshots_[j].id, snapshots_[j].seen);
      }
    }
  }
  void Check() {
    for (uint32_t number = 0; PageOf(number) + 1 < live_.size(); ++number) {
      const uint64_t page = PageOf(number);
      for (const Snapshot& snapshot : snapshots_) CheckPage(snapshot, page);
      CheckSharing(page);
      if (number > 4 * 2 * setting_.blocks) break;
    }
    std::set<uint64_t> frames;  // that some page of some snapshot stands in
    for (const Snapshot& snapshot : snapshots_) {
      for (uint64_t page = 0; !snapshot.lost && page < snapshot.seen.size(); ++page) {
        // Copied means that the versions differ (CheckPage holds us to it).
        if (snapshot.seen[page] == live_[page]) continue;
        frames.insert(cow_.Find(snapshot.id, FilePage(page)).frame.value());
      }
    }
    if (!huge() && frames.size() != pool_.used()) Complain("frames in use differ");
    const std::vector<std::string> problems = CheckInvariants(tables_.reader());
    if (!problems.empty()) Complain("invariants: " + problems.front());
  }

  Setting setting_;
  TestSegment segment_;
  HostTables& tables_;
  CowTables cow_;
  GuestId guest_;
  MmId file_;
  FramePool pool_;
  std::map<uint64_t, uint64_t> store_;  // version by frame
  std::vector<uint64_t> live_;          // version by page
  uint64_t version_ = 0;
  uint64_t next_view_ = 0;
  uint64_t no_space_ = 0;
  std::vector<Snapshot> snapshots_;  // in the order in which they were taken
  std::vector<FaultDecision> running_;
  std::optional<std::string> complaint_;
};

std::optional<std::string> Run(const Setting& setting, const Program& program,
                               uint64_t* no_space = nullptr) {
  World world(setting);
  for (size_t i = 0; i < program.size(); ++i) {
    if (auto complaint = world.Step(program[i])) {
      return *complaint + " (operation " + std::to_string(i) + ")";
    }
  }
  if (no_space != nullptr) *no_space += world.no_space();
  return world.Finish();
}

Program Generate(uint64_t seed, size_t operations) {
  std::mt19937_64 random(seed);
  // By weight: mostly writes and faults.
  constexpr Kind kKinds[] = {
      Kind::kTake,   Kind::kTake,   Kind::kDrop,   Kind::kWrite,    Kind::kWrite,      Kind::kWrite,
      Kind::kWrite,  Kind::kWrite,  Kind::kFault,  Kind::kFault,    Kind::kFault,      Kind::kFault,
      Kind::kFault,  Kind::kFault,  Kind::kPunch,  Kind::kCollapse, Kind::kWriteRange, Kind::kView,
      Kind::kCommit, Kind::kCommit, Kind::kCommit, Kind::kUnmapView};
  Program program;
  for (size_t i = 0; i < operations; ++i) {
    Kind kind = kKinds[random() % std::size(kKinds)];
    if (random() % 60 == 0) kind = random() % 3 == 0 ? Kind::kGrow : Kind::kLose;
    program.push_back({kind, static_cast<uint32_t>(random()), static_cast<uint32_t>(random())});
  }
  return program;
}

std::string ToCpp(const Program& program) {
  std::ostringstream text;
  text << "const Program program = {\n";
  for (const Op& op : program) {
    text << "    {Kind::" << kNames[static_cast<size_t>(op.kind)] << ", " << op.a << "u, " << op.b
         << "u},\n";
  }
  text << "};\n";
  return text.str();
}

// Takes operations out as long as it still fails.
Program Shrink(const Setting& setting, Program program) {
  for (size_t step = program.size() / 2; step != 0; step /= 2) {
    for (size_t i = 0; i + step <= program.size();) {
      Program less = program;
      less.erase(less.begin() + static_cast<std::ptrdiff_t>(i),
                 less.begin() + static_cast<std::ptrdiff_t>(i + step));
      if (Run(setting, less).has_value()) {
        program = less;
      } else {
        ++i;
      }
    }
  }
  return program;
}

// RETURNS: how often something was refused for want of a table.
uint64_t RunSeeds(const Setting& setting, uint64_t first_seed, uint64_t programs) {
  uint64_t no_space = 0;
  for (uint64_t seed = first_seed; seed < first_seed + programs; ++seed) {
    const Program program = Generate(seed, 200);
    const auto failure = Run(setting, program, &no_space);
    if (!failure.has_value()) continue;
    const Program small = Shrink(setting, program);
    ADD_FAILURE() << "seed " << seed << ": " << *failure
                  << "\nshortest: " << Run(setting, small).value_or("(passes?)") << "\n"
                  << ToCpp(small);
    break;
  }
  return no_space;
}

// Pte tables right below the top.
constexpr Geometry kLowTop{.page_shift = 12,
                           .bits = {9, 5, 4, 4},
                           .huge_leaf_level = Geometry::kNoHugeLeaf,
                           .share_level = 0,
                           .levels = 4};

TEST(CowProgramTest, X8664) { RunSeeds({kX8664, FrameKind::kHuge, 8, 400}, 1, 12); }
TEST(CowProgramTest, SmallSpans) { RunSeeds({kSmallSpans, FrameKind::kHuge, 10, 400}, 1000, 25); }
TEST(CowProgramTest, Hugetlb) { RunSeeds({kSmallSpans, FrameKind::kHugetlb, 10, 400}, 2000, 25); }
TEST(CowProgramTest, TopsAtLevel1) { RunSeeds({kLowTop, FrameKind::kBase, 10, 400}, 3000, 25); }
TEST(CowProgramTest, TopsAtLevel3) { RunSeeds({kSmallSpans, FrameKind::kHuge, 66, 700}, 4000, 4); }
TEST(CowProgramTest, PowerPc) { RunSeeds({kPowerPcSegments, FrameKind::kHuge, 8, 400}, 5000, 10); }
TEST(CowProgramTest, NodesRunOut) {
  EXPECT_GT(RunSeeds({kSmallSpans, FrameKind::kHuge, 10, 22}, 6000, 40), 100u);
}
TEST(CowProgramTest, NodesRunOutOnHugetlb) {
  EXPECT_GT(RunSeeds({kSmallSpans, FrameKind::kHugetlb, 10, 12}, 7000, 40), 100u);
}

}  // namespace
}  // namespace hostmm
