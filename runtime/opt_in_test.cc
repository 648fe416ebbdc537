// What is done to opt-in memory for all who map it: order, members, forks, deaths, time.
#include "runtime/opt_in.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/opt_in_fixture.h"

namespace hostmm {
namespace {

using protocol::BoardOp;
using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;
using protocol::Status;
using Verdict = Session::Verdict;

TEST_F(OptInTest, IsAnsweredWhenTheLastMapperHasDoneIt) {
  std::vector<Guest*> mappers;
  for (int i = 0; i < 5; ++i) mappers.push_back(&NewMapper());
  const UniqueFd reply = Protect(*mappers[0], PROT_READ);
  for (Guest* mapper : mappers) {
    EXPECT_EQ(AnswerOn(reply), std::nullopt);
    EXPECT_EQ(AccessAt(*mapper), AccessSet(Access::kRead));
    Do(*mapper);
  }
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(Counts().operations.operations, 1u);
  EXPECT_EQ(Counts().operations.woken, 5u);
}

TEST_F(OptInTest, OneStrokeOfTheBellIfAllAreMeantAndAPacketEachIfNot) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  Guest& upper = NewMapper(kVa, kBlockSize, 7 * kBlockSize);
  BellWatch of_a(AgentOf(a).bell());
  BellWatch of_upper(AgentOf(upper).bell());
  const UniqueFd all = Protect(a, PROT_READ, kVa + 7 * kBlockSize, kBlockSize);
  EXPECT_TRUE(of_a.Rang());
  EXPECT_TRUE(of_upper.Rang());
  EXPECT_EQ(AgentOf(b).Drain(OrderOp::kLook), 0);
  for (Guest* guest : {&a, &b, &upper}) Do(*guest);
  EXPECT_EQ(ErrorOn(all), 0);
  const UniqueFd some = Protect(a, PROT_READ, kVa, kBlockSize);
  EXPECT_FALSE(of_a.Rang());
  EXPECT_FALSE(of_upper.Rang());
  EXPECT_EQ(AgentOf(a).Drain(OrderOp::kLook), 1);
  EXPECT_EQ(AgentOf(b).Drain(OrderOp::kLook), 1);
  EXPECT_EQ(AgentOf(upper).Drain(OrderOp::kLook), 0);
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(some), 0);
}

TEST_F(OptInTest, WhoDoesNotMapItCostsNothing) {
  std::vector<Guest*> others;
  for (int i = 0; i < 100; ++i) others.push_back(&NewOptInGuest());
  for (int i = 0; i < 20; ++i) MapOne(*others[static_cast<size_t>(i)], kVa, kSharedPt);
  for (Guest* other : others) AgentOf(*other).Drain(OrderOp::kWatch);
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  for (Guest* other : others) {
    EXPECT_EQ(AgentOf(*other).Next(), std::nullopt);
  }
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(Counts().operations.woken, 2u);
}

TEST_F(OptInTest, PlainMappingsOfTheSameFileAreNobodysElses) {
  Guest& a = NewMapper();
  Guest& plain = NewOptInGuest();
  ASSERT_EQ(StatusOf(plain, AdoptAt(kVa, kRegion, 0, PROT_READ | PROT_WRITE, 0),
                     UniqueFd(dup(memory_.get()))),
            Status::kOk);
  EXPECT_EQ(AgentOf(plain).Next(), std::nullopt) << "it watches nothing";
  const UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(AccessAt(plain), AccessSet::ReadWrite());
  // And the other way: what it does to its own mapping reaches nobody.
  Message note = Ranged(Kind::kProtect, kVa, kRegion);
  note.prot = PROT_NONE;
  EXPECT_EQ(Note(plain, note), Verdict::kKeep);
  EXPECT_EQ(AccessAt(a), AccessSet(Access::kRead));
  EXPECT_EQ(AccessAt(plain), AccessSet());
}

TEST_F(OptInTest, ANoteThatOptInMemoryWasProtectedChangesNothing) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  Message note = Ranged(Kind::kProtect, kVa, kRegion);
  note.prot = PROT_NONE;
  EXPECT_EQ(Note(a, note), Verdict::kKeep);
  note.kind = Kind::kFlags;
  note.value[0] = ~uint64_t{0};
  EXPECT_EQ(Note(a, note), Verdict::kKeep);
  for (const Guest* guest : {&a, &b}) {
    EXPECT_EQ(AccessAt(*guest), AccessSet::ReadWrite());
    const uint32_t flags = segment_.reader().FindRegion(guest->id, GuestAddr(kVa))->flags;
    EXPECT_EQ(flags & (kHintHuge | kHintSmall | kTracked), 0u);
    EXPECT_EQ(flags & kDontFork, guest == &a ? kDontFork : 0u);
  }
}

