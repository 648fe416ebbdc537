// The pager's tables are full: no snapshot can be taken, and one that needs a table for a first
// write is lost, as a whole and with the reason. Those that need none stay what they are, and no
// live region loses anything.
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"
#include "tests/testing/smaps.h"
#include "vmm/segment.h"

namespace hostmm::test {
namespace {

constexpr uint64_t kAllTables = SegmentConfig{}.max_nodes;
// Long, so that few snapshots have many tables. Of each block one page is touched.
constexpr size_t kFillerBytes = size_t{4096} * kMib;
constexpr size_t kFillerBlocks = kFillerBytes / kBlock;
// The top, and a table for each GiB.
constexpr uint64_t kUpperTables = 1 + kFillerBytes / (1024 * kMib);
// What is left for the regions under test to begin with. Arbitrary.
constexpr uint64_t kLeft = 100;

// What `hostmm stats` counts.
uint64_t TablesInUse() {
  const std::string command = std::string(getenv("HOSTMM_TEST_PROGRAM")) +
                              " stats --json --pager " + getenv("HOSTMM_TEST_SOCKET");
  FILE* out = popen(command.c_str(), "r");
  MUST(out != nullptr);
  std::string json;
  for (char part[4096]; fgets(part, sizeof(part), out) != nullptr;) json += part;
  MUST(pclose(out) == 0);
  constexpr char kKey[] = "\"tables\":";
  const size_t at = json.find(kKey);
  MUST(at != std::string::npos);
  return strtoull(json.c_str() + at + strlen(kKey), nullptr, 10);
}

// A region whose snapshots take up tables: between two of them one page of each block is written,
// which gives the older one a table of its own for each block, and 4 KiB of copies.
class Filler {
 public:
  Filler() : live_(kFillerBytes) {
    for (size_t block = 0; block < kFillerBlocks; ++block) Put(block, 0);
  }

  // Until no more than kLeft tables are free.
  void Fill() {
    constexpr uint64_t kEach = kFillerBlocks + kUpperTables;
    for (uint64_t used = TablesInUse(); kAllTables - used > kLeft; used = TablesInUse()) {
      const uint64_t left = kAllTables - used - kLeft;
      for (uint64_t i = 0; i < left / kEach; ++i) TakeAndWrite(kFillerBlocks);
      if (left < kEach) TakeAndWrite(left > kUpperTables ? left - kUpperTables : 0);
    }
  }
  // A snapshot without writes takes up one table. RETURNS the errno of the first that is refused.
  int TakeTheRest() {
    for (;;) {
      const int handle = hostmm_snapshot(live_.at());
      if (handle < 0) return errno;
      rest_.push_back(handle);
    }
  }
  // How many of its snapshots are said to be lost.
  size_t Lost() const {
    size_t lost = 0;
    for (const auto& snapshot : snapshots_) lost += snapshot->Condition() == "ok" ? 0 : 1;
    for (const int handle : rest_) lost += hostmm_snapshot_info(handle, nullptr) == 0 ? 0 : 1;
    return lost;
  }
  // How many do not show what was there. Some are looked at; a view needs tables, too.
  size_t Wrong() const {
    size_t wrong = 0;
    for (size_t i = 0; i < snapshots_.size(); i += 16) wrong += Shows(*snapshots_[i], i) ? 0 : 1;
    return wrong;
  }
  void DropTheRest() {
    for (const int handle : rest_) close(handle);
    rest_.clear();
    MUST(Eventually([] { return kAllTables - TablesInUse() > kLeft / 2; }));
  }
  size_t count() const { return snapshots_.size() + rest_.size(); }

