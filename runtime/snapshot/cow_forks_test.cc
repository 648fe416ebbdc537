// Forks of copy-on-write memory, as the pager is asked for them.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <optional>

#include "runtime/snapshot/snapshots.h"
#include "runtime/snapshot/snapshots_fixture.h"
#include "tests/testing/scoped_mapping.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

class CowForksTest : public SnapshotsTest {
 protected:
  // Copy-on-write memory of `guest`, in place of what is at `at`.
  Window MapCow(Guest& guest, char* at = test::ReserveAligned(kRegion, kBlockSize)) {
    const std::optional<Message> created = Ask(guest, Ranged(Kind::kCreate, 0, kRegion));
    EXPECT_TRUE(created.has_value());
    EXPECT_EQ(mmap(at, kRegion, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_.get(), 0),
              at);
    Window window{&guest, test::ScopedMapping::Adopt(at, kRegion)};
    Message map = Ranged(Kind::kMap, window.va(), kRegion);
    map.mm = created->mm;
    map.mode = kCow;
    EXPECT_EQ(StatusOf(guest, map), Status::kOk);
    mm_ = {created->mm.slot, created->mm.generation};
    return window;
  }
  // RETURNS the errno of the answer.
  int AskFork(Guest& guest, uint64_t va, uint64_t bytes) {
    const std::optional<Message> answer = Ask(guest, Ranged(Kind::kForkCow, va, bytes));
    EXPECT_TRUE(answer.has_value());
    return answer.has_value() ? static_cast<int>(answer->value[1]) : EIO;
  }
  // RETURNS whether the child that is announced now is served; it is gone then.
  bool IsForkServed(Guest& guest) {
    const UniqueFd childs_end = AnnounceFork(guest);
    pollfd end = {childs_end.get(), POLLIN | POLLRDHUP, 0};
    EXPECT_GE(poll(&end, 1, 0), 0);
    EndGuest(*guests_.Find(children_.back()));
    return (end.revents & POLLRDHUP) == 0;
  }
};

// It would read its parent's live memory for ever.
TEST_F(CowForksTest, ACopyOnWriteChildWithoutAViewIsNotServed) {
  Guest& guest = NewProcess();
  const Window window = MapCow(guest);
  for (const bool lost : {false, true}) {
    SCOPED_TRACE(lost);
    ASSERT_EQ(AskFork(guest, window.va(), kRegion), 0);
    if (lost) snapshots_.LoseFor(mm_, "no memory");
    EXPECT_EQ(IsForkServed(guest), !lost);
  }
}

// The guest asks for the regions that it counts; the tables join what a protection has split when
// it is taken back.
TEST_F(CowForksTest, PartsOfOneRegionAreViewsEach) {
  constexpr uint64_t kHalf = kRegion / 2;
  Guest& guest = NewProcess();
  const Window window = MapCow(guest);
  ASSERT_EQ(Regions(guest), 1u);
  ASSERT_EQ(AskFork(guest, window.va(), kHalf), 0);
  ASSERT_EQ(AskFork(guest, window.va() + kHalf, kHalf), 0);
  const UniqueFd childs_end = AnnounceFork(guest);
  const GuestId child = children_.back();
  for (const uint64_t offset : {uint64_t{0}, kHalf, kRegion - kPageSize}) {
    SCOPED_TRACE(offset);
    const GuestAddr at(window.va() + offset);
    const std::optional<Region> region = segment_.tables.FindRegion(child, at);
    ASSERT_TRUE(region.has_value());
    EXPECT_NE(region->flags & kView, 0u);
    EXPECT_EQ(region->PageAt(at), FilePage(offset / kPageSize));
  }
  EndGuest(*guests_.Find(child));
}

// One view would show one file.
TEST_F(CowForksTest, AForkOfTwoFilesAtOnceIsNotServed) {
  Guest& guest = NewProcess();
  char* const place = test::ReserveAligned(2 * kRegion, kBlockSize);
  const Window first = MapCow(guest, place);
  const Window second = MapCow(guest, place + kRegion);
  ASSERT_EQ(AskFork(guest, first.va(), 2 * kRegion), 0);
  EXPECT_FALSE(IsForkServed(guest));
}

// Each holds a snapshot until the fork.
TEST_F(CowForksTest, WhoAsksForTooManyForksIsRefused) {
  Guest& guest = NewProcess();
  const Window window = MapCow(guest);
  uint64_t page = 0;
  for (; page < protocol::kMaxCowForks; ++page) {
    ASSERT_EQ(AskFork(guest, window.va() + page * kPageSize, kPageSize), 0);
  }
  EXPECT_EQ(AskFork(guest, window.va() + page * kPageSize, kPageSize), ENOSPC);
  EXPECT_EQ(guest.cow_forks.size(), size_t{protocol::kMaxCowForks});
  EXPECT_TRUE(IsForkServed(guest));
  EXPECT_TRUE(guest.cow_forks.empty());
  EXPECT_EQ(AskFork(guest, window.va(), kRegion), 0);
}

// Its end is that of the freeze which its fork waits for; nothing may be held for it after that.
TEST_F(CowForksTest, AForkThatWaitsGoesWithItsGuest) {
  Guest& guest = NewProcess();
  const Window window = MapCow(guest);
  const UniqueFd earlier = TakeOne(window);
  const UniqueFd taking = AskForSnapshot(window);
  const UniqueFd forking = Send(guest, Ranged(Kind::kForkCow, window.va(), kRegion));
  EXPECT_FALSE(AnswerOn(forking).has_value());
  guest.pid = 0;  // dead: nobody whom snapshots would have to fear lives on
  EndGuest(guest);
  ASSERT_TRUE(AnswerOn(taking).has_value());
}

}  // namespace
}  // namespace hostmm
