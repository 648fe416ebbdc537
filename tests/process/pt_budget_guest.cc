// Programs that touch more blocks than their page-table budget allows, from several processes and
// threads at once. Each process watches its own VmPTE while it does so and says what it saw; the
// test compares. Every value that is read is checked.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <latch>
#include <random>
#include <thread>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBlock = 2 * kMib;
// Pages of a block that are used, far from each other: few enough that no block becomes full, which
// would make it huge where there is no budget.
constexpr size_t kUsedPages = 16;
constexpr int kGuests = 2;
constexpr int kThreads = 3;

uint64_t* PageAt(char* region, size_t index) {
  const size_t page = index % kUsedPages * (kBlock / kPage / kUsedPages);
  return reinterpret_cast<uint64_t*>(region + index / kUsedPages * kBlock + page * kPage);
}

uint64_t Stamp(int writer, size_t index, uint32_t times) {
  return times == 0 ? 0 : (index * 64 + writer + 1) * 0x9e3779b97f4a7c15 + times;
}

// One thread of one guest, which owns one word of each page.
class Toucher {
 public:
  // `times` says how often each page was written; the parent reads it when all are gone.
  Toucher(char* region, size_t pages, int writer, uint32_t* times)
      : region_(region), pages_(pages), writer_(writer), times_(times), random_(writer) {}

  void Touch(size_t index) {
    uint64_t* word = PageAt(region_, index) + writer_;
    good_ = good_ && *word == Stamp(writer_, index, times_[index]);
    *word = Stamp(writer_, index, ++times_[index]);
  }
  void TouchAtRandom(int touches) {
    for (int i = 0; i < touches; ++i) Touch(random_() % pages_);
  }
  void TouchInOrder(int rounds) {
    for (int round = 0; round < rounds; ++round) {
      for (size_t i = 0; i < pages_; ++i) Touch(i);
    }
  }
  // Few blocks mostly, and a walk through the others.
  void TouchHotAndCold(int touches) {
    for (int i = 0; i < touches; ++i) {
      Touch(i % 8 == 0 ? i / 8 % pages_ : random_() % std::min(pages_, 20 * kUsedPages));
    }
  }
  bool good() const { return good_; }

 private:
  char* const region_;
  const size_t pages_;
  const int writer_;
  uint32_t* const times_;
  std::mt19937 random_;
  bool good_ = true;
};

// The highest VmPTE from Start to Stop.
class Watch {
 public:
  Watch() : baseline_(StatusKib(0, "VmPTE")), peak_(baseline_), thread_([this] { Look(); }) {}
  void Start() {
    baseline_ = StatusKib(0, "VmPTE");
    started_ = true;
  }
  void Stop() {
    stopped_ = true;
    thread_.join();
  }
  int64_t baseline() const { return baseline_; }
  int64_t peak() const { return peak_; }
  int64_t looks() const { return looks_; }

 private:
  void Look() {
    while (!stopped_) {
      const int64_t now = StatusKib(0, "VmPTE");
      if (started_) {
        peak_ = std::max(peak_, now);
        ++looks_;
      }
    }
  }

  int64_t baseline_;
  int64_t peak_;
  int64_t looks_ = 0;
  std::atomic<bool> started_ = false;
  std::atomic<bool> stopped_ = false;
  std::thread thread_;
};

int RunGuest(char* region, size_t pages, int guest, uint32_t* times) {
  Watch watch;
  std::vector<Toucher> touchers;
  for (int i = 0; i < kThreads; ++i) {
    const int writer = guest * kThreads + i;
    touchers.emplace_back(region, pages, writer, times + writer * pages);
  }
  // Stacks and counts are there before the baseline is taken.
  std::vector<uint32_t> ahead(times + guest * kThreads * pages,
                              times + (guest + 1) * kThreads * pages);
  std::latch ready(kThreads);
  std::latch go(1);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      ready.count_down();
      go.wait();
      if (i == 0) touchers[i].TouchAtRandom(2500);
      if (i == 1) touchers[i].TouchInOrder(static_cast<int>(5000 / pages + 1));
      if (i == 2) touchers[i].TouchHotAndCold(20'000);
    });
  }
  ready.wait();
  watch.Start();
  go.count_down();
  for (std::thread& thread : threads) thread.join();
  watch.Stop();
  bool good = true;
  for (const Toucher& toucher : touchers) good = good && toucher.good();
  Say("VmPTE in KiB: baseline %ld, peak %ld", static_cast<long>(watch.baseline()),
      static_cast<long>(watch.peak()));
  Expect(watch.looks() > 100, "somebody looked");
  return good ? 0 : 1;
}

