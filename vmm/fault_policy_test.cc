// The road of one fault through the tables: what is decided, what is marked, what Commit leaves.

#include "vmm/fault_policy.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "vmm/fault_policy_fixture.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

TEST_F(FaultPolicyTest, FirstTouchMarksCommitLands) {
  MapAll(FrameKind::kHuge);
  const FaultDecision decision = Fault(9);
  EXPECT_EQ(decision.action, FaultAction::kPopulate);
  EXPECT_EQ(decision.cause, FaultCause::kFirstTouch);
  EXPECT_EQ(decision.grain, Grain::kSmall);
  EXPECT_EQ(decision.first, FilePage(8));
  EXPECT_EQ(decision.count, PageCount(4));
  EXPECT_EQ(decision.block, BlockIndex(0));
  EXPECT_EQ(decision.wake_start, GuestAddr(kBase + 8 * kPageSize));
  EXPECT_EQ(decision.wake_bytes, 4 * kPageSize);
  EXPECT_EQ(StateOf(8), PageState::kInFlight);
  EXPECT_EQ(StateOf(12), PageState::kEmpty);
  EXPECT_EQ(tables_.Stats().outstanding_faults, 1u);
  EXPECT_EQ(tables_.Stats().in_flight_entries, 4u);
  Commit(tables_, decision, Outcome::kDone, Grain::kSmall);
  EXPECT_EQ(StateOf(8), PageState::kPresentSmall);
  EXPECT_EQ(tables_.Stats().outstanding_faults, 0u);
  EXPECT_EQ(tables_.Info(mm_).small_pages, PageCount(4));
}

TEST_F(FaultPolicyTest, ASecondFaultOnAPageInFlightJoins) {
  MapAll(FrameKind::kHuge);
  const FaultDecision first = Fault(9);
  const FaultDecision second = Fault(10);
  EXPECT_EQ(second.action, FaultAction::kJoin);
  EXPECT_EQ(second.cause, FaultCause::kInFlight);
  EXPECT_EQ(second.first, FilePage(10));
  EXPECT_EQ(second.wake_start, GuestAddr(kBase + 10 * kPageSize));
  Commit(tables_, second, Outcome::kDone, Grain::kSmall);  // does nothing
  EXPECT_EQ(StateOf(9), PageState::kInFlight);
  Commit(tables_, first, Outcome::kDone, Grain::kSmall);
}

TEST_F(FaultPolicyTest, RangesOfRunningPopulatesDoNotOverlap) {
  MapAll(FrameKind::kHuge);
  const FaultDecision first = Fault(9);
  for (uint64_t page = 0; page < 8; page += 4) Resolve(page);
  const FaultDecision second = Fault(12);  // 8..11 is in flight, so this follows nothing
  EXPECT_EQ(second.cause, FaultCause::kFillAround);
  EXPECT_EQ(second.first, FilePage(12));
  EXPECT_EQ(second.count, PageCount(4));
  Commit(tables_, second, Outcome::kDone, Grain::kSmall);
  EXPECT_EQ(StateOf(9), PageState::kInFlight);
  Commit(tables_, first, Outcome::kDone, Grain::kSmall);
}

TEST_F(FaultPolicyTest, EveryFailurePutsEntriesBack) {
  for (Outcome outcome : {Outcome::kOutOfFrames, Outcome::kGuestGone, Outcome::kFailed}) {
    if (!mm_.valid()) MapAll(FrameKind::kHuge);
    const uint32_t nodes = segment_.reader().Pools().nodes;
    const FaultDecision decision = Fault(9);
    Commit(tables_, decision, outcome, Grain::kSmall);
    EXPECT_EQ(StateOf(9), PageState::kEmpty);
    EXPECT_EQ(segment_.reader().Pools().nodes, nodes);
  }
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kOutOfFrames), 1u);
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kGuestGone), 1u);
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kFailed), 1u);
}

