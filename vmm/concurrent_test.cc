// One writer and several readers on one segment, as the pager and its guests: the readers look
// pages up, walk everything and check the invariants while tables are freed and used again under
// them, and snapshots are taken, written under and dropped. Meant for ThreadSanitizer
// (--config=tsan), and worth running without.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

using Clock = std::chrono::steady_clock;

// Arbitrary: long enough for thousands of reused tables, short enough for every test run.
constexpr auto kRunTime = std::chrono::seconds(2);
// Longer, if somebody has not seen yet what is wanted of all: a thread may get no processor for
// most of the time above.
constexpr auto kMostTime = std::chrono::seconds(30);
constexpr uint64_t kFilePages = 12 * kPagesPerBlock;
constexpr int kMms = 3;
constexpr size_t kSnapshots = 5;
// Where the test puts the pre-image of page 0; the others follow, so that a frame tells its page.
constexpr uint64_t kPreimages = 1'000'000;

// Small, so that every table is soon reused for something else.
constexpr SegmentConfig kConfig{
    .max_guests = 16, .max_mms = 16, .max_regions = 64, .max_nodes = 96, .geometry = kSmallSpans};

// The ids that the writer publishes for the readers; generation and slot in one word.
struct Published {
  std::atomic<uint64_t> mms[kMms] = {};
  std::atomic<uint64_t> guest = 0;
  std::atomic<uint64_t> snapshot = 0;
};

template <class Id>
uint64_t Pack(Id id) {
  return id.slot | uint64_t{id.generation} << 32;
}
template <class Id>
Id Unpack(uint64_t word) {
  return {static_cast<uint32_t>(word), static_cast<uint32_t>(word >> 32)};
}

// Does what a pager does, on three files and a handful of guests.
class Writer {
 public:
  Writer(HostTables& tables, Published& published) : tables_(tables), published_(published) {
    for (int i = 0; i < kMms; ++i) ReplaceMm(i);
    for (int i = 0; i < 4; ++i) AddGuest();
  }

  void Step() {
    switch (random_() % 22) {
      case 16:
        return TakeSnapshot();
      case 17:
        return DropSnapshot();
      case 18:
      case 19:
      case 20:
        return FirstWrite();
      case 0:
        return AddGuest();
      case 1:
        return RemoveGuest();
      case 2:
        return Fork();
      case 3:
        return ReplaceMm(random_() % kMms);
      case 4:
      case 5:
        return Map();
      case 6:
        return Unmap();
      case 7:
        return Protect();
      case 8:
      case 9:
        return Punch();
      default:
        return Fault();
    }
  }

 private:
  GuestId Guest() { return guests_.empty() ? GuestId() : guests_[random_() % guests_.size()]; }
  uint64_t Page() { return random_() % kFilePages; }
  uint64_t Block() { return random_() % (kFilePages / kPagesPerBlock); }

  void AddGuest() {
    GuestId id;
    if (tables_.AddGuest(1, 0, &id) == TableStatus::kOk) guests_.push_back(id);
  }
  void RemoveGuest() {
    if (guests_.size() < 3) return;
    const size_t which = random_() % guests_.size();
    ReleasedMms released;
    tables_.RemoveGuest(guests_[which], &released);
    guests_.erase(guests_.begin() + which);
    published_.guest = Pack(Guest());
  }
  void Fork() {
    GuestId child;
    if (tables_.ForkGuest(Guest(), &child) == TableStatus::kOk) guests_.push_back(child);
  }
  // The old file goes when its last region goes, at the latest with this unpin.
  void ReplaceMm(int which) {
    ReleasedMms released;
    if (mms_[which].valid()) tables_.UnpinMm(mms_[which], &released);
    mms_[which] = MmId();
    if (tables_.CreateMm({.length = PageCount(kFilePages)}, &mms_[which]) == TableStatus::kOk) {
      tables_.PinMm(mms_[which]);
    }
    published_.mms[which] = Pack(mms_[which]);
  }
  void Map() {
    const uint64_t block = Block();
    tables_.MapRegion(Guest(), {.va = GuestAddr(block * kBlockSize),
                                .length = PageCount(4 * kPagesPerBlock),
                                .mm = mms_[random_() % kMms],
                                .file_page = FirstPageOf(BlockIndex(block)),
                                .access = AccessSet::ReadWrite(),
                                .flags = random_() % 2 == 0 ? kSharedPt : 0u});
    published_.guest = Pack(Guest());
  }
  void Unmap() {
    ReleasedMms released;
    tables_.UnmapRange(Guest(), GuestAddr(Block() * kBlockSize), PageCount(2 * kPagesPerBlock),
                       &released);
  }
  void Protect() {
    tables_.ProtectRange(Guest(), GuestAddr(Block() * kBlockSize), PageCount(kPagesPerBlock),
                         random_() % 2 == 0 ? Access::kRead : AccessSet::ReadWrite());
  }
  void Punch() {
    tables_.PunchRange(mms_[random_() % kMms], FirstPageOf(BlockIndex(Block())),
                       PageCount(2 * kPagesPerBlock));
  }
  void TakeSnapshot() {
    MmId id;
    if (snapshots_.size() == kSnapshots ||
        CowTables(&tables_).Take(mms_[random_() % kMms], {}, &id) != TableStatus::kOk) {
      return;
    }
    tables_.PinMm(id);
    snapshots_.push_back(id);
    published_.snapshot = Pack(id);
  }
  void DropSnapshot() {
    if (snapshots_.empty()) return;
    const size_t which = random_() % snapshots_.size();
    ReleasedMms released;
    tables_.UnpinMm(snapshots_[which], &released);
    snapshots_.erase(snapshots_.begin() + which);
    if (!snapshots_.empty()) published_.snapshot = Pack(snapshots_.front());
  }
  void FirstWrite() {
    const FilePage page(Page());
    uint32_t uses = 0;
    CowTables(&tables_).Privatize(mms_[random_() % kMms], page, PageCount(1),
                                  FrameNumber(kPreimages + page.value()), &uses);
  }
  void Fault() {
    const FaultDecision decision =
        Decide(tables_, {.guest = Guest(), .addr = GuestAddr(Page() * kPageSize)}, Climate());
    Commit(tables_, decision, random_() % 8 == 0 ? Outcome::kOutOfFrames : Outcome::kDone,
           random_() % 4 == 0 ? Grain::kSmall : decision.grain);
  }

