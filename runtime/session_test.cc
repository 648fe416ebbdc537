// Each kind of packet with fields that lie, against real tables, files and a fake pager.
#include "runtime/session.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <utility>

#include "runtime/session_fixture.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;
using Verdict = Session::Verdict;

using SessionTest = SessionFixture;

TEST_F(SessionTest, CreateGivesAFileOfTheLength) {
  Guest& guest = NewGuest();
  const std::optional<Message> created = Ask(guest, Ranged(Kind::kCreate, 0, kRegion));
  ASSERT_TRUE(created.has_value());
  EXPECT_EQ(created->status, Status::kOk);
  struct stat info;
  ASSERT_EQ(fstat(file_.get(), &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), kRegion);
}

TEST_F(SessionTest, CreateRefusesLengthsAndOffsetsThatMakeNoSense) {
  Guest& guest = NewGuest();
  for (const uint64_t length : {uint64_t{0}, uint64_t{1}, kRegion + 1, ~uint64_t{0}}) {
    EXPECT_EQ(StatusOf(guest, Ranged(Kind::kCreate, 0, length)), Status::kRefused) << length;
  }
  Message create = Ranged(Kind::kCreate, 0, kRegion);
  for (const uint64_t offset : {uint64_t{1}, kBlockSize, ~uint64_t{0}, ~uint64_t{0} - 4095}) {
    create.offset = offset;
    EXPECT_EQ(StatusOf(guest, create), Status::kRefused) << offset;
  }
  for (const uint64_t length : {uint64_t{1} << 37, ~uint64_t{0} & ~uint64_t{4095}}) {
    EXPECT_EQ(StatusOf(guest, Ranged(Kind::kCreate, 0, length)), Status::kNoFrames) << length;
  }
  EXPECT_EQ(session_.ledger().refused, 10u);
}

TEST_F(SessionTest, OnlyTheLastCreatedFileIsKept) {
  Guest& guest = NewGuest();
  for (int i = 0; i < 2000; ++i) {  // more than there are mms
    ASSERT_EQ(StatusOf(guest, Ranged(Kind::kCreate, 0, kRegion)), Status::kOk) << i;
  }
  EXPECT_EQ(segment_.reader().Pools().mms, 1u);
}

TEST_F(SessionTest, OneUserLeavesFilesForOthers) {
  Guest& greedy = NewGuest(1000);
  uint64_t made = 0;
  for (; made < 2000; ++made) {
    const std::optional<Message> created = Ask(greedy, Ranged(Kind::kCreate, 0, kPageSize));
    if (created->status != Status::kOk) {
      EXPECT_EQ(created->status, Status::kFull);
      break;
    }
    Message map = Ranged(Kind::kMap, kVa + made * kBlockSize, kPageSize);
    map.mm = created->mm;
    ASSERT_EQ(StatusOf(greedy, map), Status::kOk);
  }
  EXPECT_EQ(made, SegmentConfig{}.max_mms / 4 * 3);
  MapOne(NewGuest(1001));
}

TEST_F(SessionTest, MapTakesOnlyTheFileOfThisGuest) {
  Guest& owner = NewGuest();
  Guest& thief = NewGuest();
  const std::optional<Message> created = Ask(owner, Ranged(Kind::kCreate, 0, kRegion));
  Message map = Ranged(Kind::kMap, kVa, kRegion);
  map.mm = created->mm;
  EXPECT_EQ(StatusOf(thief, map), Status::kRefused);
  map.mm.generation ^= 1;
  EXPECT_EQ(StatusOf(owner, map), Status::kRefused);
  map.mm = {};
  EXPECT_EQ(StatusOf(owner, map), Status::kRefused);
  map.mm = created->mm;
  EXPECT_EQ(StatusOf(owner, map), Status::kOk);
  EXPECT_EQ(StatusOf(owner, map), Status::kRefused) << "it is mapped already";
}