TEST_F(FaultPolicyTest, ADenseBlockCollapsesAndTheNeighbourFollows) {
  MapAll(FrameKind::kHuge);
  MakeDense();
  const FaultDecision third = Fault(300);
  EXPECT_EQ(third.grain, Grain::kCollapse);
  EXPECT_EQ(third.cause, FaultCause::kDense);
  EXPECT_EQ(third.first, FilePage(0));
  EXPECT_EQ(third.count, Blocks(1));
  EXPECT_EQ(StateOf(0), PageState::kInFlight);  // also what was present: nobody may interfere
  EXPECT_EQ(Fault(0).action, FaultAction::kJoin);
  // While that runs the next block is already treated as a part of the same fill.
  EXPECT_EQ(Resolve(600).probe, Probe::kNeighbour);
  ASSERT_EQ(tables_.PunchRange(mm_, FilePage(512), Blocks(1)), TableStatus::kOk);
  Commit(tables_, third, Outcome::kDone, Grain::kCollapse);
  EXPECT_EQ(StateOf(511), PageState::kPresentHuge);
  EXPECT_EQ(tables_.Info(mm_).small_pages, PageCount(0));

  const FaultDecision neighbour = Fault(513);
  EXPECT_EQ(neighbour.grain, Grain::kHuge);
  EXPECT_EQ(neighbour.cause, FaultCause::kHugeNeighbour);
  EXPECT_EQ(neighbour.probe, Probe::kNeighbour);
  EXPECT_EQ(neighbour.neighbour, BlockIndex(0));
  EXPECT_EQ(neighbour.fallback_first, FilePage(512));
  EXPECT_EQ(neighbour.fallback_count, PageCount(4));
  EXPECT_EQ(neighbour.wake_bytes, kBlockSize);
  EXPECT_EQ(Fault(1000).action, FaultAction::kJoin);
  Commit(tables_, neighbour, Outcome::kDone, Grain::kHuge);
  EXPECT_EQ(tables_.Info(mm_).huge_blocks, 2u);
}

TEST_F(FaultPolicyTest, AProbeThatFailsLeavesTheFallback) {
  MapAll(FrameKind::kHuge);
  ASSERT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(1)), TableStatus::kOk);
  const FaultDecision decision = Fault(3);
  ASSERT_EQ(decision.probe, Probe::kNeighbour);
  EXPECT_EQ(decision.neighbour, BlockIndex(1));
  Commit(tables_, decision, Outcome::kDone, Grain::kSmall);
  EXPECT_EQ(StateOf(3), PageState::kPresentSmall);
  EXPECT_EQ(StateOf(4), PageState::kEmpty);
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kHugeFallbacks), 1u);
  // It counted as the block's first touch.
  EXPECT_EQ(Fault(200).cause, FaultCause::kFillAround);
}

TEST_F(FaultPolicyTest, ACollapseThatFailsLeavesSmallPages) {
  MapAll(FrameKind::kHuge);
  MakeDense();
  Commit(tables_, Fault(300), Outcome::kDone, Grain::kSmall);
  EXPECT_EQ(StateOf(511), PageState::kPresentSmall);
  EXPECT_EQ(tables_.Info(mm_).small_pages, Blocks(1));
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kCollapseFailures), 1u);
}

TEST_F(FaultPolicyTest, ACollapseOutOfFramesPutsPresentPagesBack) {
  MapAll(FrameKind::kHuge);
  MakeDense();
  const uint64_t before = tables_.Info(mm_).small_pages.value();
  Commit(tables_, Fault(300), Outcome::kOutOfFrames, Grain::kCollapse);
  EXPECT_EQ(tables_.Info(mm_).small_pages.value(), before);
  EXPECT_EQ(StateOf(300), PageState::kEmpty);
}

TEST_F(FaultPolicyTest, NoCollapseWhileAnotherPopulateRuns) {
  MapAll(FrameKind::kHuge);
  for (uint64_t page = 0; page < 124; page += 4) Resolve(page);
  const FaultDecision running = Fault(300);
  while (StateOf(127) == PageState::kEmpty) Resolve(124);
  const FaultDecision third = Fault(400);  // dense by now
  EXPECT_EQ(third.grain, Grain::kSmall);
  Commit(tables_, running, Outcome::kDone, Grain::kSmall);
  Commit(tables_, third, Outcome::kDone, Grain::kSmall);
}