 private:
  volatile uint64_t* Word(char* at, size_t block) const {
    return reinterpret_cast<volatile uint64_t*>(at + block * kBlock);
  }
  void Put(size_t block, uint64_t round) { *Word(live_.at(), block) = round * 1'000'003 + block; }
  // By two processes, so that the pager always has something to do.
  void TakeAndWrite(size_t blocks) {
    snapshots_.push_back(std::make_unique<Snapshot>(live_.at()));
    const uint64_t round = snapshots_.size();
    half_.Start([this, blocks, round] {
      for (size_t block = 1; block < blocks; block += 2) Put(block, round);
      return 0;
    });
    for (size_t block = 0; block < blocks; block += 2) Put(block, round);
    half_.Await();
  }
  // What is written between two snapshots is all blocks, but for the last ones.
  bool Shows(const Snapshot& snapshot, uint64_t round) const {
    const View view(snapshot);
    for (size_t block = 0; block < kFillerBlocks; ++block) {
      if (*Word(view.at(), block) != round * 1'000'003 + block) return false;
    }
    return true;
  }

  Live live_;
  Partner half_;
  std::vector<std::unique_ptr<Snapshot>> snapshots_;
  std::vector<int> rest_;
};

bool SaysFull() { return std::string(hostmm_error()).find("tables are full") != std::string::npos; }

// A region without snapshots: one of it is refused and leaves nothing behind.
void WantRefused(Live* live, Partner* writer) {
  writer->Start([at = live->at(), bytes = live->bytes()] {
    for (uint64_t round = 1; round <= 20; ++round) Stamp(at, bytes, round);
    return 0;
  });
  for (int i = 0; i < 5; ++i) {
    WantErrno(hostmm_snapshot(live->at()), ENOSPC, "hostmm_snapshot while it is written");
  }
  Want(SaysFull(), "why: %s", hostmm_error());
  Want(writer->Await() == 0, "the writer goes on");
  Want(IsStamped(live->at(), live->bytes(), 20), "the region has all of it");
  Want(Eventually([&] { return IsNative(live->at()); }), "nothing is left frozen");
}

HOSTMM_CASE(NoTableIsLeft) {
  if (OnHugetlb() || OnHuge()) return Skip("its copies would take all memory: needs base frames");
  // Tables and copies are 1 GiB each.
  if (MeminfoKib("MemAvailable") < int64_t{4} * 1024 * 1024) return Skip("needs 4 GiB of memory");
  rlimit limit = {};
  MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
  limit.rlim_cur = limit.rlim_max;
  MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  Live live;
  Live other;
  Partner writer;
  Stamp(live.at(), live.bytes() / 2, 1);  // and a hole
  Stamp(other.at(), other.bytes(), 1);
  Filler filler;
  filler.Fill();
  const Snapshot first(live.at());
  const Snapshot second(live.at());
  const View view(first);
  const int error = filler.TakeTheRest();
  Want(error == ENOSPC && SaysFull(), "%zu snapshots, then %s: %s", filler.count(),
       ErrnoName(error), hostmm_error());
  Want(TablesInUse() == kAllTables, "it is tables that there are no more of");
  WantRefused(&other, &writer);
  Want(IsStamped(view.at(), view.bytes() / 2, 1) && first.Condition() == "ok",
       "those that were taken are whole");
  writer.Start([at = live.at(), bytes = live.bytes()] {
    Stamp(at + bytes / 2, bytes / 2, 2);
    Stamp(at, bytes / 2, 2);
    return 0;
  });
  Want(writer.Await() == 0, "a first write that finds no table goes on");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has what was written");
  for (const Snapshot* lost : {&first, &second}) {
    Want(lost->Condition() == "EIO" && SaysFull(), "it is lost: %s", hostmm_error());
  }
  Want(TryRead(view.at()) == "SIGBUS/ADRERR" &&
           TryRead(view.at() + view.bytes() / 2) == "SIGBUS/ADRERR",
       "a view is SIGBUS, where it was read and where not");
  Want(Eventually([&] { return IsNative(live.at()); }), "the region is native again");
  const size_t lost = filler.Lost();
  Want(lost == 0, "%zu of %zu snapshots of another region were lost", lost, filler.count());

  filler.DropTheRest();
  const size_t wrong = filler.Wrong();
  Want(wrong == 0, "%zu of them do not show what was there", wrong);
  const Snapshot next(live.at());
  const View good(next);
  Stamp(live.at(), live.bytes(), 3);
  Want(IsStamped(good.at(), good.bytes(), 2) && next.Condition() == "ok", "the next one is good");
}

}  // namespace
}  // namespace hostmm::test