TEST_F(SessionTest, MapRefusesRangesThatMakeNoSense) {
  Guest& guest = NewGuest();
  const struct {
    uint64_t va;
    uint64_t length;
    uint64_t offset;
  } ranges[] = {{1, kRegion, 0},
                {kVa, 1, 0},
                {~uint64_t{0} - 4095, kRegion, 0},
                {kMaxGuestAddr, kRegion, 0},
                {kMaxGuestAddr - kPageSize, kRegion, 0},
                {kVa, ~uint64_t{0}, 0},
                {kVa, kRegion, ~uint64_t{0}}};
  for (const auto& range : ranges) {
    const std::optional<Message> created = Ask(guest, Ranged(Kind::kCreate, 0, kRegion));
    Message map = Ranged(Kind::kMap, range.va, range.length);
    map.mm = created->mm;
    map.offset = range.offset;
    EXPECT_EQ(StatusOf(guest, map), Status::kRefused) << range.va << " " << range.length;
    EXPECT_EQ(Regions(guest), 0u);
    ExpectSound();
  }
}

TEST_F(SessionTest, MapOfNoLengthGivesTheFileBack) {
  Guest& guest = NewGuest();
  Message map = Ranged(Kind::kMap, 0, 0);
  map.mm = Ask(guest, Ranged(Kind::kCreate, 0, kRegion))->mm;
  EXPECT_EQ(StatusOf(guest, map), Status::kOk);
  EXPECT_EQ(segment_.reader().Pools().mms, 0u);
}

TEST_F(SessionTest, AdoptWantsAFile) {
  Guest& guest = NewGuest();
  Message adopt = Ranged(Kind::kAdopt, kVa, kRegion);
  adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
  EXPECT_EQ(StatusOf(guest, adopt), Status::kRefused) << "no descriptor";
  EXPECT_EQ(StatusOf(guest, adopt, UniqueFd(open("/dev/null", O_RDWR | O_CLOEXEC))),
            Status::kRefused);
  EXPECT_EQ(StatusOf(guest, adopt, UniqueFd(open("/", O_RDONLY | O_CLOEXEC))), Status::kRefused);
  UniqueFd memory(memfd_create("adopted", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(memory.get(), kRegion), 0);
  for (const uint64_t offset : {uint64_t{1}, ~uint64_t{0}, ~uint64_t{0} - 4095}) {
    adopt.offset = offset;
    EXPECT_EQ(StatusOf(guest, adopt, UniqueFd(dup(memory.get()))), Status::kRefused) << offset;
    ExpectSound();
  }
  EXPECT_EQ(segment_.reader().Pools().mms, 0u);
  adopt.offset = 0;
  EXPECT_EQ(StatusOf(guest, adopt, std::move(memory)), Status::kOk);
  EXPECT_EQ(Regions(guest), 1u);
}

TEST_F(SessionTest, TheSameFileIsAdoptedOnce) {
  UniqueFd memory(memfd_create("adopted", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(memory.get(), kRegion), 0);
  Message adopt = Ranged(Kind::kAdopt, kVa, kRegion);
  adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(StatusOf(NewGuest(), adopt, UniqueFd(dup(memory.get()))), Status::kOk);
  }
  EXPECT_EQ(segment_.reader().Pools().mms, 1u);
  adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kSysV);
  adopt.value[1] = 5;
  ASSERT_EQ(StatusOf(NewGuest(), adopt), Status::kOk);
  EXPECT_EQ(segment_.reader().Pools().mms, 2u);
}

TEST_F(SessionTest, NotesAboutAnyRangeLeaveSoundTables) {
  Guest& guest = NewGuest();
  MapOne(guest);
  const uint64_t evil[] = {0,
                           1,
                           kPageSize,
                           kVa - kPageSize,
                           kVa,
                           kVa + 1,
                           kVa + kRegion,
                           kRegion,
                           kMaxGuestAddr,
                           ~uint64_t{0},
                           ~uint64_t{0} - 4095,
                           uint64_t{1} << 63};
  for (const Kind kind : {Kind::kPunch, Kind::kFlags, Kind::kProtect, Kind::kUnmap}) {
    for (const uint64_t va : evil) {
      for (const uint64_t length : evil) {
        Message note = Ranged(kind, va, length);
        note.prot = ~0u;
        note.value[0] = ~uint64_t{0};
        EXPECT_EQ(Note(guest, note), Verdict::kKeep);
        ExpectSound();
      }
    }
  }
}

