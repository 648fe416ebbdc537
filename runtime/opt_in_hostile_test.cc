// Opt-in memory and guests that lie; advice; and what else there is to ask about it.
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

#include "runtime/opt_in.h"
#include "runtime/opt_in_fixture.h"

namespace hostmm {
namespace {

using protocol::BoardOp;
using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;
using protocol::Status;
using Verdict = Session::Verdict;

TEST_F(OptInTest, WhatIsNotYoursIsRefused) {
  Guest& a = NewMapper();
  Guest& plain = NewOptInGuest();
  MapOne(plain, kVa);
  Guest& stranger = NewOptInGuest();
  const uint64_t evil[] = {0,
                           1,
                           kPageSize,
                           kVa - kPageSize,
                           kVa + 1,
                           kVa + kRegion,
                           ~uint64_t{0},
                           uint64_t{1} << 63,
                           kMaxGuestAddr};
  for (const BoardOp op : {BoardOp::kProtect, BoardOp::kZap, BoardOp::kVote, BoardOp::kAdvise}) {
    EXPECT_EQ(StatusOf(stranger, ForAll(op, kVa, kRegion)), Status::kRefused);
    EXPECT_EQ(StatusOf(plain, ForAll(op, kVa, kRegion)), Status::kRefused) << "it did not opt in";
    for (const uint64_t va : evil) {
      EXPECT_EQ(StatusOf(a, ForAll(op, va, kRegion)), Status::kRefused) << va;
    }
    for (const uint64_t length : {uint64_t{0}, uint64_t{1}, kPageSize + 1, kRegion + kPageSize,
                                  ~uint64_t{0}, ~uint64_t{0} - 4095}) {
      EXPECT_EQ(StatusOf(a, ForAll(op, kVa, length)), Status::kRefused) << length;
    }
  }
  for (const uint64_t op : {uint64_t{0}, uint64_t{5}, ~uint64_t{0}}) {
    Message ask = ForAll(BoardOp::kNone, kVa, kRegion);
    ask.value[1] = op;
    EXPECT_EQ(ErrorOn(Send(a, ask)), EINVAL);
  }
  EXPECT_EQ(ErrorOn(Protect(a, PROT_READ | 0x10)), EINVAL);
  Message advise = ForAll(BoardOp::kAdvise, kVa, kRegion);
  advise.value[0] = MADV_DONTNEED;
  EXPECT_EQ(ErrorOn(Send(a, advise)), EINVAL);
  EXPECT_EQ(Counts().operations.operations, 0u);
  EXPECT_EQ(AccessAt(a), AccessSet::ReadWrite());
  ExpectSound();
}

TEST_F(OptInTest, ShareFlagsThatMakeNoSenseAreRefused) {
  Guest& guest = NewOptInGuest();
  const auto adopt = [&](protocol::Share share, uint64_t va = kVa, uint64_t length = kRegion,
                         uint64_t offset = 0) {
    return StatusOf(guest, AdoptAt(va, length, offset, PROT_READ, share),
                    UniqueFd(dup(memory_.get())));
  };
  const protocol::Share evil[] = {1,
                                  kTracked,
                                  256,
                                  ~0u,
                                  kDedicated,
                                  kNeverWrite,
                                  kPrivate,
                                  kPrivate | kDedicated,
                                  kSharedPt | kTracked,
                                  kSharedPt | kHintHuge};
  for (const protocol::Share share : evil) {
    EXPECT_EQ(adopt(share), Status::kRefused) << share;
  }
  EXPECT_EQ(adopt(kSharedPt, kVa + kPageSize), Status::kRefused);
  EXPECT_EQ(adopt(kSharedPt, kVa, kRegion - kPageSize), Status::kRefused);
  EXPECT_EQ(adopt(kSharedPt, kVa, kBlockSize, kPageSize), Status::kRefused);
  EXPECT_EQ(adopt(kSharedPt, kVa, 0), Status::kRefused);
  Message sysv = AdoptAt(kVa, kRegion, 0, PROT_READ);
  sysv.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kSysV);
  EXPECT_EQ(StatusOf(guest, sysv), Status::kRefused);
  const std::optional<Message> created = Ask(guest, Ranged(Kind::kCreate, 0, kRegion));
  Message map = Ranged(Kind::kMap, kVa, kRegion);
  map.mm = created->mm;
  map.mode = kSharedPt | kPrivate;
  EXPECT_EQ(StatusOf(guest, map), Status::kRefused);
  Guest& agentless = NewGuest();
  EXPECT_EQ(StatusOf(agentless, AdoptAt(kVa, kRegion, 0, PROT_READ), UniqueFd(dup(memory_.get()))),
            Status::kNotPermitted);
  EXPECT_EQ(Regions(guest), 0u);
  EXPECT_EQ(segment_.reader().Pools().mms, 0u);
  EXPECT_EQ(adopt(kSharedPt | kDedicated, kVa, kBlockSize, kBlockSize), Status::kOk);
}

TEST_F(OptInTest, AReadOnlyDescriptorNeverMakesAnythingWritable) {
  Guest& owner = NewMapper();
  Guest& reader = NewOptInGuest();
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", memory_.get());
  UniqueFd read_only(open(path, O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(read_only.ok());
  ASSERT_EQ(StatusOf(reader, AdoptAt(kVa, kRegion, 0, PROT_READ), std::move(read_only)),
            Status::kOk);
  AgentOf(reader).Next();
  const Region region = *segment_.reader().FindRegion(reader.id, GuestAddr(kVa));
  EXPECT_NE(region.flags & kNeverWrite, 0u);
  EXPECT_EQ(region.KernelAccess(), AccessSet(Access::kRead));
  EXPECT_EQ(ErrorOn(Protect(reader, PROT_READ | PROT_WRITE)), EACCES);
  // It may take the right away, and others may give it, to themselves.
  UniqueFd reply = Protect(reader, PROT_READ);
  Do(owner);
  Do(reader);
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(AccessAt(owner), AccessSet(Access::kRead));
  reply = Protect(owner, PROT_READ | PROT_WRITE);
  Do(owner);
  Do(reader);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, APrivateMappingIsNeverWritable) {
  Guest& guest = NewOptInGuest();
  ASSERT_EQ(StatusOf(guest, AdoptAt(kVa, kRegion, 0, PROT_READ | PROT_WRITE, kSharedPt | kPrivate),
                     UniqueFd(dup(memory_.get()))),
            Status::kOk);
  EXPECT_EQ(ErrorOn(Protect(guest, PROT_READ | PROT_WRITE)), EACCES);
  EXPECT_EQ(AccessAt(guest), AccessSet(Access::kRead));
}

TEST_F(OptInTest, GarbageOnTheBoardDelaysAndNoMore) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  memset(AgentOf(b).acks(), 0xff, board::AcksBytes(SegmentConfig{}.max_guests + 1));
  UniqueFd reply = Protect(a, PROT_READ);
  SayDone(b);
  SayDone(a);
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  Ticks(kPatience);
  EXPECT_EQ(ErrorOn(reply), ETIMEDOUT);
  // What it can cut off or fill, it shares with itself.
  EXPECT_NE(ftruncate(AgentOf(b).acks_fd(), 0), 0);
  EXPECT_NE(pwrite(AgentOf(b).orders(), "x", 1, 0), 1);
  EXPECT_EQ(mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, AgentOf(b).orders(), 0),
            MAP_FAILED);
  EXPECT_NE(ftruncate(AgentOf(b).orders(), 0), 0);
  ExpectSound();
}

TEST_F(OptInTest, AFullBellIsReplacedByPackets) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", AgentOf(b).bell());
  const UniqueFd writer(open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC));
  ASSERT_TRUE(writer.ok());
  const std::vector<char> noise(1 << 20);
  while (write(writer.get(), noise.data(), noise.size()) > 0) {
  }
  // The open file that guests share: made to wait, it makes only them wait.
  fcntl(AgentOf(b).bell(), F_SETFL, 0);
  fcntl(writer.get(), F_SETFL, 0);
  BellWatch bell(AgentOf(a).bell());
  UniqueFd reply = Protect(a, PROT_READ);
  EXPECT_TRUE(bell.Rang() || AgentOf(a).Drain(OrderOp::kLook) == 1);
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, AFloodOfOneGuestIsBounded) {
  Guest& a = NewMapper();
  std::vector<UniqueFd> replies;
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    replies.push_back(Protect(a, i % 2 == 0 ? PROT_READ : PROT_NONE));
    const std::optional<Message> answer = AnswerOn(replies.back());
    if (answer.has_value() && answer->status == Status::kFull) ++refused;
  }
  EXPECT_EQ(refused, 300 - 128);
  for (int i = 0; i < 128; ++i) Do(a);
  EXPECT_EQ(a.open_for_all, 0u);
  EXPECT_EQ(AgentOf(a).Look().op, BoardOp::kNone);
}