TEST_F(OptInTest, NewMappersFindTheProtectionOfTheOthers) {
  Guest& a = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ, kVa + kBlockSize, kBlockSize);
  Do(a);
  ASSERT_EQ(ErrorOn(reply), 0);
  Guest& late = NewOptInGuest();
  const std::optional<Message> answer = MapIn(late);
  EXPECT_EQ(answer->prot, static_cast<uint32_t>(PROT_READ | PROT_WRITE));
  EXPECT_EQ(answer->length, kBlockSize);
  EXPECT_EQ(answer->value[0], static_cast<uint64_t>(protocol::Adopted::kForeign));
  Message access = NewPacket(Kind::kAccess);
  access.va = kVa + kBlockSize;
  const std::optional<Message> second = Ask(late, access);
  EXPECT_EQ(second->prot, static_cast<uint32_t>(PROT_READ));
  EXPECT_EQ(second->length, kBlockSize);
  access.va = kVa + 2 * kBlockSize;
  EXPECT_EQ(Ask(late, access)->length, kRegion - 2 * kBlockSize);
  access.va = kVa + kRegion;
  EXPECT_EQ(Ask(late, access)->length, 0u);
}

TEST_F(OptInTest, WhenTheLastMapperGoesItsProtectionAndItsBoardAreForgotten) {
  Guest& a = NewMapper();
  const UniqueFd reply = Protect(a, PROT_NONE);
  Do(a);
  ASSERT_EQ(ErrorOn(reply), 0);
  Note(a, Ranged(Kind::kUnmap, kVa, kRegion));
  EXPECT_EQ(AgentOf(a).Drain(OrderOp::kUnwatch), 1);
  EXPECT_TRUE(a.boards.empty());
  const std::optional<Message> again = MapIn(a);
  EXPECT_EQ(again->prot, static_cast<uint32_t>(PROT_READ | PROT_WRITE));
  const board::Order order = AgentOf(a).Look();
  EXPECT_EQ(order.op, BoardOp::kNone) << "what is over is not there for a new watcher to do";
}

TEST_F(OptInTest, OperationsOnOneFileComeOneAfterTheOther) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd first = Protect(a, PROT_READ);
  const UniqueFd second = Protect(b, PROT_NONE);
  const UniqueFd third = Protect(a, PROT_READ | PROT_WRITE);
  EXPECT_EQ(AccessAt(b), AccessSet(Access::kRead)) << "the second has not begun";
  Do(a);
  EXPECT_EQ(AnswerOn(first), std::nullopt);
  Do(b);
  EXPECT_EQ(ErrorOn(first), 0);
  EXPECT_EQ(AccessAt(a), AccessSet());
  EXPECT_EQ(AnswerOn(second), std::nullopt);
  Do(b);
  Do(a);
  EXPECT_EQ(ErrorOn(second), 0);
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(third), 0);
  EXPECT_EQ(AccessAt(a), AccessSet::ReadWrite());
}

TEST_F(OptInTest, OtherFilesDoNotWait) {
  Guest& a = NewMapper();
  const UniqueFd first = Protect(a, PROT_READ);
  Guest& other = NewOptInGuest();
  MapOne(other, kVa, kSharedPt);
  AgentOf(other).Next();
  const UniqueFd second = Protect(other, PROT_READ);
  Do(other);
  EXPECT_EQ(ErrorOn(second), 0);
  EXPECT_EQ(AnswerOn(first), std::nullopt);
  Do(a);
  EXPECT_EQ(ErrorOn(first), 0);
}

TEST_F(OptInTest, ACallerThatDiesIsNotWaitedFor) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  UniqueFd reply = Protect(a, PROT_READ);
  const UniqueFd queued = Protect(a, PROT_NONE);
  const UniqueFd of_b = Protect(b, PROT_READ | PROT_EXEC);
  EndGuest(a);
  EXPECT_EQ(AccessAt(b), AccessSet(Access::kRead)) << "begun, so it is finished";
  Do(b);
  // What waited of the dead caller's has no effect; that of the living has.
  EXPECT_EQ(AccessAt(b), AccessSet(Access::kRead) | Access::kExec);
  Do(b);
  EXPECT_EQ(ErrorOn(of_b), 0);
}

