// The protocol of a freeze, with real userfaultfds of this process and agents that the test plays.
#include "runtime/snapshot/snapshots.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/file_quota.h"
#include "runtime/snapshot/snapshots_fixture.h"
#include "runtime/uapi_compat.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/test_uffd.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;
using protocol::Status;

TEST_F(SnapshotsTest, IsTakenWhenTheLastAgentHasZapped) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  const UniqueFd reply = AskForSnapshot(first);
  CarryOutFreeze(*first.guest);
  EXPECT_FALSE(AnswerOn(reply).has_value());
  CarryOutFreeze(*second.guest);
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->status, Status::kOk);
  EXPECT_EQ(answer->length, kRegion);
  EXPECT_EQ(answer->value[0], kPageSize);
  EXPECT_TRUE(file_.ok());
  EXPECT_TRUE(IsFrozen());
}

TEST_F(SnapshotsTest, FaultsWaitUntilAllAreFrozen) {
  const Window window = NewWindow();
  const FaultEvent event{window.guest->id, GuestAddr(window.va()), Access::kWrite,
                         FaultKind::kMinor};
  EXPECT_EQ(snapshots_.Park(event), Freezer::Park::kNo);
  int resumed = 0;
  snapshots_.SetResume([&](const FaultEvent&) { ++resumed; });
  const UniqueFd reply = AskForSnapshot(window);
  EXPECT_EQ(snapshots_.Park(event), Freezer::Park::kYes);
  CarryOutFreeze(*window.guest);
  EXPECT_EQ(resumed, 1);
  EXPECT_EQ(snapshots_.Park(event), Freezer::Park::kNo);
}

TEST_F(SnapshotsTest, OnlyTheAnswerToThisFreezeCounts) {
  const Window window = NewWindow();
  const UniqueFd reply = AskForSnapshot(window);
  std::optional<Message> freeze = NextOrder(*window.guest, OrderOp::kFreeze);
  ASSERT_TRUE(freeze.has_value());
  Message other = *freeze;
  other.order += 1;
  SayFrozen(*window.guest, other);
  other = *freeze;
  other.mm.generation += 1;
  SayFrozen(*window.guest, other);
  EXPECT_FALSE(AnswerOn(reply).has_value());
  SayFrozen(*window.guest, *freeze);
  EXPECT_TRUE(AnswerOn(reply).has_value());
}

TEST_F(SnapshotsTest, AChildThatIsForkedBeforeItsParentIsFrozenIsAMember) {
  const Window window = NewWindow();
  const UniqueFd reply = AskForSnapshot(window);
  const UniqueFd childs_end = AnnounceFork(*window.guest);
  CarryOutFreeze(*window.guest);
  EXPECT_FALSE(AnswerOn(reply).has_value());
  ASSERT_EQ(children_.size(), 1u);
  EndGuest(*guests_.Find(children_[0]));
  EXPECT_TRUE(AnswerOn(reply).has_value());
}

TEST_F(SnapshotsTest, AChildThatIsForkedLaterIsNot) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  const UniqueFd reply = AskForSnapshot(first);
  CarryOutFreeze(*first.guest);
  const UniqueFd childs_end = AnnounceFork(*first.guest);
  CarryOutFreeze(*second.guest);
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->status, Status::kOk);
}

TEST_F(SnapshotsTest, ALateAgentIsWriteProtectedFromOutside) {
  const Window window = NewWindow();
  const UniqueFd reply = AskForSnapshot(window);
  for (int tick = 0; tick < 3; ++tick) snapshots_.Tick();
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->status, Status::kOk);
}

TEST_F(SnapshotsTest, WhoForksBeforeItKnowsLosesTheSnapshot) {
  const Window window = NewWindow();
  const UniqueFd reply = AskForSnapshot(window);
  for (int tick = 0; tick < 3; ++tick) snapshots_.Tick();
  ASSERT_TRUE(AnswerOn(reply).has_value());
  const UniqueFd handle = std::move(file_);
  const UniqueFd childs_end = AnnounceFork(*window.guest);
  const Message info = AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get());
  EXPECT_EQ(info.status, Status::kFailed);
  EXPECT_EQ(info.value[1], uint64_t{EIO});
  EXPECT_NE(std::string(info.text).find("forked"), std::string::npos) << info.text;
  EXPECT_FALSE(IsFrozen());
}