TEST_F(FaultPolicyTest, APunchDuringAPopulateIsDecidedByCommit) {
  MapAll(FrameKind::kHuge, kHintHuge);
  const FaultDecision lands = Fault(0);
  ASSERT_EQ(tables_.PunchRange(mm_, FilePage(0), Blocks(1)), TableStatus::kOk);
  EXPECT_EQ(StateOf(0), PageState::kInFlight);
  Commit(tables_, lands, Outcome::kDone, Grain::kHuge);
  EXPECT_EQ(StateOf(0), PageState::kPresentHuge);
  const FaultDecision refill = Fault(0);
  ASSERT_EQ(tables_.PunchRange(mm_, FilePage(0), Blocks(1)), TableStatus::kOk);
  Commit(tables_, refill, Outcome::kFailed, Grain::kHuge);
  EXPECT_EQ(StateOf(0), PageState::kEmpty);  // the old frame is gone
}

TEST_F(FaultPolicyTest, AHolePunchedBehindUsIsFilledAgain) {
  MapAll(FrameKind::kHuge);
  Resolve(9);
  const FaultDecision small = Fault(9);
  EXPECT_EQ(small.action, FaultAction::kPopulate);
  EXPECT_EQ(small.cause, FaultCause::kRefill);
  EXPECT_EQ(small.count, PageCount(1));
  Commit(tables_, small, Outcome::kFailed, Grain::kSmall);
  EXPECT_EQ(StateOf(9), PageState::kPresentSmall);
  ASSERT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(3)), TableStatus::kOk);
  const FaultDecision huge = Fault(3 * 512 + 7);
  EXPECT_EQ(huge.cause, FaultCause::kRefill);
  EXPECT_EQ(huge.grain, Grain::kHuge);
  EXPECT_EQ(huge.fallback_first, FilePage(3 * 512 + 4));
  Commit(tables_, huge, Outcome::kDone, Grain::kSmall);
  EXPECT_EQ(StateOf(3 * 512 + 7), PageState::kPresentSmall);
  EXPECT_EQ(StateOf(3 * 512 + 8), PageState::kEmpty);
}

TEST_F(FaultPolicyTest, TheTailOfTheFileStaysSmall) {
  MapAll(FrameKind::kHuge, kHintHuge, Blocks(1) + PageCount(10));
  const FaultDecision decision = Fault(512 + 9);
  EXPECT_EQ(decision.grain, Grain::kSmall);
  EXPECT_EQ(decision.first, FilePage(512 + 8));
  EXPECT_EQ(decision.count, PageCount(2));  // clipped to the file
  Commit(tables_, decision, Outcome::kDone, Grain::kSmall);
}

TEST_F(FaultPolicyTest, WakesOnlyWhatTheRegionMaps) {
  mm_ = segment_.AddMm(Blocks(4), FrameKind::kHugetlb);
  ASSERT_EQ(tables_.MapRegion(guest_, {.va = GuestAddr(kBase),
                                       .length = PageCount(600),
                                       .mm = mm_,
                                       .file_page = FilePage(500),
                                       .access = AccessSet::ReadWrite()}),
            TableStatus::kOk);
  const FaultDecision decision = Fault(3);  // file page 503, block 0
  EXPECT_EQ(decision.first, FilePage(0));
  EXPECT_EQ(decision.wake_start, GuestAddr(kBase));
  EXPECT_EQ(decision.wake_bytes, 12 * kPageSize);
  Commit(tables_, decision, Outcome::kDone, Grain::kHuge);
}

TEST_F(FaultPolicyTest, BaseFramesCollapseOnTheFaultThatFillsTheBlock) {
  MapAll(FrameKind::kBase);
  std::vector<FaultCause> causes;
  for (uint64_t page = 0; StateOf(511) == PageState::kEmpty; ++page) {
    if (StateOf(page) == PageState::kEmpty) causes.push_back(Resolve(page).cause);
  }
  using enum FaultCause;
  EXPECT_EQ(causes.front(), kFirstTouch);
  EXPECT_EQ(causes.back(), kFilled);
  EXPECT_LE(causes.size(), 8u);
  EXPECT_EQ(tables_.Info(mm_).huge_blocks, 1u);
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kCollapses), 1u);
}

