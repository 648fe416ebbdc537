// FaultPolicyTest: one guest that maps one file, whose faults are decided and committed without any
// pager.
//
// Units:   pages are plain numbers, counted from the start of the file and of the mapping at kBase.
// Threads: none.
// Errors:  at the end of a test the segment must be sound and every fault accounted for.

#ifndef HOSTMM_VMM_FAULT_POLICY_FIXTURE_H_
#define HOSTMM_VMM_FAULT_POLICY_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "vmm/fault_policy.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {

inline constexpr uint64_t kBase = uint64_t{1} << 30;
inline constexpr uint64_t kBlocks = 8;
constexpr PageCount Blocks(uint64_t count) { return PageCount(count * kPagesPerBlock); }

class FaultPolicyTest : public testing::Test {
 protected:
  ~FaultPolicyTest() override {
    EXPECT_EQ(CheckInvariants(segment_.reader()), std::vector<std::string>());
    EXPECT_EQ(tables_.Stats().Unaccounted(), 0);
  }

  void MapAll(FrameKind frames, uint32_t flags = 0, PageCount length = Blocks(kBlocks)) {
    mm_ = segment_.AddMm(length, frames);
    ASSERT_EQ(tables_.MapRegion(guest_, {.va = GuestAddr(kBase),
                                         .length = length,
                                         .mm = mm_,
                                         .file_page = FilePage(0),
                                         .access = AccessSet::ReadWrite(),
                                         .flags = flags}),
              TableStatus::kOk);
  }
  FaultEvent Event(uint64_t page, FaultKind kind = FaultKind::kMissing) {
    return {.guest = guest_,
            .addr = GuestAddr(kBase + page * kPageSize + 123),
            .access = Access::kWrite,
            .kind = kind};
  }
  FaultDecision Fault(uint64_t page, FaultKind kind = FaultKind::kMissing) {
    return Decide(tables_, Event(page, kind), climate_);
  }
  // Decides and commits as done with the grain that was wanted.
  FaultDecision Resolve(uint64_t page) {
    const FaultDecision decision = Fault(page);
    Commit(tables_, decision, Outcome::kDone, decision.grain);
    return decision;
  }
  // Block 0 gets so many pages that its next fault collapses it.
  void MakeDense() {
    for (uint64_t page = 0; tables_.Info(mm_).small_pages < kDensePages; page += 4) {
      if (StateOf(page) == PageState::kEmpty) Resolve(page);
    }
  }
  PageState StateOf(uint64_t page) { return segment_.reader().Lookup(mm_, FilePage(page)).state; }

  TestSegment segment_{{.max_guests = 8, .max_mms = 4, .max_regions = 16, .max_nodes = 16}};
  HostTables& tables_ = segment_.tables;
  ReleasedMms released_;
  GuestId guest_ = segment_.AddGuest();
  MmId mm_;
  Climate climate_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_FAULT_POLICY_FIXTURE_H_
