// What the tables cost on the two paths where they are felt: one fault (Decide + Commit), and one
// process (ForkGuest + RemoveGuest). No system call is in the timed part; the floor beside them is
// a Decide that finds no guest, which is the price of the call, the two stores of the write
// sequence and the counters.

#include <benchmark/benchmark.h>

#include <cstdint>

#include "vmm/fault_policy.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;

struct Setup {
  explicit Setup(FrameKind frames, uint32_t flags, uint64_t bytes = kGib)
      : guest(segment.AddGuest()), mm(segment.AddMm(PagesFloor(bytes), frames)) {
    const TableStatus status = segment.tables.MapRegion(guest, {.va = GuestAddr(kGib),
                                                                .length = PagesFloor(bytes),
                                                                .mm = mm,
                                                                .file_page = FilePage(0),
                                                                .access = AccessSet::ReadWrite(),
                                                                .flags = flags});
    if (status != TableStatus::kOk) std::abort();
  }
  FaultEvent Event(uint64_t page, FaultKind kind) const {
    return {.guest = guest,
            .addr = GuestAddr(kGib + page * kPageSize),
            .access = Access::kWrite,
            .kind = kind};
  }

  TestSegment segment;
  GuestId guest;
  MmId mm;
};

void BM_FloorNoSuchGuest(benchmark::State& state) {
  TestSegment segment;
  for (auto _ : state) {
    const FaultDecision decision = Decide(segment.tables, FaultEvent{}, Climate());
    Commit(segment.tables, decision, Outcome::kDone, decision.grain);
    benchmark::DoNotOptimize(decision);
  }
}
BENCHMARK(BM_FloorNoSuchGuest);

// Every page of a populated 1 GiB, in an order that defeats the prefetcher.
void BM_MinorFault4k(benchmark::State& state) {
  Setup setup(FrameKind::kBase, kTracked);
  constexpr uint64_t kPages = kGib / kPageSize;
  for (uint64_t page = 0; page < kPages; ++page) {
    Decide(setup.segment.tables, setup.Event(page, FaultKind::kMinor), Climate());
  }
  uint64_t page = 0;
  for (auto _ : state) {
    page = (page + 7919) % kPages;
    const FaultDecision decision =
        Decide(setup.segment.tables, setup.Event(page, FaultKind::kMinor), Climate());
    Commit(setup.segment.tables, decision, Outcome::kDone, decision.grain);
    benchmark::DoNotOptimize(decision);
  }
}
BENCHMARK(BM_MinorFault4k);

// First touch of a 4 KiB page, and the hole punched again so that there is always one; the punch is
// in the timed part.
void BM_MissingFault4kAndPunch(benchmark::State& state) {
  Setup setup(FrameKind::kBase, kTracked);
  uint64_t page = 0;
  for (auto _ : state) {
    page = (page + 7919) % (kGib / kPageSize);
    const FaultDecision decision =
        Decide(setup.segment.tables, setup.Event(page, FaultKind::kMissing), Climate());
    Commit(setup.segment.tables, decision, Outcome::kDone, decision.grain);
    setup.segment.tables.PunchRange(setup.mm, FilePage(page), PageCount(1));
  }
}
BENCHMARK(BM_MissingFault4kAndPunch);

void BM_HugeFaultAndPunch(benchmark::State& state) {
  Setup setup(FrameKind::kHuge, kHintHuge);
  uint64_t block = 0;
  for (auto _ : state) {
    block = (block + 127) % (kGib / kBlockSize);
    const FaultDecision decision = Decide(
        setup.segment.tables, setup.Event(block * kPagesPerBlock, FaultKind::kMissing), Climate());
    Commit(setup.segment.tables, decision, Outcome::kDone, decision.grain);
    setup.segment.tables.PunchRange(setup.mm, decision.first, decision.count);
  }
}
BENCHMARK(BM_HugeFaultAndPunch);

// A connection of a database: fork, exit. The argument is the size of the shared region in GiB,
// that is, the number of shared tables whose use counts move.
void BM_ForkAndExit(benchmark::State& state) {
  const auto gib = static_cast<uint64_t>(state.range(0));
  Setup setup(FrameKind::kHuge, kHintHuge, gib * kGib);
  for (uint64_t block = 0; block < gib * kGib / kBlockSize; ++block) {
    setup.segment.tables.SetBlockCollapsed(setup.mm, BlockIndex(block));
  }
  ReleasedMms released;
  for (auto _ : state) {
    GuestId child;
    setup.segment.tables.ForkGuest(setup.guest, &child);
    setup.segment.tables.RemoveGuest(child, &released);
  }
}
BENCHMARK(BM_ForkAndExit)->Arg(1)->Arg(4)->Arg(300);

// A lookup by a reader, as hostmm_is_shared and the tools do it.
void BM_Lookup(benchmark::State& state) {
  Setup setup(FrameKind::kHuge, kHintHuge);
  for (uint64_t block = 0; block < kGib / kBlockSize; ++block) {
    setup.segment.tables.SetBlockCollapsed(setup.mm, BlockIndex(block));
  }
  const TableReader reader = setup.segment.reader();
  uint64_t page = 0;
  for (auto _ : state) {
    page = (page + 7919) % (kGib / kPageSize);
    benchmark::DoNotOptimize(reader.Lookup(setup.mm, FilePage(page)));
  }
}
BENCHMARK(BM_Lookup);

}  // namespace
}  // namespace hostmm
