// The claim of the project in numbers, on the real structures: 1,500 clients of a 300 GiB region.
// Plain processes need 8 bytes per 4 KiB page each, 878 GiB of page tables in all.

#include <gtest/gtest.h>

#include <cstdio>
#include <string>
#include <vector>

#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr uint64_t kGuests = 1500;
constexpr uint64_t kRegionBytes = 300 * kGib;
constexpr uint64_t kTableBytes = 4096;

// Page tables of plain processes that have touched everything, upper levels left out in their
// favour.
constexpr uint64_t PlainBytes(uint64_t guests, uint64_t bytes) {
  return guests * (bytes / kPageSize) * sizeof(uint64_t);
}

// One file, mapped by `guests` processes, all but the first made by fork.
class Simulation {
 public:
  Simulation(uint64_t bytes, FrameKind frames, uint64_t guests, uint32_t max_nodes)
      : segment_({.max_guests = 2000, .max_mms = 3, .max_regions = 2000, .max_nodes = max_nodes}),
        mm_(segment_.AddMm(PagesFloor(bytes), frames)),
        first_(segment_.AddGuest()) {
    EXPECT_EQ(segment_.tables.MapRegion(first_, {.va = GuestAddr(kGib),
                                                 .length = PagesFloor(bytes),
                                                 .mm = mm_,
                                                 .file_page = FilePage(0),
                                                 .access = AccessSet::ReadWrite()}),
              TableStatus::kOk);
    for (uint64_t i = 1; i < guests; ++i) {
      GuestId child;
      EXPECT_EQ(segment_.tables.ForkGuest(first_, &child), TableStatus::kOk);
      children_.push_back(child);
    }
  }

  // Faults every page in, the guests taking turns.
  void TouchEverything(uint64_t bytes) {
    HostTables& tables = segment_.tables;
    uint64_t turn = 0;
    for (uint64_t offset = 0; offset < bytes;) {
      const GuestId guest = children_[turn++ % children_.size()];
      const FaultDecision decision =
          Decide(tables, {.guest = guest, .addr = GuestAddr(kGib + offset)}, {});
      ASSERT_EQ(decision.action, FaultAction::kPopulate);
      Commit(tables, decision, Outcome::kDone, decision.grain);
      offset = BytesOf((decision.first - FilePage(0)) + decision.count);
    }
  }

  uint64_t bytes_of_tables() { return segment_.reader().Pools().table_bytes; }
  TestSegment& segment() { return segment_; }
  MmId mm() const { return mm_; }

  // Ends everybody. Nothing may be left.
  void Finish() {
    ReleasedMms released;
    segment_.tables.RemoveGuest(first_, &released);
    for (GuestId child : children_) segment_.tables.RemoveGuest(child, &released);
    EXPECT_EQ(released, ReleasedMms({mm_}));
    const PoolUse use = segment_.reader().Pools();
    EXPECT_EQ(use.nodes + use.regions + use.attachments + use.guests + use.mms, 0u);
  }

 private:
  TestSegment segment_;
  MmId mm_;
  GuestId first_;
  std::vector<GuestId> children_;
};

void Report(const char* what, uint64_t ours, uint64_t plain) {
  std::printf("%s: %.1f MiB of tables, plain %.1f MiB, ratio 1/%.0f\n", what, ours / 1048576.0,
              plain / 1048576.0, static_cast<double>(plain) / ours);
}

TEST(SimulationTest, OracleWithHugeFrames) {
  Simulation simulation(kRegionBytes, FrameKind::kHuge, kGuests, 4096);
  simulation.TouchEverything(kRegionBytes);
  EXPECT_EQ(simulation.segment().tables.Info(simulation.mm()).huge_blocks,
            kRegionBytes / kBlockSize);
  const uint64_t plain = PlainBytes(kGuests, kRegionBytes);
  EXPECT_EQ(plain / kGib, 878u);
  const uint64_t ours = simulation.bytes_of_tables();
  Report("1,500 guests x 300 GiB, 2 MiB leaves, measured", ours, plain);
  // One top per guest and one of the file's own; one table per GiB, shared by all.
  EXPECT_EQ(ours, (kGuests + 1 + kRegionBytes / kGib) * kTableBytes);
  EXPECT_LT(ours, plain / 100000);
  EXPECT_EQ(CheckInvariants(simulation.segment().reader()), std::vector<std::string>());
  simulation.Finish();
}