TEST_F(FaultPolicyTest, TrackedBaseFramesGoPageByPage) {
  MapAll(FrameKind::kBase, kTracked);
  for (uint64_t page : {0, 1, 2, 3}) {
    const FaultDecision decision = Resolve(page);
    EXPECT_EQ(decision.count, PageCount(1));
    EXPECT_EQ(decision.grain, Grain::kSmall);
  }
  const FaultDecision minor = Fault(2, FaultKind::kMinor);
  EXPECT_EQ(minor.action, FaultAction::kContinue);
  EXPECT_EQ(minor.cause, FaultCause::kPresent);
  EXPECT_EQ(minor.first, FilePage(2));
  EXPECT_EQ(minor.count, PageCount(1));
}

TEST_F(FaultPolicyTest, MinorFaultAroundStopsAtHolesAndEdges) {
  MapAll(FrameKind::kBase, kTracked);
  climate_.tracked_around = PageCount(1);
  for (uint64_t page : {0, 1, 2, 4}) Resolve(page);
  climate_.tracked_around = PageCount(16);
  const FaultDecision minor = Fault(1, FaultKind::kMinor);
  EXPECT_EQ(minor.first, FilePage(0));
  EXPECT_EQ(minor.count, PageCount(3));
  EXPECT_EQ(minor.wake_bytes, 3 * kPageSize);
}

// A window that is no power of two must not reach into the block before.
TEST_F(FaultPolicyTest, WindowsEndAtTheBlock) {
  MapAll(FrameKind::kBase, kTracked);
  climate_.tracked_around = PageCount(9);
  const FaultDecision decision = Resolve(kPagesPerBlock);
  EXPECT_EQ(decision.first, FilePage(kPagesPerBlock));
  EXPECT_EQ(decision.count, PageCount(1));
  ASSERT_EQ(tables_.SetBlockCollapsed(mm_, BlockIndex(2)), TableStatus::kOk);
  const FaultDecision minor = Fault(2 * kPagesPerBlock, FaultKind::kMinor);
  EXPECT_EQ(minor.first, FilePage(2 * kPagesPerBlock));
}

TEST_F(FaultPolicyTest, AMinorFaultTeachesTheTable) {
  MapAll(FrameKind::kBase, kTracked);
  const FaultDecision minor = Fault(77, FaultKind::kMinor);
  EXPECT_EQ(minor.action, FaultAction::kContinue);
  EXPECT_EQ(minor.cause, FaultCause::kUnknownPresent);
  EXPECT_EQ(StateOf(77), PageState::kPresentSmall);
  EXPECT_EQ(Fault(77, FaultKind::kMinor).cause, FaultCause::kPresent);
}

TEST_F(FaultPolicyTest, MinorFaultsOfHugetlbAreWholeBlocks) {
  MapAll(FrameKind::kHugetlb);
  const FaultDecision minor = Fault(77, FaultKind::kMinor);
  EXPECT_EQ(minor.cause, FaultCause::kUnknownPresent);
  EXPECT_EQ(minor.count, Blocks(1));
  EXPECT_EQ(StateOf(0), PageState::kPresentHuge);
}

TEST_F(FaultPolicyTest, WhatIsNotOursIsDenied) {
  MapAll(FrameKind::kAdopted);
  EXPECT_EQ(Fault(0).cause, FaultCause::kAdoptedFile);
  EXPECT_EQ(Fault(0).action, FaultAction::kDeny);
  EXPECT_EQ(Fault(kBlocks * 512).cause, FaultCause::kNoRegion);
  EXPECT_EQ(Decide(tables_, {.guest = GuestId{3, 3}}, climate_).cause, FaultCause::kNoSuchGuest);
  EXPECT_EQ(tables_.Stats().Denied(), 4u);
}

TEST_F(FaultPolicyTest, BehindTheEndOfTheFileIsDenied) {
  mm_ = segment_.AddMm(PageCount(10));
  ASSERT_EQ(tables_.MapRegion(guest_, {.va = GuestAddr(kBase),
                                       .length = PageCount(20),
                                       .mm = mm_,
                                       .file_page = FilePage(0),
                                       .access = AccessSet::ReadWrite()}),
            TableStatus::kOk);
  EXPECT_EQ(Fault(10).cause, FaultCause::kBeyondFile);
  EXPECT_EQ(Resolve(9).count, PageCount(2));
}

