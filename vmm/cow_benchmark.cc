// The pure half of the fork curve of 2003: what the tables cost when a region of 1 .. 64 table
// pages is snapshotted, written once under every table, and the snapshot dropped; with the
// threshold of four tables (policy 4) and without (policy 1). No page is copied and no system call
// made in the timed part. The floor beside it is a snapshot that nobody writes under.
//
//   cow_benchmark --benchmark_filter=...   Google Benchmark
//   cow_benchmark --csv [REPEATS]          medians of the rounds, as CSV for a plot
//
// In the CSV the policies take turns round by round, so that a change of the machine's mood meets
// both.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "vmm/cow_tables.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

using Clock = std::chrono::steady_clock;

constexpr uint32_t kPolicies[] = {4, 1};
constexpr uint64_t kMostTables = 64;

// A file with a page present under each of `tables` pte tables, which is what a pte table needs to
// be.
class Region {
 public:
  explicit Region(uint64_t tables)
      : segment_({.max_guests = 1, .max_mms = 4, .max_regions = 4, .max_nodes = 512}),
        cow_(&segment_.tables),
        count_(tables),
        mm_(segment_.AddMm(PageCount(tables * kPagesPerBlock))) {
    for (uint64_t block = 0; block < tables; ++block) {
      Must(segment_.tables.SetBlockCollapsed(mm_, BlockIndex(block)));
      // A hole splits the leaf.
      Must(segment_.tables.PunchRange(mm_, FirstPageOf(BlockIndex(block)), PageCount(1)));
    }
    Must(segment_.tables.PinMm(mm_));
  }

  MmId Take(uint32_t policy) {
    MmId snapshot;
    Must(cow_.Take(mm_, {.min_shared_tables = policy}, &snapshot));
    Must(segment_.tables.PinMm(snapshot));
    return snapshot;
  }
  void WriteUnderEveryTable() {
    for (uint64_t block = 0; block < count_; ++block) {
      uint32_t uses = 0;
      Must(cow_.Privatize(mm_, FirstPageOf(BlockIndex(block)) + PageCount(1), PageCount(1),
                          FrameNumber(block), &uses));
    }
  }
  void Drop(MmId snapshot) {
    released_.clear();
    Must(segment_.tables.UnpinMm(snapshot, &released_));
  }
  uint64_t TablesCopied() const {
    const FaultStats stats = segment_.tables.Stats();
    return stats.Of(FaultCounter::kTablesCopiedAtTake) + stats.Of(FaultCounter::kTablesCopiedLater);
  }

 private:
  static void Must(TableStatus status) {
    if (status != TableStatus::kOk) std::abort();
  }

  TestSegment segment_;
  CowTables cow_;
  uint64_t count_;
  MmId mm_;
  ReleasedMms released_;
};

void BM_TakeAndDrop(benchmark::State& state) {
  Region region(static_cast<uint64_t>(state.range(0)));
  for (auto _ : state) region.Drop(region.Take(static_cast<uint32_t>(state.range(1))));
}
BENCHMARK(BM_TakeAndDrop)->ArgsProduct({{1, 2, 3, 4, 8, 16, 32, 64}, {4, 1}});

void BM_TakeWriteAllDrop(benchmark::State& state) {
  Region region(static_cast<uint64_t>(state.range(0)));
  for (auto _ : state) {
    const MmId snapshot = region.Take(static_cast<uint32_t>(state.range(1)));
    region.WriteUnderEveryTable();
    region.Drop(snapshot);
  }
  state.counters["tables_copied"] = benchmark::Counter(static_cast<double>(region.TablesCopied()),
                                                       benchmark::Counter::kAvgIterations);
}
BENCHMARK(BM_TakeWriteAllDrop)->ArgsProduct({{1, 2, 3, 4, 8, 16, 32, 64}, {4, 1}});

struct Round {
  int64_t take_ns = 0;
  int64_t write_ns = 0;
  int64_t drop_ns = 0;
  int64_t total() const { return take_ns + write_ns + drop_ns; }
};

Round Measure(Region& region, uint32_t policy) {
  const auto ns = [](Clock::duration time) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
  };
  const auto start = Clock::now();
  const MmId snapshot = region.Take(policy);
  const auto taken = Clock::now();
  region.WriteUnderEveryTable();
  const auto written = Clock::now();
  region.Drop(snapshot);
  return {ns(taken - start), ns(written - taken), ns(Clock::now() - written)};
}

template <class Fn>
int64_t Median(std::vector<Round>& rounds, Fn of) {
  std::nth_element(rounds.begin(), rounds.begin() + rounds.size() / 2, rounds.end(),
                   [&](const Round& a, const Round& b) { return of(a) < of(b); });
  return of(rounds[rounds.size() / 2]);
}

int PrintCsv(int repeats) {
  std::printf("table_pages,min_shared_tables,tables_copied,take_ns,write_ns,drop_ns,total_ns\n");
  for (uint64_t tables = 1; tables <= kMostTables; ++tables) {
    Region regions[] = {Region(tables), Region(tables)};  // by policy
    std::vector<Round> rounds[std::size(kPolicies)];
    for (int i = 0; i < repeats; ++i) {
      for (size_t p = 0; p < std::size(kPolicies); ++p) {
        rounds[p].push_back(Measure(regions[p], kPolicies[p]));
      }
    }
    for (size_t p = 0; p < std::size(kPolicies); ++p) {
      std::printf("%ju,%u,%ju,%jd,%jd,%jd,%jd\n", uintmax_t{tables}, kPolicies[p],
                  static_cast<uintmax_t>(regions[p].TablesCopied() / rounds[p].size()),
                  intmax_t{Median(rounds[p], [](const Round& r) { return r.take_ns; })},
                  intmax_t{Median(rounds[p], [](const Round& r) { return r.write_ns; })},
                  intmax_t{Median(rounds[p], [](const Round& r) { return r.drop_ns; })},
                  intmax_t{Median(rounds[p], [](const Round& r) { return r.total(); })});
    }
  }
  return 0;
}

}  // namespace
}  // namespace hostmm

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "--csv") == 0) {
    // Arbitrary: enough for a steady median in a second or two.
    const int repeats = argc > 2 ? std::atoi(argv[2]) : 201;
    if (repeats <= 0) {
      std::fprintf(stderr, "usage: %s --csv [REPEATS]\n", argv[0]);
      return 2;
    }
    return hostmm::PrintCsv(repeats);
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