TEST_F(OptInTest, WhatACallerHasUnmappedMeanwhileIsNotChanged) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd first = Protect(b, PROT_READ);
  const UniqueFd second = Protect(a, PROT_NONE);
  Note(a, Ranged(Kind::kUnmap, kVa, kBlockSize));
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(first), 0);
  EXPECT_EQ(ErrorOn(second), ENOMEM);
  EXPECT_EQ(AccessAt(b), AccessSet(Access::kRead));
  EXPECT_EQ(AccessAt(a, kVa + kBlockSize), AccessSet(Access::kRead));
}

TEST_F(OptInTest, AMemberThatDiesIsNotWaitedFor) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  EndGuest(b);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, TheLastLivingMemberSaysSoIfAnotherDiedBefore) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  EndGuest(b);
  Do(a);  // sends a kBoardDone only if nobody counts for the dead one any more
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, WhoUnmapsEverythingIsNotWaitedFor) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  Note(b, Ranged(Kind::kUnmap, kVa, kRegion));
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, ForkedBeforeItWasDoneTheChildIsWaitedFor) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  Guest& child = ForkOf(b);
  Do(a);
  Do(b);
  EXPECT_EQ(AnswerOn(reply), std::nullopt) << "the child has the old protection";
  Attach(child);
  ASSERT_EQ(AgentOf(child).Next()->op, OrderOp::kWatch);
  EXPECT_EQ(AgentOf(child).Look().op, BoardOp::kProtect) << "it finds what is to be done";
  Do(child);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, AForkThatIsStillOnItsWayIsWaitedFor) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  // b forked before its agent did it: it has sent one packet more than has come.
  AgentOf(b).Note(AgentOf(b).Look().sequence, b.packets + 1);
  SayDone(b);
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  Guest& child = ForkOf(b);
  EXPECT_EQ(AnswerOn(reply), std::nullopt) << "now the child is waited for";
  Attach(child);
  AgentOf(child).Next();
  Do(child);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, AnyPacketThatWasMissingEndsIt) {
  Guest& a = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  AgentOf(a).Note(AgentOf(a).Look().sequence, a.packets + 2);
  SayDone(a);
  Note(a, Ranged(Kind::kPunch, kVa, kPageSize));
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  Message order_done = NewPacket(Kind::kOrderDone);
  Note(a, order_done);
  EXPECT_EQ(AnswerOn(reply), std::nullopt) << "an agent's packet does not count";
  Note(a, Ranged(Kind::kPunch, kVa, kPageSize));
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, ForkedAfterItWasDoneTheChildHasIt) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  AgentOf(b).Note(AgentOf(b).Look().sequence, b.packets);
  ForkOf(b);
  Do(a);
  EXPECT_EQ(ErrorOn(reply), 0) << "the child came with the new protection";
}

TEST_F(OptInTest, AChildThatNeverComesIsNotWaitedForLonger) {
  Guest& a = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  Guest& child = ForkOf(a);
  Do(a);
  EndGuest(child);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, ASlotOfTheDeadSpeaksForNobodyElse) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  // b does it and dies; the child of a gets b's slot while a has not done it.
  AgentOf(b).Note(AgentOf(b).Look().sequence, 0);
  const uint32_t slot = b.id.slot;
  EndGuest(b);
  Guest& child = ForkOf(a);
  ASSERT_EQ(child.id.slot, slot);
  Do(a);
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  EndGuest(child);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, AnErrorOfAMemberIsTheAnswer) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  Do(b, ENOMEM);
  EXPECT_EQ(ErrorOn(reply), ENOMEM);
  reply = Protect(a, PROT_READ);
  Do(a, -7);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), EIO) << "no errno";
}

TEST_F(OptInTest, WhoIsStoppedCostsEightSecondsAndLaterOne) {
  Guest& a = NewMapper();
  NewMapper();  // never does anything
  UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  Ticks(kPatience - 1);
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  Ticks(1);
  EXPECT_EQ(ErrorOn(reply), ETIMEDOUT);
  EXPECT_EQ(Counts().operations.timed_out, 1u);
  reply = Protect(a, PROT_READ | PROT_WRITE);
  Do(a);
  Ticks(4);
  EXPECT_EQ(ErrorOn(reply), ETIMEDOUT);
}

TEST_F(OptInTest, WhoWasOnlyLateIsNotToldAgain) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  const uint64_t sequence = AgentOf(b).Look().sequence;
  Do(a);
  Ticks(kPatience);
  EXPECT_EQ(ErrorOn(reply), ETIMEDOUT);
  AgentOf(b).Note(sequence, b.packets);
  AgentOf(b).Drain(OrderOp::kLook);
  Ticks(2);
  EXPECT_EQ(AgentOf(b).Next(), std::nullopt);
  EXPECT_EQ(Counts().operations.operations, 1u);
}