TEST_F(FaultPolicyTest, WriteProtectFaults) {
  MapAll(FrameKind::kBase);
  const FaultDecision allowed = Fault(5, FaultKind::kWriteProtect);
  EXPECT_EQ(allowed.action, FaultAction::kWake);
  EXPECT_EQ(allowed.wake_bytes, kPageSize);
  ASSERT_EQ(tables_.ProtectRange(guest_, GuestAddr(kBase), Blocks(kBlocks), Access::kRead),
            TableStatus::kOk);
  EXPECT_EQ(Fault(5, FaultKind::kWriteProtect).cause, FaultCause::kForbidden);
}

// mprotect and the fault crossed each other: populate, the kernel answers after the wake.
TEST_F(FaultPolicyTest, AnAccessThatTheRegionForbidsIsPopulatedAndCounted) {
  MapAll(FrameKind::kHuge);
  ASSERT_EQ(tables_.ProtectRange(guest_, GuestAddr(kBase), Blocks(kBlocks), Access::kRead),
            TableStatus::kOk);
  const FaultDecision decision = Resolve(0);
  EXPECT_EQ(decision.action, FaultAction::kPopulate);
  EXPECT_EQ(decision.cause, FaultCause::kStaleAccess);
  EXPECT_EQ(StateOf(0), PageState::kPresentSmall);
}

TEST_F(FaultPolicyTest, AGuestThatDiesInTheMiddle) {
  MapAll(FrameKind::kHuge);
  ASSERT_EQ(tables_.PinMm(mm_), TableStatus::kOk);
  const FaultDecision decision = Fault(0);
  ASSERT_EQ(tables_.RemoveGuest(guest_, &released_), TableStatus::kOk);
  EXPECT_EQ(StateOf(0), PageState::kInFlight);
  Commit(tables_, decision, Outcome::kGuestGone, Grain::kSmall);
  EXPECT_EQ(StateOf(0), PageState::kEmpty);
}

TEST_F(FaultPolicyTest, AFileThatGoesInTheMiddle) {
  MapAll(FrameKind::kHuge, kHintHuge);
  const FaultDecision decision = Fault(0);
  ASSERT_EQ(tables_.RemoveGuest(guest_, &released_), TableStatus::kOk);
  EXPECT_EQ(released_, ReleasedMms({mm_}));
  EXPECT_EQ(tables_.Stats().in_flight_entries, 0u);
  // The slot's next user is not touched by the old commit.
  const MmId next = segment_.AddMm(Blocks(kBlocks));
  ASSERT_EQ(next.slot, mm_.slot);
  Commit(tables_, decision, Outcome::kDone, Grain::kHuge);
  EXPECT_EQ(tables_.Info(next).huge_blocks, 0u);
  EXPECT_EQ(tables_.Stats().Of(FaultCounter::kStaleCommits), 1u);
  EXPECT_EQ(tables_.Stats().outstanding_faults, 0u);
}

// Two nodes: the canonical top and the guest's. There is none for a table below.
TEST(FaultPolicyNodesTest, WithoutATableNodeTheFaultIsStillServed) {
  for (FrameKind frames : {FrameKind::kHuge, FrameKind::kHugetlb}) {
    TestSegment segment({.max_guests = 1, .max_mms = 1, .max_regions = 1, .max_nodes = 2});
    const GuestId guest = segment.AddGuest();
    const MmId mm = segment.AddMm(Blocks(4), frames);
    ASSERT_EQ(segment.tables.MapRegion(guest, {.va = GuestAddr(kBase),
                                               .length = Blocks(4),
                                               .mm = mm,
                                               .file_page = FilePage(0),
                                               .access = AccessSet::ReadWrite()}),
              TableStatus::kOk);
    const FaultDecision decision =
        Decide(segment.tables, {.guest = guest, .addr = GuestAddr(kBase + 5 * kPageSize)}, {});
    EXPECT_EQ(decision.action, FaultAction::kPopulate);
    EXPECT_EQ(decision.cause, FaultCause::kUntracked);
    EXPECT_EQ(decision.count, frames == FrameKind::kHuge ? PageCount(1) : Blocks(1));
    Commit(segment.tables, decision, Outcome::kDone, decision.grain);
    EXPECT_EQ(segment.reader().Lookup(mm, FilePage(5)).state, PageState::kEmpty);
    EXPECT_EQ(CheckInvariants(segment.reader()), std::vector<std::string>());
  }
}

}  // namespace
}  // namespace hostmm
