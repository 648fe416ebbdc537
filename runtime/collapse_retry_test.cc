// Collapses that fail for as long as the test wants: a pipe holds a page of the block.
#include "runtime/collapse_retry.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <utility>

#include "runtime/backing.h"
#include "runtime/frame_store.h"
#include "runtime/unique_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "vmm/fault_policy.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr PageCount kLength{2 * kPagesPerBlock};
constexpr BlockIndex kBlock{1};
constexpr GuestAddr kVa{uint64_t{1} << 40};
// Long against any collapse; a test that is right never waits for it.
constexpr int kDeadlineMs = 10'000;

class CollapseRetryTest : public testing::Test {
 protected:
  CollapseRetryTest()
      : pool_(*WorkerPool::NewEventFd(), 1),
        files_(&pool_),
        retry_(&segment_.tables, &files_, &pool_) {}

  void SetUp() override {
    HOSTMM_SKIP_IF(test::WhyNoCollapse());
    UniqueFd file = *FrameStore::Open(FrameKind::kBase)->NewFile(BytesOf(kLength));
    view_ = test::ScopedMapping::SharedFile(file.get(), BytesOf(kLength));
    auto backing = std::make_shared<const Backing>(
        *Backing::Create(FrameKind::kBase, std::move(file), kLength));
    ASSERT_EQ(backing->FillSmall(FirstPageOf(kBlock), PageCount(kPagesPerBlock)),
              Backing::FillResult::kDone);
    mm_ = segment_.AddMm(kLength, FrameKind::kBase);
    files_.AddOwn(mm_, std::move(backing));
    std::array<int, 2> ends;
    ASSERT_EQ(pipe2(ends.data(), O_CLOEXEC), 0);
    out_.reset(ends[0]);
    in_.reset(ends[1]);
  }

  // From here on a page of the block is in use for I/O, until LetGo.
  void Hold() {
    const iovec page = {view_.data() + BytesOf(kLength) - kPageSize, kPageSize};
    ASSERT_EQ(vmsplice(in_.get(), &page, 1, 0), static_cast<ssize_t>(kPageSize));
  }
  void LetGo() {
    std::array<char, kPageSize> page;
    ASSERT_EQ(read(out_.get(), page.data(), page.size()), static_cast<ssize_t>(page.size()));
  }
  // A tick of the pager, and what comes of it.
  void TryOnce() {
    retry_.Tick();
    pollfd done = {pool_.event_fd(), POLLIN, 0};
    ASSERT_EQ(poll(&done, 1, kDeadlineMs), 1) << "nothing was tried";
    pool_.RunDone();
  }
  // The kernel says to try again, too, when somebody else has a page in hand.
  void TryUntilNothingWaits() {
    for (int i = 0; i < CollapseRetry::kMaxTries && retry_.waiting() != 0; ++i) TryOnce();
  }
  PageState State() const { return segment_.reader().Lookup(mm_, FirstPageOf(kBlock)).state; }

  TestSegment segment_;
  WorkerPool pool_;
  FileTable files_;
  CollapseRetry retry_;
  test::ScopedMapping view_;
  MmId mm_;
  UniqueFd out_;
  UniqueFd in_;
};

TEST_F(CollapseRetryTest, AFailedCollapseIsTriedAgainAndRecorded) {
  Hold();
  retry_.Add(mm_, kBlock);
  for (int tick = 0; tick < 3; ++tick) {
    TryOnce();
    EXPECT_EQ(retry_.waiting(), 1u);
    EXPECT_NE(State(), PageState::kPresentHuge);
  }
  LetGo();
  TryUntilNothingWaits();
  EXPECT_EQ(retry_.waiting(), 0u);
  EXPECT_EQ(State(), PageState::kPresentHuge);
}

TEST_F(CollapseRetryTest, ItGivesUp) {
  Hold();
  retry_.Add(mm_, kBlock);
  for (int tick = 0; tick < CollapseRetry::kMaxTries; ++tick) {
    ASSERT_EQ(retry_.waiting(), 1u) << "after " << tick << " tries";
    TryOnce();
  }
  EXPECT_EQ(retry_.waiting(), 0u);
  EXPECT_NE(State(), PageState::kPresentHuge);
}

TEST_F(CollapseRetryTest, AFileThatIsGoneIsDropped) {
  retry_.Add(mm_, kBlock);
  files_.Release({mm_});
  retry_.Tick();
  EXPECT_EQ(retry_.waiting(), 0u);
  EXPECT_NE(State(), PageState::kPresentHuge);
}

TEST_F(CollapseRetryTest, AFileThatGoesDuringTheTryIsDropped) {
  ASSERT_EQ(segment_.tables.PinMm(mm_), TableStatus::kOk);
  retry_.Add(mm_, kBlock);
  retry_.Tick();
  ReleasedMms released;
  ASSERT_EQ(segment_.tables.UnpinMm(mm_, &released), TableStatus::kOk);
  ASSERT_EQ(released.size(), 1u);
  pollfd done = {pool_.event_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&done, 1, kDeadlineMs), 1);
  pool_.RunDone();
  EXPECT_EQ(retry_.waiting(), 0u);
}

// Collapsed in the file, but the tables cannot say so yet: a page of the block is being filled.
TEST_F(CollapseRetryTest, ABlockThatIsBeingFilledIsRecordedLater) {
  const GuestId guest = segment_.AddGuest();
  ASSERT_EQ(
      segment_.tables.MapRegion(guest, {kVa, kLength, mm_, FilePage(0), AccessSet::ReadWrite(), 0}),
      TableStatus::kOk);
  FaultEvent fault;
  fault.guest = guest;
  fault.addr = GuestAddr(kVa.value() + kBlockSize);
  fault.access = Access::kWrite;
  const FaultDecision filling = Decide(segment_.tables, fault, Climate{});
  ASSERT_EQ(State(), PageState::kInFlight);
  retry_.Add(mm_, kBlock);
  TryOnce();
  EXPECT_EQ(retry_.waiting(), 1u);
  Commit(segment_.tables, filling, Outcome::kDone, Grain::kSmall);
  TryUntilNothingWaits();
  EXPECT_EQ(retry_.waiting(), 0u);
  EXPECT_EQ(State(), PageState::kPresentHuge);
}

}  // namespace
}  // namespace hostmm