// 4 KiB leaves for 300 GiB would take 600 MiB of this machine's memory once. So 3 GiB are done in
// full and the part that grows with the region is multiplied by 100.
TEST(SimulationTest, OracleWithSmallFramesScaledFrom3Gib) {
  constexpr uint64_t kScale = 100;
  constexpr uint64_t kBytes = kRegionBytes / kScale;
  Simulation simulation(kBytes, FrameKind::kHuge, kGuests, 8192);
  // Hints keep every page small.
  simulation.segment().tables.ForEachGuest([&](const GuestInfo& guest) {
    EXPECT_EQ(simulation.segment().tables.FlagRange(guest.id, GuestAddr(kGib), PagesFloor(kBytes),
                                                    kHintSmall, 0),
              TableStatus::kOk);
  });
  simulation.TouchEverything(kBytes);
  EXPECT_EQ(simulation.segment().tables.Info(simulation.mm()).small_pages, PagesFloor(kBytes));
  const uint64_t tops = (kGuests + 1) * kTableBytes;
  const uint64_t below = simulation.bytes_of_tables() - tops;
  EXPECT_EQ(below, (kBytes / kBlockSize + kBytes / kGib) * kTableBytes);
  const uint64_t scaled = tops + below * kScale;
  const uint64_t plain = PlainBytes(kGuests, kRegionBytes);
  Report("1,500 guests x 300 GiB, 4 KiB leaves, scaled by 100 from 3 GiB", scaled, plain);
  EXPECT_LT(scaled, plain / 1000);
  EXPECT_EQ(CheckInvariants(simulation.segment().reader()), std::vector<std::string>());
  simulation.Finish();
}

// Phillips' point, for memory that everybody writes: a snapshot copies one table, whatever the size
// of the region and however many share it, and later only what is written.
TEST(SimulationTest, ASnapshotOfTheOracleCopiesOneTable) {
  Simulation simulation(kRegionBytes, FrameKind::kHuge, kGuests, 4096);
  simulation.TouchEverything(kRegionBytes);
  HostTables& tables = simulation.segment().tables;
  CowTables cow(&tables);
  const uint64_t before = simulation.bytes_of_tables();
  MmId snapshot;
  ASSERT_EQ(cow.Take(simulation.mm(), {}, &snapshot), TableStatus::kOk);
  ASSERT_EQ(tables.PinMm(snapshot), TableStatus::kOk);
  EXPECT_EQ(simulation.bytes_of_tables(), before + kTableBytes);
  EXPECT_EQ(tables.Stats().Of(FaultCounter::kTablesCopiedAtTake), 1u);
  EXPECT_EQ(tables.Stats().Of(FaultCounter::kTablesCopiedLater), 0u);
  // One page in each of 100 GiB: its pmd table, and a pte table for its block.
  for (uint64_t gib = 0; gib < 100; ++gib) {
    uint32_t uses = 0;
    ASSERT_EQ(cow.Privatize(simulation.mm(), FilePage(gib * kGib / kPageSize), PageCount(1),
                            FrameNumber(gib), &uses),
              TableStatus::kOk);
  }
  EXPECT_EQ(tables.Stats().Of(FaultCounter::kTablesCopiedLater), 200u);
  EXPECT_EQ(simulation.bytes_of_tables(), before + 201 * kTableBytes);
  EXPECT_EQ(CheckInvariants(simulation.segment().reader()), std::vector<std::string>());
  ReleasedMms released;
  ASSERT_EQ(tables.UnpinMm(snapshot, &released), TableStatus::kOk);
  EXPECT_EQ(simulation.bytes_of_tables(), before);
  simulation.Finish();
}

}  // namespace
}  // namespace hostmm