TEST_F(SessionTest, AGuestCannotMakeARegionTracked) {
  Guest& guest = NewGuest();
  MapOne(guest);
  Message flags = Ranged(Kind::kFlags, kVa, kRegion);
  flags.value[0] = ~uint64_t{0};
  EXPECT_EQ(Note(guest, flags), Verdict::kKeep);
  const std::optional<Region> region = segment_.reader().FindRegion(guest.id, GuestAddr(kVa));
  ASSERT_TRUE(region.has_value());
  EXPECT_EQ(region->flags & kTracked, 0u);
  EXPECT_NE(region->flags & kDontFork, 0u);
}

TEST_F(SessionTest, AnOutsidersRangeTouchesNobodyElse) {
  Guest& owner = NewGuest();
  Guest& outsider = NewGuest();
  MapOne(owner);
  for (const Kind kind : {Kind::kUnmap, Kind::kPunch, Kind::kProtect}) {
    EXPECT_EQ(Note(outsider, Ranged(kind, kVa, kRegion)), Verdict::kKeep);
  }
  EXPECT_EQ(Regions(owner), 1u);
  EXPECT_EQ(segment_.reader().FindRegion(owner.id, GuestAddr(kVa))->access, AccessSet::ReadWrite());
}

TEST_F(SessionTest, AGuestInTooManyPiecesEnds) {
  Guest& guest = NewGuest();
  const uint64_t bytes = 64 * kBlockSize;
  Message map = Ranged(Kind::kMap, kVa, bytes);
  map.mm = Ask(guest, Ranged(Kind::kCreate, 0, bytes))->mm;
  ASSERT_EQ(StatusOf(guest, map), Status::kOk);
  uint64_t pieces = 0;
  Message protect = Ranged(Kind::kProtect, 0, kPageSize);
  protect.prot = PROT_READ;
  for (; pieces < bytes / kPageSize; pieces += 2) {
    protect.va = kVa + pieces * kPageSize;
    if (Note(guest, protect) == Verdict::kEndGuest) break;
  }
  EXPECT_LT(pieces, bytes / kPageSize);
  EXPECT_LE(Regions(guest), SegmentConfig{}.max_regions / 16 + 2);
  ExpectSound();
}

TEST_F(SessionTest, MoveChecksBothRanges) {
  Guest& guest = NewGuest();
  MapOne(guest);
  const struct {
    uint64_t va, length, to, new_length;
  } moves[] = {{kVa, kRegion, 1, kRegion},
               {kVa, kRegion, kVa + kPageSize, kRegion},
               {kVa, kRegion, ~uint64_t{0} - 4095, kRegion},
               {kVa, kRegion, kVa * 2, 0},
               {kVa, kRegion, kVa * 2, ~uint64_t{0}},
               {kVa + 1, kRegion, kVa * 2, kRegion},
               {kVa, kRegion + kPageSize, kVa * 2, kRegion},
               {kVa * 4, kRegion, kVa * 2, kRegion},
               {~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0}}};
  for (const auto& move : moves) {
    Message ask = Ranged(Kind::kMove, move.va, move.length);
    ask.value[0] = move.to;
    ask.value[1] = move.new_length;
    EXPECT_EQ(StatusOf(guest, ask), Status::kRefused) << move.va << " to " << move.to;
    ExpectSound();
  }
  EXPECT_TRUE(segment_.reader().FindRegion(guest.id, GuestAddr(kVa)).has_value());
  Message good = Ranged(Kind::kMove, kVa, kRegion);
  good.value[0] = kVa * 2;
  good.value[1] = kRegion;
  EXPECT_EQ(StatusOf(guest, good), Status::kOk);
  EXPECT_TRUE(segment_.reader().FindRegion(guest.id, GuestAddr(kVa * 2)).has_value());
}

