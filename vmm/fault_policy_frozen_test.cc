// What is decided of a fault while the file has a snapshot: in the live region, and in views of it.

#include <gtest/gtest.h>

#include "vmm/cow_tables.h"
#include "vmm/fault_policy.h"
#include "vmm/fault_policy_fixture.h"

namespace hostmm {
namespace {

// A file that has a snapshot, mapped as it is while it has one.
class FrozenTest : public FaultPolicyTest {
 protected:
  void Freeze(FrameKind frames, uint32_t flags = 0) {
    MapAll(frames, flags);
    if (frames == FrameKind::kHugetlb) {
      Resolve(0);
    } else {
      for (uint64_t page = 0; page < 16; page += 4) {
        if (StateOf(page) == PageState::kEmpty) Resolve(page);
      }
    }
    ASSERT_EQ(CowTables(&tables_).Take(mm_, {}, &snapshot_), TableStatus::kOk);
    ASSERT_EQ(tables_.PinMm(snapshot_), TableStatus::kOk);
  }
  FaultDecision Touch(uint64_t page, Access access, FaultKind kind) {
    FaultEvent event = Event(page, kind);
    event.access = access;
    const FaultDecision decision = Decide(tables_, event, climate_);
    if (decision.action != FaultAction::kPopulate) {
      Commit(tables_, decision, Outcome::kDone, decision.grain);
    }
    return decision;
  }
  void Privatize(const FaultDecision& decision) {
    uint32_t uses = 0;
    EXPECT_EQ(
        CowTables(&tables_).Privatize(mm_, decision.first, decision.count, FrameNumber(0), &uses),
        TableStatus::kOk);
    EXPECT_EQ(uses, 1u);
  }
  void ExpectIs(const FaultDecision& decision, FaultAction action, FaultCause cause, uint64_t first,
                uint64_t count) {
    EXPECT_EQ(decision.action, action);
    EXPECT_EQ(decision.cause, cause);
    EXPECT_EQ(decision.first, FilePage(first));
    EXPECT_EQ(decision.count, PageCount(count));
    EXPECT_EQ(decision.wake_start, GuestAddr(kBase + first * kPageSize));
    EXPECT_EQ(decision.wake_bytes, count * kPageSize);
  }