TEST_F(OptInTest, WithoutAReplySocketItIsDoneAllTheSame) {
  Guest& a = NewMapper();
  EXPECT_EQ(Note(a, ForAll(BoardOp::kProtect, kVa, kRegion)), Verdict::kKeep);
  Do(a);
  EXPECT_EQ(AccessAt(a), AccessSet(Access::kRead));
  EXPECT_EQ(a.open_for_all, 0u);
}

TEST_F(OptInTest, OthersSplitsNeverEndAGuest) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  int error = -1;
  for (uint64_t page = 0; page < kRegion / kPageSize && error == -1; page += 2) {
    const UniqueFd reply = Protect(a, PROT_READ, kVa + page * kPageSize, kPageSize);
    error = ErrorOn(reply);
    if (error != -1) break;
    Do(a);
    Do(b);
  }
  EXPECT_EQ(error, ENOMEM);
  EXPECT_LT(Regions(b), kRegionsPerGuest);
  EXPECT_EQ(Note(b, Ranged(Kind::kPunch, kVa, kPageSize)), Verdict::kKeep);
}

TEST_F(OptInTest, AVoteOfAllIsAZap) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  UniqueFd reply = Send(a, ForAll(BoardOp::kVote, kVa, kRegion));
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(AgentOf(b).Look().op, BoardOp::kNone) << "only one has voted";
  reply = Send(b, ForAll(BoardOp::kVote, kVa + kBlockSize, kBlockSize));
  const board::Order zap = AgentOf(a).Look();
  EXPECT_EQ(zap.op, BoardOp::kZap);
  EXPECT_EQ(zap.first_page, kPagesPerBlock);
  EXPECT_EQ(zap.pages, kPagesPerBlock);
  EXPECT_EQ(AnswerOn(reply), std::nullopt);
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(Counts().votes, 2u);
  // The votes are used up.
  reply = Send(b, ForAll(BoardOp::kVote, kVa + kBlockSize, kBlockSize));
  EXPECT_EQ(ErrorOn(reply), 0);
  EXPECT_EQ(AgentOf(a).Look().op, BoardOp::kNone);
}