TEST_F(SnapshotsTest, ItIsThawedWhenTheLastHandleIsClosed) {
  const Window window = NewWindow();
  UniqueFd first = TakeOne(window);
  UniqueFd second = TakeOne(window);
  const Message info = AskHandle(first, NewPacket(Kind::kSnapshotInfo), loop_.get());
  EXPECT_EQ(info.status, Status::kOk);
  EXPECT_EQ(info.length, kRegion);
  first.reset();
  EXPECT_TRUE(IsFrozen());
  second.reset();
  RunUntil(loop_.get(), [&] { return !IsFrozen(); });
  EXPECT_TRUE(NextOrder(*window.guest, OrderOp::kThaw).has_value());
}

TEST_F(SnapshotsTest, WhatWaitedForAFreezeIsRefusedWhenAProcessLeftAlive) {
  const Window leaver = NewWindow();
  const Window window = NewWindow();
  const UniqueFd first = AskForSnapshot(window);
  const UniqueFd second = AskForSnapshot(window);
  EndGuest(*leaver.guest);
  EXPECT_EQ(AnswerOn(first)->value[1], uint64_t{EAGAIN});
  const std::optional<Message> answer = AnswerOn(second);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->value[1], uint64_t{ENOTSUP});
  EXPECT_FALSE(IsFrozen());
}

// Of what was unmapped, and thawed with that, when the agent came to answer.
TEST_F(SnapshotsTest, AnAnswerFromBeforeItWasMappedAnewIsNone) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  const UniqueFd reply = AskForSnapshot(second);
  const std::optional<Message> old = NextOrder(*first.guest, OrderOp::kFreeze);
  ASSERT_TRUE(old.has_value());
  Note(*first.guest, Ranged(Kind::kUnmap, first.va(), kRegion));
  const Window again = Map(*first.guest);
  CarryOutFreeze(*second.guest);
  ASSERT_TRUE(AnswerOn(reply).has_value());
  const UniqueFd handle = std::move(file_);
  SayFrozen(*first.guest, *old);
  // Its library does not know: nobody sees what the child writes.
  const UniqueFd childs_end = AnnounceFork(*first.guest);
  const Message info = AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get());
  EXPECT_EQ(info.value[1], uint64_t{EIO});
}

// The kernel has unmapped it; what says so is on its way.
TEST_F(SnapshotsTest, WhoIsJustUnmappingIsWaitedFor) {
  Window first = NewWindow();
  const Window second = NewWindow();
  const uint64_t va = first.va();
  first.memory = test::ScopedMapping();
  const UniqueFd reply = AskForSnapshot(second);
  CarryOutFreeze(*second.guest);
  EXPECT_FALSE(AnswerOn(reply).has_value());
  Note(*first.guest, Ranged(Kind::kUnmap, va, kRegion));
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->status, Status::kOk);
}

// A program may map something else there without a word, by a system call of its own.
TEST_F(SnapshotsTest, WhoCannotBeRegisteredEndsTheFreezeWhenItIsLate) {
  Window first = NewWindow();
  const Window second = NewWindow();
  first.memory = test::ScopedMapping();
  const UniqueFd reply = AskForSnapshot(second);
  CarryOutFreeze(*second.guest);
  snapshots_.Tick();
  EXPECT_FALSE(AnswerOn(reply).has_value());
  snapshots_.Tick();
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->value[1], uint64_t{ENOTSUP});
}

// The kernel removes what no snapshot may lose; its agent says nothing before that is done.
TEST_F(SnapshotsTest, WhoIsRemovingMemoryEndsTheFreezeWhenItIsLate) {
  const Window window = NewWindow();
  const Message may = Ranged(Kind::kMayPunch, window.va(), kBlockSize);
  EXPECT_EQ(Ask(*window.guest, may)->status, Status::kOk);
  const UniqueFd late = AskForSnapshot(window);
  for (int tick = 0; tick < 2; ++tick) snapshots_.Tick();
  const std::optional<Message> refused = AnswerOn(late);
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->value[1], uint64_t{EAGAIN});
  EXPECT_NE(std::string(refused->text).find("removed"), std::string::npos) << refused->text;
  EXPECT_FALSE(IsFrozen());
  EXPECT_TRUE(NextOrder(*window.guest, OrderOp::kFreeze).has_value());
  Note(*window.guest, Ranged(Kind::kPunch, window.va(), kBlockSize));
  TakeOne(window);
}

