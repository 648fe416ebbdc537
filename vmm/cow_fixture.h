// CowTablesTest: a segment, a file, a pool of frame numbers that plays the pre-image store, and
// what tests of snapshots say often.
//
// Units:   pages and frames are plain numbers here.
// Threads: none.
// Errors:  what must succeed and does not fails the test. At its end the segment must be sound.

#ifndef HOSTMM_VMM_COW_FIXTURE_H_
#define HOSTMM_VMM_COW_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/frame_pool.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {

inline constexpr uint64_t kBase = uint64_t{1} << 30;
// Always copy on the first write, whatever the size of the file.
inline constexpr CowPolicy kAlwaysShare{.min_shared_tables = 1};

using Runs = std::vector<std::pair<uint64_t, uint64_t>>;

class CowTablesTest : public testing::Test {
 protected:
  CowTablesTest() { Format({.max_guests = 8, .max_mms = 16, .max_regions = 32, .max_nodes = 256}); }
  ~CowTablesTest() override { ExpectSound(); }

  void Format(const SegmentConfig& config) {
    segment_ = std::make_unique<TestSegment>(config);
    segment_->tables.SetFrameSink([this](MmId source, FrameNumber first, PageCount count) {
      EXPECT_EQ(source, file_);
      for (uint64_t i = 0; i < count.value(); ++i) {
        const FrameNumber frame(first.value() + i);
        if (pool_.Drop(frame)) pool_.Recycle(frame, 1);
        ++drops_;
      }
    });
    guest_ = segment_->AddGuest();
  }
  HostTables& tables() { return segment_->tables; }
  CowTables cow() { return CowTables(&segment_->tables); }
  uint32_t nodes() { return segment_->reader().Pools().nodes; }
  uint64_t Counter(FaultCounter counter) { return tables().Stats().Of(counter); }
  void ExpectSound() { EXPECT_EQ(CheckInvariants(segment_->reader()), std::vector<std::string>()); }

  void AddFile(PageCount length, FrameKind frames = FrameKind::kHuge) {
    file_ = segment_->AddMm(length, frames);
    ASSERT_EQ(tables().PinMm(file_), TableStatus::kOk);
  }
  // A pte table in each block, with a page in it.
  void Touch(uint64_t blocks) {
    ASSERT_EQ(tables().MapRegion(guest_, {.va = GuestAddr(kBase),
                                          .length = tables().Info(file_).length,
                                          .mm = file_,
                                          .file_page = FilePage(0),
                                          .access = AccessSet::ReadWrite(),
                                          .flags = kHintSmall}),
              TableStatus::kOk);
    for (uint64_t block = 0; block < blocks; ++block) {
      const FaultDecision decision =
          Decide(tables(), {.guest = guest_, .addr = GuestAddr(kBase + block * kBlockSize)}, {});
      ASSERT_EQ(decision.action, FaultAction::kPopulate);
      Commit(tables(), decision, Outcome::kDone, decision.grain);
    }
  }
  MmId Take(const CowPolicy& policy = kAlwaysShare) {
    MmId id;
    EXPECT_EQ(cow().Take(file_, policy, &id), TableStatus::kOk);
    EXPECT_EQ(tables().PinMm(id), TableStatus::kOk);
    return id;
  }
  void Drop(MmId snapshot) {
    ReleasedMms released;
    EXPECT_EQ(tables().UnpinMm(snapshot, &released), TableStatus::kOk);
    EXPECT_EQ(released, ReleasedMms({snapshot}));
    ExpectSound();
  }
  // A first write; RETURNS the frame of the pre-image.
  FrameNumber Write(uint64_t page, uint64_t count = 1, uint32_t wanted_uses = 1) {
    const FrameNumber frame = *pool_.Allocate(count);
    uint32_t uses = 99;
    EXPECT_EQ(cow().Privatize(file_, FilePage(page), PageCount(count), frame, &uses),
              TableStatus::kOk);
    EXPECT_EQ(uses, wanted_uses);
    pool_.SetUses(frame, count, uses);
    ExpectSound();
    return frame;
  }
  CowTables::Page Live(uint64_t page) { return {CowTables::Page::From::kLive, FrameNumber(page)}; }
  CowTables::Page Copy(FrameNumber frame, uint64_t offset = 0) {
    return {CowTables::Page::From::kPreimage, FrameNumber(frame.value() + offset)};
  }
  CowTables::Page Find(MmId snapshot, uint64_t page) {
    return cow().Find(snapshot, FilePage(page));
  }
  bool IsShared(uint64_t page) { return cow().IsShared(file_, FilePage(page)); }
  Runs Changes(MmId earlier, MmId later) {
    Runs runs;
    FilePage from(0);
    while (const auto next = cow().NextChange(earlier, later, from)) {
      from = next->first + next->count;
      // One table tells no more than its own part of a run.
      if (!runs.empty() && runs.back().first + runs.back().second == next->first.value()) {
        runs.back().second += next->count.value();
      } else {
        runs.push_back({next->first.value(), next->count.value()});
      }
    }
    return runs;
  }

  std::unique_ptr<TestSegment> segment_;
  GuestId guest_;
  MmId file_;
  FramePool pool_{1 << 20};
  uint64_t drops_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_COW_FIXTURE_H_