TEST_F(SessionTest, AForkNeedsAChannel) {
  Guest& guest = NewGuest();
  MapOne(guest);
  const Message intent = NewPacket(Kind::kForkIntent);
  const auto fork_with = [&](int fd) {
    Packet packet;
    packet.message = intent;
    packet.fds[0].reset(fd);
    return session_.OnPacket(guest, std::move(packet));
  };
  // None: it says that somebody is not watched.
  EXPECT_EQ(fork_with(-1), Verdict::kKeep);
  EXPECT_EQ(fork_with(open("/dev/null", O_RDWR | O_CLOEXEC)), Verdict::kEndGuest);
  EXPECT_EQ(fork_with(memfd_create("no channel", MFD_CLOEXEC)), Verdict::kEndGuest);
  EXPECT_EQ(fork_with(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)), Verdict::kEndGuest);
  EXPECT_TRUE(children_.empty());
  EXPECT_EQ(fork_with(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)), Verdict::kKeep);
  EXPECT_EQ(children_.size(), 1u);
  // A full house: the child goes on without us, the parent stays.
  room_ = Room::kFull;
  EXPECT_EQ(fork_with(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)), Verdict::kKeep);
  EXPECT_EQ(children_.size(), 1u);
}

TEST_F(SessionTest, AttachTakesAUserfaultfdOrNothingAndOnce) {
  const auto attach = [&](Guest& guest, int fd, pid_t pid) {
    Packet packet;
    packet.message = NewPacket(Kind::kAttach);
    packet.fds[0].reset(fd);
    packet.sender_pid = pid;
    return session_.OnPacket(guest, std::move(packet));
  };
  Guest& guest = NewGuest();
  EXPECT_EQ(attach(guest, -1, 0), Verdict::kEndGuest) << "nobody vouches for the sender";
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  EXPECT_EQ(attach(guest, ends[0], 1), Verdict::kEndGuest);
  EXPECT_EQ(attach(guest, ends[1], 1), Verdict::kEndGuest);
  EXPECT_EQ(attach(guest, open("/proc/self/status", O_RDONLY), 1), Verdict::kEndGuest);
  EXPECT_EQ(attached_, 0);
  EXPECT_EQ(attach(guest, -1, 1), Verdict::kKeep);
  EXPECT_EQ(attach(guest, -1, 1), Verdict::kEndGuest);
  EXPECT_EQ(attached_, 1);
}

TEST_F(SessionTest, PacketsThatAreNoGuestsToSendEndIt) {
  Guest& guest = NewGuest();
  for (const uint32_t kind : {0u, 1u, 32u, 64u, 65u, 1000u, ~0u}) {
    EXPECT_EQ(Note(guest, NewPacket(static_cast<Kind>(kind))), Verdict::kEndGuest) << kind;
  }
}

TEST_F(SessionTest, WithoutAReplySocketTheQuestionStillCounts) {
  Guest& guest = NewGuest();
  EXPECT_EQ(Note(guest, Ranged(Kind::kCreate, 0, kRegion)), Verdict::kKeep);
  EXPECT_TRUE(guest.created.has_value());
}

TEST_F(SessionTest, AnAnswerToNoOrderIsIgnored) {
  Guest& guest = NewGuest();
  Message done = NewPacket(Kind::kOrderDone);
  for (const uint32_t order : {0u, 1u, ~0u}) {
    done.order = order;
    EXPECT_EQ(Note(guest, done), Verdict::kKeep);
  }
}

TEST_F(SessionTest, AnotherVersionIsToldSo) {
  std::array<int, 2> ends;
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
  const UniqueFd near(ends[0]);
  Packet hello;
  hello.message = NewPacket(Kind::kHello);
  ++hello.message.version;
  hello.fds[0].reset(ends[1]);
  session_.Welcome(hello);
  Packet answer;
  ASSERT_EQ(ReceivePacket(near.get(), &answer), ReceiveResult::kPacket);
  EXPECT_EQ(answer.message.status, Status::kVersion);
  EXPECT_NE(answer.message.text[0], '\0');
}

}  // namespace
}  // namespace hostmm