TEST_F(SnapshotsTest, WhatIsRemovedInAFreezeWasBeforeIt) {
  const Window window = NewWindow();
  EXPECT_EQ(Ask(*window.guest, Ranged(Kind::kMayPunch, window.va(), kBlockSize))->status,
            Status::kOk);
  const UniqueFd reply = AskForSnapshot(window);
  Note(*window.guest, Ranged(Kind::kPunch, window.va(), kBlockSize));
  EXPECT_FALSE(AnswerOn(reply).has_value());
  CarryOutFreeze(*window.guest);
  ASSERT_TRUE(AnswerOn(reply).has_value());
  const UniqueFd handle = std::move(file_);
  EXPECT_EQ(AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get()).status, Status::kOk);
}

TEST_F(SnapshotsTest, FrozenMemoryIsNotRemovedByTheKernel) {
  const Window window = NewWindow();
  const UniqueFd handle = TakeOne(window);
  const Message may = Ranged(Kind::kMayPunch, window.va(), kBlockSize);
  EXPECT_EQ(Ask(*window.guest, may)->value[1], uint64_t{EBUSY});
  EXPECT_EQ(AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get()).status, Status::kOk);
  // As only one does that has not been told, or lies.
  Note(*window.guest, Ranged(Kind::kPunch, window.va(), kBlockSize));
  EXPECT_EQ(AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get()).value[1], uint64_t{EIO});
}

// Nobody would hold it when the pager dies.
TEST_F(SnapshotsTest, AChildWithoutAnAgentEndsTheFreeze) {
  const Window window = NewWindow();
  const UniqueFd reply = AskForSnapshot(window);
  const UniqueFd childs_end = AnnounceFork(*window.guest);
  CarryOutFreeze(*window.guest);
  EXPECT_FALSE(AnswerOn(reply).has_value());
  Guest& child = *guests_.Find(children_[0]);
  const test::TestUffd uffd = test::TestUffd::Open(UFFD_FEATURE_MISSING_SHMEM);
  child.uffd.fd.reset(dup(uffd.fd()));
  child.pid = getpid();
  snapshots_.OnAttach(child);
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->value[1], uint64_t{ENOTSUP});
}

TEST_F(SnapshotsTest, AMapperWithoutAnAgentLosesThem) {
  const Window window = NewWindow();
  const UniqueFd handle = TakeOne(window);
  Guest& guest = NewProcess();
  guest.has_agent = false;
  const Window later = Map(guest);
  const Message info = AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get());
  EXPECT_EQ(info.value[1], uint64_t{EIO});
  EXPECT_NE(std::string(info.text).find("agent"), std::string::npos) << info.text;
}

// It must not use up the share of whoever made the region, or more than its own.
TEST_F(SnapshotsTest, ASnapshotIsOfWhoeverTookIt) {
  constexpr uid_t kOther = 1234;
  const Window window = NewWindow();
  window.guest->uid = kOther;
  const UniqueFd handle = TakeOne(window);
  uint32_t files = 0;
  segment_.tables.ForEachMm([&](const MmInfo& info) { files += info.owner_uid == kOther ? 1 : 0; });
  EXPECT_EQ(files, 1u);

  std::vector<MmId> others;
  for (; files < kFilesPerUser; ++files) {
    ASSERT_EQ(segment_.tables.CreateMm({.length = PageCount(1), .owner_uid = kOther},
                                       &others.emplace_back()),
              TableStatus::kOk);
    segment_.tables.PinMm(others.back());
  }
  const std::optional<Message> refused = AnswerOn(AskForSnapshot(window));
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->value[1], uint64_t{ENOSPC});
  window.guest->uid = 0;
  TakeOne(window);
  ReleasedMms released;
  for (const MmId mm : others) segment_.tables.UnpinMm(mm, &released);
}

TEST_F(SnapshotsTest, OneProcessHasSoManyRemovalsOpen) {
  const Window window = NewWindow();
  const Message remove = Ranged(Kind::kRemove, window.va(), kRegion);
  std::vector<UniqueFd> open;
  std::optional<Message> refused;
  while (!refused.has_value() && open.size() < 1000) {
    open.push_back(Send(*window.guest, remove));
    refused = AnswerOn(open.back());
  }
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->value[1], uint64_t{EAGAIN});
  open.pop_back();
  for (const UniqueFd& reply : open) {
    std::optional<Message> done;
    RunTurnsUntil([&] { return (done = AnswerOn(reply)).has_value(); });
    EXPECT_EQ(done->status, Status::kOk);
  }
  EXPECT_EQ(*window.guest->open_removals, 0u);
}