TEST_F(OptInTest, WhoLeavesIsNotAskedForItsVote) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  Guest& c = NewMapper();
  EXPECT_EQ(ErrorOn(Send(a, ForAll(BoardOp::kVote, kVa, kBlockSize))), 0);
  EXPECT_EQ(ErrorOn(Send(b, ForAll(BoardOp::kVote, kVa, kRegion))), 0);
  Note(c, Ranged(Kind::kUnmap, kVa, kRegion));
  EXPECT_EQ(AgentOf(a).Look().op, BoardOp::kZap);
  EXPECT_EQ(AgentOf(a).Look().pages, kPagesPerBlock);
  Do(a);
  Do(b);
  EndGuest(a);
  EXPECT_EQ(AgentOf(b).Look().op, BoardOp::kZap) << "b alone maps it, and has voted for the rest";
  EXPECT_EQ(AgentOf(b).Look().first_page, kPagesPerBlock);
  Do(b);
}

TEST_F(OptInTest, AHintIsForAllMappings) {
  Guest& a = NewMapper();
  Guest& b = NewMapper();
  Message advise = ForAll(BoardOp::kAdvise, kVa, kRegion);
  advise.value[0] = MADV_NOHUGEPAGE;
  const UniqueFd reply = Send(a, advise);
  const board::Order order = AgentOf(b).Look();
  EXPECT_EQ(order.op, BoardOp::kAdvise);
  EXPECT_EQ(order.advice, static_cast<uint64_t>(MADV_NOHUGEPAGE));
  Do(a);
  Do(b);
  EXPECT_EQ(ErrorOn(reply), 0);
  for (const Guest* guest : {&a, &b}) {
    EXPECT_NE(segment_.reader().FindRegion(guest->id, GuestAddr(kVa))->flags & kHintSmall, 0u);
  }
}