void RunAll(size_t bytes) {
  const size_t pages = bytes / kBlock * kUsedPages;
  char* region = MustMapShared(bytes);
  ExpectManaged(region);
  // Plain memory: too small to be managed.
  const size_t counts = kGuests * kThreads * pages;
  auto* times = reinterpret_cast<uint32_t*>(MustMapShared(counts * sizeof(uint32_t)));
  std::vector<pid_t> guests;
  for (int guest = 0; guest < kGuests; ++guest) {
    const pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) _exit(RunGuest(region, pages, guest, times));
    guests.push_back(pid);
  }
  for (const pid_t pid : guests) MUST(WaitFor(pid) == 0);
  bool good = true;
  for (int writer = 0; writer < kGuests * kThreads; ++writer) {
    for (size_t i = 0; i < pages; ++i) {
      good = good && PageAt(region, i)[writer] == Stamp(writer, i, times[writer * pages + i]);
    }
  }
  MUST(good);
  Say("all values are right");
}

// Instructions that need several blocks at once, from several threads, where hardly more fit.
void CopyBetweenBlocks(char* region, size_t blocks, int thread) {
  std::mt19937 random(thread);
  for (int i = 0; i < 300; ++i) {
    // Each thread has its own 64 bytes around every boundary of two blocks.
    const auto boundary = [&] { return region + (1 + random() % (blocks - 1)) * kBlock; };
    char* from = boundary() - 60 + thread * 256;
    char* to = boundary() - 60 + thread * 256;
    if (from == to) continue;
    for (int byte = 0; byte < 120; ++byte) from[byte] = static_cast<char>(byte ^ i);
    size_t count = 120;
    const char* source = from;
    char* target = to;
    asm volatile("rep movsb" : "+S"(source), "+D"(target), "+c"(count) : : "memory");
    for (int byte = 0; byte < 120; ++byte) MUST(to[byte] == static_cast<char>(byte ^ i));
  }
}

}  // namespace

HOSTMM_CASE(Region256MiB) { RunAll(256 * kMib); }

HOSTMM_CASE(Region1GiB) { RunAll(1024 * kMib); }

HOSTMM_CASE(InstructionsAcrossBlocks) {
  constexpr size_t kBlocks = 64;
  char* region = MustMapShared(kBlocks * kBlock);
  ExpectManaged(region);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(CopyBetweenBlocks, region, kBlocks, i);
  for (std::thread& thread : threads) thread.join();
  Say("all values are right");
}

// What holds the library's lock, and what the agent may not zap, while others fault.
HOSTMM_CASE(MapsLocksAndUnmapsMeanwhile) {
  constexpr size_t kBlocks = 48;
  char* region = MustMapShared(kBlocks * kBlock);
  ExpectManaged(region);
  std::atomic<bool> done = false;
  std::thread toucher([&] {
    std::vector<uint32_t> times(kBlocks * kUsedPages);
    Toucher all(region, times.size(), 0, times.data());
    all.TouchAtRandom(3000);
    MUST(all.good());
    done = true;
  });
  // The last block is the region's in part only.
  constexpr size_t kMore = 12 * kBlock + 3 * kPage;
  int rounds = 0;
  do {
    char* more = MustMapShared(kMore);
    for (size_t at = 0; at < kMore; at += kPage * 64) more[at] = static_cast<char>(at >> 12);
    // Forbidden to some users; then there is nothing to see here.
    if (rounds % 2 == 0) mlock(more, 10 * kBlock);
    for (size_t at = 0; at < kMore; at += kPage * 64) {
      MUST(more[at] == static_cast<char>(at >> 12));
    }
    MUST(munmap(more, kMore) == 0);
    ++rounds;
  } while (!done);
  toucher.join();
  Say("all values are right");
}

}  // namespace hostmm::test