TEST_F(SnapshotsTest, AChildThatDoesNotComeEndsTheFreeze) {
  const Window window = NewWindow();
  const UniqueFd reply = AskForSnapshot(window);
  const UniqueFd childs_end = AnnounceFork(*window.guest);
  CarryOutFreeze(*window.guest);
  for (int tick = 0; tick < 3; ++tick) snapshots_.Tick();
  EXPECT_FALSE(AnswerOn(reply).has_value());
  snapshots_.Tick();
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->value[1], uint64_t{EAGAIN});
  EXPECT_NE(std::string(answer->text).find("forked"), std::string::npos) << answer->text;
  EXPECT_FALSE(IsFrozen());
}

// The kernel goes through all page tables of a guest at its thaw.
TEST_F(SnapshotsTest, GuestsAreThawedInTurnsOfTheirOwn) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  TakeOfBoth(first, second);
  Guest& later = CloseUntilOneIsThawed(first, second);
  EXPECT_FALSE(NextOrder(later, OrderOp::kThaw).has_value());
  RunTurnsUntil([&] { return NextOrder(later, OrderOp::kThaw).has_value(); });
}

TEST_F(SnapshotsTest, WhoIsFrozenAgainBeforeItsTurnStaysFrozen) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  TakeOfBoth(first, second);
  Guest& later = CloseUntilOneIsThawed(first, second);
  TakeOfBoth(first, second);
  int turns = 0;
  RunTurnsUntil([&] { return ++turns == 10; });
  EXPECT_FALSE(NextOrder(later, OrderOp::kThaw).has_value());
  file_.reset();
  RunTurnsUntil([&] { return NextOrder(later, OrderOp::kThaw).has_value(); });
}

// Its library has been told that the new window is not frozen.
TEST_F(SnapshotsTest, WhoMapsMoreBeforeItsTurnDoesNotKnowOfTheNextFreeze) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  TakeOfBoth(first, second);
  Guest& later = CloseUntilOneIsThawed(first, second);
  const Window more = Map(later);
  EXPECT_EQ(frozen_answer_, 0u);
  const UniqueFd reply = AskForSnapshot(first);
  const UniqueFd childs_end = AnnounceFork(later);
  CarryOutFreeze(*first.guest);
  CarryOutFreeze(*second.guest);
  EXPECT_FALSE(AnswerOn(reply).has_value()) << "nobody sees what the child writes";
  EndGuest(*guests_.Find(children_.back()));
  EXPECT_TRUE(AnswerOn(reply).has_value());
}

// Between the zap that it tells of and this freeze the guest may have been granted pages.
TEST_F(SnapshotsTest, AnAnswerFromBeforeAnUnmapIsNone) {
  Window first = NewWindow();
  const Window second = NewWindow();
  TakeOfBoth(first, second);
  const UniqueFd handle = std::move(file_);
  const Window more = Map(*first.guest);
  const std::optional<Message> old = NextOrder(*first.guest, OrderOp::kFreeze);
  ASSERT_TRUE(old.has_value());
  const uint64_t va = first.va();
  first.memory = test::ScopedMapping();
  const UniqueFd reply = AskForSnapshot(second);
  CarryOutFreeze(*second.guest);
  SayFrozen(*first.guest, *old);
  EXPECT_FALSE(AnswerOn(reply).has_value());
  Note(*first.guest, Ranged(Kind::kUnmap, va, kRegion));
  for (int tick = 0; tick < 2; ++tick) snapshots_.Tick();
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->status, Status::kOk);
}

TEST_F(SnapshotsTest, WhoMapsItLaterIsTold) {
  const Window window = NewWindow();
  const UniqueFd handle = TakeOne(window);
  EXPECT_EQ(frozen_answer_, 0u);
  const Window later = NewWindow();
  EXPECT_EQ(frozen_answer_, 1u);
  EXPECT_TRUE(NextOrder(*later.guest, OrderOp::kFreeze).has_value());
}