  HostTables& tables_;
  Published& published_;
  std::mt19937_64 random_{1};  // NOLINT: the same run every time
  std::vector<GuestId> guests_;
  MmId mms_[kMms];
  std::vector<MmId> snapshots_;
};

struct Tally {
  uint64_t lookups = 0;
  uint64_t found = 0;
  uint64_t copied = 0;
  uint64_t unreadable = 0;
  uint64_t checks = 0;
  std::string problem;
};

// For a loop beside the readers: until `met` says that all has been seen, and for a while anyway.
class RunTime {
 public:
  template <class Met>
  bool GoesOn(Met met) const {
    const auto time = Clock::now() - start_;
    return time < kRunTime || (time < kMostTime && !met());
  }

 private:
  const Clock::time_point start_ = Clock::now();
};

// A page's entry may be any that it had during the lookup, never one of another page.
void LookPageUp(const TableReader& reader, const Published& published, std::mt19937_64& random,
                Tally* tally) {
  const uint64_t which = random() % (kMms + 1);
  const MmId mm =
      Unpack<MmId>(which == kMms ? published.snapshot.load() : published.mms[which].load());
  const FilePage page(random() % kFilePages);
  const PageView view = random() % 2 == 0
                            ? reader.Lookup(mm, page)
                            : reader.LookupFrom(Unpack<GuestId>(published.guest.load()), mm, page);
  ++tally->lookups;
  tally->unreadable += view.state == PageState::kUnreadable;
  if (view.state == PageState::kEmpty || view.state == PageState::kUnreadable) return;
  ++tally->found;
  if (view.state == PageState::kCopied) {
    ++tally->copied;
    if (which == kMms && view.frame.value() == kPreimages + page.value()) return;
  }
  const uint64_t first = FirstPageOf(BlockFloor(page)).value();
  const bool own = view.frame.value() == page.value();
  if (own || (view.frame.value() == first && view.state != PageState::kPresentSmall)) return;
  tally->problem = "page " + std::to_string(page.value()) + " found with frame " +
                   std::to_string(view.frame.value());
}

void WalkEverything(const TableReader& reader) {
  uint64_t pages = 0;
  reader.ForEachGuest([&](const GuestInfo& guest) {
    reader.ForEachRegion(guest.id, [&](const Region& region) { pages += region.length.value(); });
    reader.IsShared(guest.id, GuestAddr(kBlockSize));
  });
  reader.ForEachMm([&](const MmInfo& mm) {
    reader.ForEachMapper(mm.id, BlockIndex(1), [&](GuestId, const Region& region, Writable) {
      pages += region.length.value();
    });
    reader.ForEachSharer(mm.id, FilePage(0), mm.length,
                         [&](GuestId, const Region& region) { pages += region.length.value(); });
  });
}

void CheckOnce(const TableReader& reader, Tally* tally) {
  std::vector<std::string> problems;
  if (CheckLive(reader, 3, &problems) != ReadStatus::kConsistent) return;
  ++tally->checks;
  if (!problems.empty()) tally->problem = problems.front();
}