TEST_F(OptInTest, WhatTheStoppedMissedTheyAreToldWhenTheyComeBack) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  for (const uint64_t block : {1, 3, 5}) {
    const UniqueFd reply = Protect(a, PROT_READ, kVa + block * kBlockSize, kBlockSize);
    Do(a);
    Ticks(kPatience);
    ASSERT_EQ(ErrorOn(reply), ETIMEDOUT);
  }
  AgentOf(b).Drain(OrderOp::kLook);
  AgentOf(a).Drain(OrderOp::kLook);
  // It runs again, and finds an order about no pages, which it notes. Nobody says so: the next tick
  // finds it.
  ASSERT_EQ(AgentOf(b).Look().op, BoardOp::kProtect) << "one of kNone would not be noted";
  ASSERT_EQ(AgentOf(b).Look().pages, 0u);
  AgentOf(b).Note(AgentOf(b).Look().sequence, b.packets);
  std::vector<uint64_t> repaired;
  for (int i = 0; i < 3; ++i) {
    opt_in_.Tick();
    const board::Order order = AgentOf(b).Look();
    ASSERT_EQ(order.op, BoardOp::kProtect);
    EXPECT_EQ(order.prot, static_cast<uint64_t>(PROT_READ));
    EXPECT_EQ(order.pages, kPagesPerBlock);
    repaired.push_back(order.first_page / kPagesPerBlock);
    EXPECT_EQ(AgentOf(b).Drain(OrderOp::kLook), 1);
    EXPECT_EQ(AgentOf(a).Drain(OrderOp::kLook), 0) << "the others have it";
    Do(b);
    opt_in_.Tick();
  }
  std::ranges::sort(repaired);
  EXPECT_EQ(repaired, (std::vector<uint64_t>{1, 3, 5}));
  const UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0) << "it is like the others again";
}

TEST_F(OptInTest, MappedWhileItIsOpenOneIsToldButNotWaitedFor) {
  Guest& a = NewMapper();
  const UniqueFd reply = Protect(a, PROT_READ);
  Guest& late = NewMapper();
  EXPECT_EQ(AccessAt(late), AccessSet(Access::kRead));
  EXPECT_EQ(AgentOf(late).Look().op, BoardOp::kProtect);
  Do(late);  // takes one off `pending` that nobody had counted
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  Do(a);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, AnOpenOrderHoldsForWhoMapsThePagesAlone) {
  Guest& a = NewMapper();
  Guest& other = NewMapper(kVa, kBlockSize, 7 * kBlockSize);
  const UniqueFd reply = Protect(a, PROT_READ, kVa, kBlockSize);
  // Nobody maps those pages any more, but the order still stands on the board.
  Note(a, Ranged(Kind::kUnmap, kVa, 2 * kBlockSize));
  const std::optional<Message> answer = MapIn(other, 2 * kVa, 2 * kBlockSize, 0);
  EXPECT_EQ(answer->prot, static_cast<uint32_t>(PROT_READ));
  EXPECT_EQ(answer->length, kBlockSize);
  Do(a);
}

TEST_F(OptInTest, AnotherAgentIsToldOfAllBoards) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  Message note = NewPacket(Kind::kAgent);
  Note(b, note);
  EXPECT_EQ(AgentOf(b).Drain(OrderOp::kQuit), 1);
  const UniqueFd reply = Protect(a, PROT_READ);
  EXPECT_EQ(AgentOf(b).Next(), std::nullopt) << "nobody reads";
  Do(a);
  note.value[0] = 1;
  Note(b, note);
  ASSERT_EQ(AgentOf(b).Next()->op, OrderOp::kWatch);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, WhatAFullChannelLostIsSentOnALaterTick) {
  Guest& a = NewMapper();
  Guest& b = NewOptInGuest();
  Agent& agent = AgentOf(b);
  const Message noise = NewPacket(Kind::kOrder);
  while (SendPacket(b.channel.fd.get(), noise) == SendResult::kSent) {
  }
  ASSERT_EQ(StatusOf(b, AdoptAt(kVa, kRegion, 0, PROT_READ), UniqueFd(dup(memory_.get()))),
            Status::kOk);
  EXPECT_EQ(agent.Drain(OrderOp::kWatch), 0);
  opt_in_.Tick();
  EXPECT_EQ(agent.Drain(OrderOp::kWatch), 1);
  const UniqueFd reply = Protect(a, PROT_READ);
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0);
}

}  // namespace
}  // namespace hostmm