TEST_F(SnapshotsTest, AProcessThatLeavesAliveLosesThem) {
  const Window window = NewWindow();
  const UniqueFd handle = TakeOne(window);
  EndGuest(*window.guest);
  const Message info = AskHandle(handle, NewPacket(Kind::kSnapshotInfo), loop_.get());
  EXPECT_EQ(info.value[1], uint64_t{EIO});
  EXPECT_NE(std::string(info.text).find("left"), std::string::npos) << info.text;
}

TEST_F(SnapshotsTest, WhoHasLeftAliveIsRemembered) {
  const Window leaver = NewWindow();
  const Window window = NewWindow();
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  leaver.guest->pidfd.fd.reset(static_cast<int>(syscall(SYS_pidfd_open, child, 0)));
  EndGuest(*leaver.guest);
  const std::optional<Message> refused = AnswerOn(AskForSnapshot(window));
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->value[1], uint64_t{ENOTSUP});
  EXPECT_NE(std::string(refused->text).find("left"), std::string::npos) << refused->text;
  // Until it is dead.
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  TakeOne(window);
}

TEST_F(SnapshotsTest, AnAnswerFromBeforeAThawEndsNoFreeze) {
  const Window window = NewWindow();
  const UniqueFd first = AskForSnapshot(window);
  const std::optional<Message> old = NextOrder(*window.guest, OrderOp::kFreeze);
  ASSERT_TRUE(old.has_value());
  for (int tick = 0; tick < 3; ++tick) snapshots_.Tick();
  ASSERT_TRUE(AnswerOn(first).has_value());
  file_.reset();
  RunUntil(loop_.get(), [&] { return !IsFrozen(); });
  const UniqueFd second = AskForSnapshot(window);
  SayFrozen(*window.guest, *old);
  EXPECT_FALSE(AnswerOn(second).has_value());
  CarryOutFreeze(*window.guest);
  EXPECT_TRUE(AnswerOn(second).has_value());
}

TEST_F(SnapshotsTest, AChildThatCannotBeWatchedEndsTheFreeze) {
  const Window first = NewWindow();
  const Window second = NewWindow();
  const UniqueFd reply = AskForSnapshot(second);
  room_ = Room::kFull;
  const UniqueFd childs_end = AnnounceFork(*first.guest);
  const std::optional<Message> answer = AnswerOn(reply);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->value[1], uint64_t{EAGAIN});
}

TEST_F(SnapshotsTest, NeedsAUserfaultfdThatCanDoIt) {
  constexpr uint64_t kAll = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM |
                            UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED;
  EXPECT_EQ(Snapshots::UffdWith(kAll), Snapshots::Terms::Uffd::kHere);
  for (const uint64_t feature :
       {uint64_t{UFFD_FEATURE_MINOR_SHMEM}, uint64_t{UFFD_FEATURE_WP_HUGETLBFS_SHMEM},
        uint64_t{UFFD_FEATURE_WP_UNPOPULATED}}) {
    EXPECT_EQ(Snapshots::UffdWith(kAll & ~feature), Snapshots::Terms::Uffd::kTooOld);
  }
}

TEST_F(SnapshotsTest, RefusesWhatCannotBeFrozen) {
  const Window window = NewWindow();
  window.guest->has_agent = false;
  const std::optional<Message> answer = AnswerOn(AskForSnapshot(window));
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->value[1], uint64_t{ENOTSUP});
  EXPECT_NE(std::string(answer->text).find("agent"), std::string::npos);
  EXPECT_FALSE(IsFrozen());
  Message nowhere = NewPacket(Kind::kTakeSnapshot);
  nowhere.va = kVa;
  EXPECT_EQ(Ask(*window.guest, nowhere)->value[1], uint64_t{ENOMEM});
}

TEST_F(SnapshotsTest, RefusesWhatIsNoHandle) {
  const Window window = NewWindow();
  std::array<int, 2> ends;
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
  const UniqueFd other(ends[1]);
  for (const Kind kind : {Kind::kViewFile, Kind::kMapView}) {
    Message ask = Ranged(kind, kVa, kRegion);
    EXPECT_EQ(Ask(*window.guest, ask)->value[1], uint64_t{EBADF});
    EXPECT_EQ(Ask(*window.guest, ask, UniqueFd(dup(ends[0])))->value[1], uint64_t{EBADF});
  }
  close(ends[0]);
}

}  // namespace
}  // namespace hostmm
