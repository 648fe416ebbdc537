// The protocol of a freeze, with real userfaultfds of this process and agents that the test plays.
#include "runtime/snapshot/snapshots.h"

#include <fcntl.h>
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
#include <functional>
#include <optional>
#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/session_fixture.h"
#include "runtime/uapi_compat.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/test_uffd.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;
using protocol::Status;

// A named region, mapped by each guest at a place of its own in this process.
class SnapshotsTest : public SessionFixture {
 protected:
  struct Window {
    Guest* guest = nullptr;
    test::ScopedMapping memory;
    uint64_t va() const { return reinterpret_cast<uint64_t>(memory.data()); }
  };

  void SetUp() override {
    HOSTMM_SKIP_IF(test::WhyNoUserfaultfd());
    names_.push_back("live");
  }

  // Handles that the test has closed are seen by the loop.
  void TearDown() override {
    file_.reset();
    while (!ids_.empty()) EndGuest(*guests_.Find(ids_.back()));
    RunUntil(loop_.get(), [this] { return segment_.reader().Pools().mms <= names_.size(); });
    SessionFixture::TearDown();
  }

  Guest& NewProcess() {
    Guest& guest = NewOptInGuest();
    const test::TestUffd uffd = test::TestUffd::Open(UFFD_FEATURE_MISSING_SHMEM);
    guest.uffd.fd.reset(dup(uffd.fd()));
    guest.pid = getpid();
    return guest;
  }

  // Maps it in the guest, as the library does.
  Window Map(Guest& guest) {
    Message open = NewPacket(Kind::kOpenName);
    open.length = kRegion;
    open.value[0] = O_RDWR | O_CREAT;
    open.value[1] = 0600;
    strcpy(open.text, "live");
    EXPECT_EQ(StatusOf(guest, open), Status::kOk);
    Window window;
    window.guest = &guest;
    window.memory = test::ScopedMapping::SharedFile(file_.get(), kRegion);
    Message adopt = Ranged(Kind::kAdopt, window.va(), kRegion);
    adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
    const std::optional<Message> answer = Ask(guest, adopt, std::move(file_));
    EXPECT_EQ(answer->value[0], static_cast<uint64_t>(protocol::Adopted::kOwn));
    frozen_answer_ = answer->value[1];
    mm_ = {answer->mm.slot, answer->mm.generation};
    return window;
  }
  Window NewWindow() { return Map(NewProcess()); }

  UniqueFd AskForSnapshot(const Window& window) {
    Message take = NewPacket(Kind::kTakeSnapshot);
    take.va = window.va();
    return Send(*window.guest, take);
  }
  // The next order of that kind that the guest's agent finds.
  std::optional<Message> NextOrder(const Guest& guest, OrderOp op) {
    while (std::optional<Message> next = AgentOf(guest).Next()) {
      if (next->op == op) return next;
    }
    return std::nullopt;
  }
  // As the agent does when it has zapped.
  void SayFrozen(Guest& guest, const Message& freeze) {
    Message done = NewPacket(Kind::kFreezeDone);
    done.mm = freeze.mm;
    done.order = freeze.order;
    Note(guest, done);
  }
  void CarryOutFreeze(Guest& guest) {
    const std::optional<Message> freeze = NextOrder(guest, OrderOp::kFreeze);
    ASSERT_TRUE(freeze.has_value());
    SayFrozen(guest, *freeze);
  }
  // RETURNS the child's end of its channel.
  UniqueFd AnnounceFork(Guest& guest) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    Packet intent;
    intent.message = NewPacket(Kind::kForkIntent);
    intent.fds[0].reset(ends[1]);
    session_.OnPacket(guest, std::move(intent));
    return UniqueFd(ends[0]);
  }
  // A snapshot of what all windows map, taken; `file_` is its handle.
  UniqueFd TakeOne(const Window& window) {
    const UniqueFd reply = AskForSnapshot(window);
    CarryOutFreeze(*window.guest);
    EXPECT_EQ(AnswerOn(reply)->status, Status::kOk);
    return std::move(file_);
  }
  static Message AskHandle(const UniqueFd& handle, Message ask, EventLoop* loop) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    const UniqueFd near(ends[0]);
    EXPECT_EQ(SendPacket(handle.get(), ask, ends[1]), SendResult::kSent);
    close(ends[1]);
    Packet answer;
    RunUntil(loop, [&] { return ReceivePacket(near.get(), &answer) == ReceiveResult::kPacket; });
    return answer.message;
  }
  template <class Condition>
  static void RunUntil(EventLoop* loop, Condition condition) {
    int turns = 0;
    bool met = false;
    loop->SetTick(absl::Milliseconds(5), [&] {
      met = condition();
      if (met || ++turns > 1000) loop->Stop();
    });
    EXPECT_TRUE(loop->Run().ok());
    EXPECT_TRUE(met);
  }
  // As RunUntil, and asks in each turn of the loop, which ends with the one that meets it.
  template <class Condition>
  void RunTurnsUntil(Condition condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    bool met = false;
    std::function<void()> ask = [&] {
      met = condition();
      if (met || absl::Now() > deadline) return loop_->Stop();
      loop_->Soon(ask);
    };
    loop_->Soon(ask);
    EXPECT_TRUE(loop_->Run().ok());
    EXPECT_TRUE(met);
  }
  void TakeOfBoth(const Window& first, const Window& second) {
    const UniqueFd reply = AskForSnapshot(first);
    CarryOutFreeze(*first.guest);
    CarryOutFreeze(*second.guest);
    EXPECT_EQ(AnswerOn(reply)->status, Status::kOk);
  }
  // Closes the handle. RETURNS who of the two has not been thawed when the other one has.
  Guest& CloseUntilOneIsThawed(const Window& first, const Window& second) {
    file_.reset();
    bool is_first = false;
    RunTurnsUntil([&] {
      is_first = NextOrder(*first.guest, OrderOp::kThaw).has_value();
      return is_first || NextOrder(*second.guest, OrderOp::kThaw).has_value();
    });
    return is_first ? *second.guest : *first.guest;
  }
  bool IsFrozen() const { return snapshots_.IsFrozen(mm_); }

  MmId mm_;
  uint64_t frozen_answer_ = 0;
};

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

// It would read its parent's live memory for ever.
TEST_F(SnapshotsTest, ACopyOnWriteChildWithoutAViewIsNotServed) {
  Guest& guest = NewProcess();
  const std::optional<Message> created = Ask(guest, Ranged(Kind::kCreate, 0, kRegion));
  ASSERT_TRUE(created.has_value());
  const test::ScopedMapping memory = test::ScopedMapping::SharedFile(file_.get(), kRegion);
  const auto va = reinterpret_cast<uint64_t>(memory.data());
  Message map = Ranged(Kind::kMap, va, kRegion);
  map.mm = created->mm;
  map.mode = kCow;
  ASSERT_EQ(StatusOf(guest, map), Status::kOk);
  for (const bool lost : {false, true}) {
    SCOPED_TRACE(lost);
    ASSERT_EQ(Ask(guest, Ranged(Kind::kForkCow, va, kRegion))->status, Status::kOk);
    if (lost) snapshots_.LoseFor({created->mm.slot, created->mm.generation}, "no memory");
    const UniqueFd childs_end = AnnounceFork(guest);
    pollfd end = {childs_end.get(), POLLIN | POLLRDHUP, 0};
    ASSERT_GE(poll(&end, 1, 0), 0);
    EXPECT_EQ((end.revents & POLLRDHUP) != 0, lost);
    EndGuest(*guests_.Find(children_.back()));
  }
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