TEST_F(OptInTest, AMoveKeepsItInOrder) {
  Guest& a = NewMapper();
  UniqueFd reply = Protect(a, PROT_READ, kVa + kBlockSize, kBlockSize);
  Do(a);
  ASSERT_EQ(ErrorOn(reply), 0);
  Message move = Ranged(Kind::kMove, kVa, kRegion);
  move.value[0] = 2 * kVa;
  move.value[1] = kRegion;
  EXPECT_EQ(StatusOf(a, move), Status::kOk) << "three regions here, one mapping there";
  EXPECT_EQ(AccessAt(a, 2 * kVa), AccessSet::ReadWrite());
  EXPECT_EQ(AccessAt(a, 2 * kVa + kBlockSize), AccessSet(Access::kRead));
  reply = Protect(a, PROT_NONE, 2 * kVa, kRegion);
  Do(a);
  Ticks(1);
  EXPECT_EQ(ErrorOn(reply), 0);
}

TEST_F(OptInTest, WillNeedMakesWhatIsMissing) {
  Guest& guest = NewOptInGuest();
  const MmId mm = MapOne(guest, kVa, kSharedPt);
  EXPECT_EQ(Note(guest, Ranged(Kind::kFill, kVa + kBlockSize, 2 * kBlockSize)), Verdict::kKeep);
  EXPECT_EQ(Note(guest, Ranged(Kind::kFill, kVa + 64 * kRegion, kRegion)), Verdict::kKeep);
  struct stat info;
  const std::shared_ptr<const Backing> backing = files_.Find(mm);
  for (int i = 0; i < 1000; ++i) {
    pool_.RunDone();
    ASSERT_EQ(fstat(backing->file().get(), &info), 0);
    if (static_cast<uint64_t>(info.st_blocks) * 512 == 2 * kBlockSize) break;
    pollfd done = {pool_.event_fd(), POLLIN, 0};
    poll(&done, 1, 10);
  }
  EXPECT_EQ(static_cast<uint64_t>(info.st_blocks) * 512, 2 * kBlockSize);
}

TEST_F(OptInTest, IsSharedKnowsWhatMayBeShared) {
  Guest& a = NewMapper();
  Message ask = NewPacket(Kind::kIsShared);
  ask.va = kVa + 5;
  EXPECT_EQ(Ask(a, ask)->value[0], 1u);
  ask.va = kVa + kRegion;
  EXPECT_EQ(Ask(a, ask)->status, Status::kRefused);
  Guest& plain = NewGuest();
  MapOne(plain);
  ask.va = kVa;
  EXPECT_EQ(Ask(plain, ask)->value[0], 1u);
  Message note = Ranged(Kind::kProtect, kVa, kPageSize);
  note.prot = PROT_READ;
  Note(plain, note);
  EXPECT_EQ(Ask(plain, ask)->value[0], 0u) << "changed on its own";
}

TEST_F(OptInTest, AFileOfADiskIsTheKernels) {
  char path[] = "/var/tmp/hostmm-opt-in-XXXXXX";
  UniqueFd file(mkostemp(path, O_CLOEXEC));
  if (!file.ok()) GTEST_SKIP() << "no file in /var/tmp: " << strerror(errno);
  unlink(path);
  struct statfs system;
  ASSERT_EQ(fstatfs(file.get(), &system), 0);
  if (system.f_type == TMPFS_MAGIC) GTEST_SKIP() << "/var/tmp is a tmpfs";
  ASSERT_EQ(ftruncate(file.get(), kRegion), 0);
  Guest& guest = NewOptInGuest();
  ASSERT_EQ(
      StatusOf(guest, AdoptAt(kVa, kRegion, 0, PROT_READ | PROT_WRITE), UniqueFd(dup(file.get()))),
      Status::kOk);
  AgentOf(guest).Next();
  const Region region = *segment_.reader().FindRegion(guest.id, GuestAddr(kVa));
  EXPECT_EQ(segment_.tables.Info(region.mm).frames, FrameKind::kForeign);
  Message ask = NewPacket(Kind::kIsShared);
  ask.va = kVa;
  EXPECT_EQ(Ask(guest, ask)->value[0], 0u);
  const UniqueFd reply = Protect(guest, PROT_READ);
  Do(guest);
  EXPECT_EQ(ErrorOn(reply), 0);
}

}  // namespace
}  // namespace hostmm