  MmId snapshot_;
};

TEST_F(FrozenTest, AReadOfASharedPageIsMappedProtected) {
  Freeze(FrameKind::kHuge);
  climate_.tracked_around = PageCount(8);
  const FaultDecision read = Touch(5, Access::kRead, FaultKind::kMinor);
  ExpectIs(read, FaultAction::kContinue, FaultCause::kPresent, 0, 8);
  EXPECT_TRUE(read.write_protect);
  // Not known yet.
  const FaultDecision unknown = Touch(100, Access::kRead, FaultKind::kMinor);
  ExpectIs(unknown, FaultAction::kContinue, FaultCause::kUnknownPresent, 100, 1);
  EXPECT_TRUE(unknown.write_protect);
}

TEST_F(FrozenTest, TheFirstWriteIsPrivatizedTheNextIsNot) {
  for (FaultKind kind : {FaultKind::kMinor, FaultKind::kWriteProtect}) {
    if (!mm_.valid()) Freeze(FrameKind::kHuge);
    const uint64_t page = kind == FaultKind::kMinor ? 5 : 6;
    const FaultDecision first = Touch(page, Access::kWrite, kind);
    ExpectIs(first, FaultAction::kPrivatize, FaultCause::kFirstWrite, page, 1);
    EXPECT_EQ(tables_.Stats().outstanding_faults, 0u);
    uint32_t uses = 0;
    EXPECT_EQ(
        CowTables(&tables_).Privatize(mm_, first.first, first.count, FrameNumber(page), &uses),
        TableStatus::kOk);
    climate_.tracked_around = PageCount(8);
    for (Access access : {Access::kRead, Access::kWrite}) {
      const FaultDecision minor = Touch(page, access, FaultKind::kMinor);
      ExpectIs(minor, FaultAction::kContinue, FaultCause::kPrivatized, page, 1);
      EXPECT_FALSE(minor.write_protect);
    }
    ExpectIs(Touch(page, Access::kWrite, FaultKind::kWriteProtect), FaultAction::kUnprotect,
             FaultCause::kPrivatized, page, 1);
  }
}

TEST_F(FrozenTest, HugetlbIsDecidedByTheBlock) {
  Freeze(FrameKind::kHugetlb);
  const FaultDecision read = Touch(5, Access::kRead, FaultKind::kMinor);
  ExpectIs(read, FaultAction::kContinue, FaultCause::kPresent, 0, kPagesPerBlock);
  EXPECT_TRUE(read.write_protect);
  const FaultDecision write = Touch(5, Access::kWrite, FaultKind::kWriteProtect);
  ExpectIs(write, FaultAction::kPrivatize, FaultCause::kFirstWrite, 0, kPagesPerBlock);
  EXPECT_EQ(write.grain, Grain::kHuge);
  Privatize(write);
  const FaultDecision again = Touch(511, Access::kWrite, FaultKind::kWriteProtect);
  ExpectIs(again, FaultAction::kUnprotect, FaultCause::kPrivatized, 0, kPagesPerBlock);
  EXPECT_EQ(again.grain, Grain::kHuge);
  const FaultDecision minor = Touch(511, Access::kWrite, FaultKind::kMinor);
  ExpectIs(minor, FaultAction::kContinue, FaultCause::kPrivatized, 0, kPagesPerBlock);
  EXPECT_FALSE(minor.write_protect);
  EXPECT_EQ(minor.grain, Grain::kHuge);
}

// A hole is filled as ever; the retry is a minor fault.
TEST_F(FrozenTest, AHoleIsPopulatedFirst) {
  Freeze(FrameKind::kHuge);
  const FaultDecision hole = Touch(600, Access::kWrite, FaultKind::kMissing);
  EXPECT_EQ(hole.action, FaultAction::kPopulate);
  EXPECT_EQ(Touch(600, Access::kWrite, FaultKind::kMinor).action, FaultAction::kJoin);
  Commit(tables_, hole, Outcome::kDone, hole.grain);
  EXPECT_EQ(Touch(600, Access::kWrite, FaultKind::kMinor).action, FaultAction::kPrivatize);
}

// To deny would unregister the range: what is mapped there could be written unseen later.
TEST_F(FrozenTest, NothingIsDeniedForItsAccess) {
  Freeze(FrameKind::kHuge);
  ASSERT_EQ(tables_.ProtectRange(guest_, GuestAddr(kBase), Blocks(kBlocks), Access::kRead),
            TableStatus::kOk);
  EXPECT_EQ(Touch(5, Access::kWrite, FaultKind::kMinor).action, FaultAction::kPrivatize);
  EXPECT_EQ(Touch(5, Access::kWrite, FaultKind::kWriteProtect).action, FaultAction::kPrivatize);
  ReleasedMms released;
  ASSERT_EQ(tables_.UnpinMm(snapshot_, &released), TableStatus::kOk);
  EXPECT_EQ(Touch(5, Access::kWrite, FaultKind::kWriteProtect).cause, FaultCause::kForbidden);
}

// A write to a private mapping is the kernel's to copy; the file keeps its page.
TEST_F(FrozenTest, APrivateMappingNeverWritesTheFile) {
  Freeze(FrameKind::kHuge, kPrivate);
  const FaultDecision minor = Touch(5, Access::kWrite, FaultKind::kMinor);
  EXPECT_EQ(minor.action, FaultAction::kContinue);
  EXPECT_TRUE(minor.write_protect);
  ExpectIs(Touch(5, Access::kWrite, FaultKind::kWriteProtect), FaultAction::kUnprotect,
           FaultCause::kWriteProtected, 5, 1);
}

TEST_F(FrozenTest, AfterTheLastSnapshotAllIsAsBefore) {
  Freeze(FrameKind::kHuge);
  ReleasedMms released;
  ASSERT_EQ(tables_.UnpinMm(snapshot_, &released), TableStatus::kOk);
  const FaultDecision minor = Touch(5, Access::kWrite, FaultKind::kMinor);
  EXPECT_EQ(minor.action, FaultAction::kContinue);
  EXPECT_FALSE(minor.write_protect);
  ExpectIs(Touch(5, Access::kWrite, FaultKind::kWriteProtect), FaultAction::kWake,
           FaultCause::kWriteProtected, 5, 1);
}

TEST_F(FrozenTest, ViewsAreLookedAtByWhoServesThem) {
  Freeze(FrameKind::kHuge);
  const uint64_t view = kBase + 64 * kBlockSize;
  ASSERT_EQ(tables_.MapRegion(guest_, {.va = GuestAddr(view),
                                       .length = Blocks(kBlocks + 1),
                                       .mm = snapshot_,
                                       .file_page = FilePage(0),
                                       .access = AccessSet::ReadWrite(),
                                       .flags = kView}),
            TableStatus::kOk);
  const auto touch = [&](uint64_t page, FaultKind kind) {
    return Decide(tables_,
                  {.guest = guest_,
                   .addr = GuestAddr(view + page * kPageSize),
                   .access = Access::kWrite,
                   .kind = kind},
                  climate_);
  };
  for (FaultKind kind : {FaultKind::kMissing, FaultKind::kMinor, FaultKind::kWriteProtect}) {
    const FaultDecision decision = touch(700, kind);
    EXPECT_EQ(decision.action, FaultAction::kView);
    EXPECT_EQ(decision.cause, FaultCause::kViewTouch);
    EXPECT_EQ(decision.mm, snapshot_);
    EXPECT_EQ(decision.first, FilePage(700));
    EXPECT_EQ(decision.count, PageCount(1));
    EXPECT_EQ(decision.wake_start, GuestAddr(view + 700 * kPageSize));
  }
  EXPECT_EQ(tables_.Stats().outstanding_faults, 0u);
  EXPECT_EQ(touch(kBlocks * kPagesPerBlock, FaultKind::kMissing).cause, FaultCause::kBeyondFile);
  ReleasedMms released;
  CowTables(&tables_).Lose(snapshot_, &released);
  EXPECT_EQ(touch(700, FaultKind::kMinor).action, FaultAction::kDeny);
  EXPECT_EQ(touch(700, FaultKind::kMinor).cause, FaultCause::kLostSnapshot);
}

TEST_F(FrozenTest, AViewOfHugetlbIsAnsweredByTheBlock) {
  Freeze(FrameKind::kHugetlb);
  const uint64_t view = kBase + 64 * kBlockSize;
  ASSERT_EQ(tables_.MapRegion(guest_, {.va = GuestAddr(view),
                                       .length = Blocks(kBlocks),
                                       .mm = snapshot_,
                                       .file_page = FilePage(0),
                                       .access = Access::kRead,
                                       .flags = kView}),
            TableStatus::kOk);
  const FaultDecision decision =
      Decide(tables_, {.guest = guest_, .addr = GuestAddr(view + 700 * kPageSize)}, climate_);
  EXPECT_EQ(decision.action, FaultAction::kView);
  EXPECT_EQ(decision.grain, Grain::kHuge);
  EXPECT_EQ(decision.first, FilePage(512));
  EXPECT_EQ(decision.count, Blocks(1));
}

}  // namespace
}  // namespace hostmm