TEST(ConcurrentTest, ReadersBesideOneWriter) {
  TestSegment segment(kConfig);
  TableReader reader;
  ASSERT_EQ(TableReader::Attach(segment.bytes(), &reader), AttachStatus::kOk);
  Published published;
  Writer writer(segment.tables, published);

  constexpr int kReaders = 3;
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> checks = 0;
  std::atomic<int> content = 0;  // readers that have found a copy
  Tally tallies[kReaders];
  std::vector<std::thread> threads;
  for (int i = 0; i < kReaders; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 random(i);
      Tally& tally = tallies[i];
      while (!stop && tally.problem.empty()) {
        const bool had_none = tally.copied == 0;
        for (int lookups = 0; lookups < 500; ++lookups) {
          LookPageUp(reader, published, random, &tally);
        }
        if (had_none && tally.copied > 0) ++content;
        WalkEverything(reader);
        const uint64_t before = tally.checks;
        CheckOnce(reader, &tally);
        checks += tally.checks - before;
      }
    });
  }

  // Bursts of changes; between them the writer waits until somebody has checked a quiet segment, so
  // that the checks do not depend on the scheduler's kindness.
  const RunTime run;
  uint64_t bursts = 0;
  const auto met = [&] { return bursts > 1 && content == kReaders; };
  while (run.GoesOn(met)) {
    for (int i = 0; i < 300; ++i) writer.Step();
    ++bursts;
    const uint64_t seen = checks;
    // Not a yield: processes that yield to each other can starve the rest of the machine.
    while (checks == seen && run.GoesOn(met)) {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();

  EXPECT_EQ(CheckInvariants(segment.reader()), std::vector<std::string>());
  for (const Tally& tally : tallies) {
    EXPECT_EQ(tally.problem, "");
    EXPECT_GT(tally.lookups, 0u);
    EXPECT_GT(tally.found, 0u);
    EXPECT_GT(tally.copied, 0u);
    // The writer frees tables in a fraction of its steps; a hundred attempts must nearly always do.
    EXPECT_LT(tally.unreadable, tally.lookups / 100 + 1);
  }
  EXPECT_GT(checks, 0u);
  EXPECT_GT(bursts, 1u);
}

// Race 4 of the design: a walk follows a table that was freed and is another block's table now. The
// writer moves one full table from block to block as fast as it can; a reader that is interrupted
// in the middle of its walk comes back to another block's entries.
TEST(ConcurrentTest, TablesAreReusedUnderWalks) {
  SegmentConfig config = kConfig;
  config.max_nodes = 8;
  TestSegment segment(config);
  HostTables& tables = segment.tables;
  const MmId mm = segment.AddMm(PageCount(kFilePages));
  Published published;
  for (auto& word : published.mms) word = Pack(mm);

  // More readers than processors, so that they are interrupted.
  constexpr int kReaders = 4;
  std::atomic<bool> stop = false;
  std::atomic<int> content = 0;  // readers that have found a page
  Tally tallies[kReaders];
  std::vector<std::thread> threads;
  for (int i = 0; i < kReaders; ++i) {
    threads.emplace_back([&, i] {
      std::mt19937_64 random(i);
      while (!stop && tallies[i].problem.empty()) {
        const bool had_none = tallies[i].found == 0;
        LookPageUp(segment.reader(), published, random, &tallies[i]);
        if (had_none && tallies[i].found > 0) ++content;
      }
    });
  }
  const RunTime run;
  uint64_t moves = 0;
  while (run.GoesOn([&] { return moves > 100 && content == kReaders; })) {
    const BlockIndex block(moves++ % (kFilePages / kPagesPerBlock));
    ASSERT_EQ(tables.SetBlockCollapsed(mm, block), TableStatus::kOk);
    // A hole splits the huge leaf into a table that is full but for one page.
    ASSERT_EQ(tables.PunchRange(mm, FirstPageOf(block), PageCount(1)), TableStatus::kOk);
    ASSERT_EQ(tables.PunchRange(mm, FirstPageOf(block), PageCount(kPagesPerBlock)),
              TableStatus::kOk);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const Tally& tally : tallies) {
    EXPECT_EQ(tally.problem, "");
    EXPECT_GT(tally.found, 0u);
  }
  EXPECT_GT(moves, 100u);
}

// Deterministic counterpart: what a reader finds when the writer is in the middle of something.
TEST(ConcurrentTest, OddSequenceIsBusy) {
  TestSegment segment(kConfig);
  std::vector<std::string> problems;
  {
    const WriteSection section(segment.tables.segment());
    EXPECT_EQ(CheckLive(segment.reader(), 5, &problems), ReadStatus::kBusy);
  }
  EXPECT_EQ(CheckLive(segment.reader(), 5, &problems), ReadStatus::kConsistent);
  EXPECT_TRUE(problems.empty());
}

TEST(ConcurrentTest, ReadIsRepeatedWhenTheWriterMoved) {
  TestSegment segment(kConfig);
  int reads = 0;
  const ReadStatus status = segment.reader().ReadConsistently(10, [&] {
    if (++reads < 3) segment.AddGuest();
  });
  EXPECT_EQ(status, ReadStatus::kConsistent);
  EXPECT_EQ(reads, 3);
}

}  // namespace
}  // namespace hostmm
