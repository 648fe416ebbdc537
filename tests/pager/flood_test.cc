// Guests that want more than their share: connections, children, files, silence. While they do, and
// after, an honest guest of another user is served.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/pager/pager_child.h"
#include "tests/pager/raw_guest.h"
#include "tests/testing/deadline.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

class FloodTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    HOSTMM_SKIP_IF(WhyNoRoot());
  }
  // REQUIRES: before any guest of the test.
  void Start(int max_fds = 0) {
    pager_ = std::make_unique<PagerChild>(
        PagerChild::Setup{.frames = FramesChoice::kBase, .max_fds = max_fds});
    ASSERT_TRUE(pager_->ok()) << pager_->ready();
    ASSERT_TRUE(HonestGuestIsServed(pager_->socket_path()));
    ASSERT_TRUE(pager_->BecomesEmpty(1 << 20));
    descriptors_ = pager_->OpenDescriptors();
  }

  // The hostile guests belong to nobody; the honest ones to root.
  int AsNobody(const Child::Body& body) {
    Child hostile(Identity::kNobody, body);
    return hostile.Wait();
  }
  const std::string& socket_path() const { return pager_->socket_path(); }
  void ExpectNothingLeft() {
    if (pager_->BecomesEmpty(descriptors_)) return;
    const std::optional<Census> census = pager_->Take();
    ASSERT_TRUE(census.has_value()) << "the pager does not answer";
    ADD_FAILURE() << census->guests << " guests, " << census->mms << " mms, " << census->regions
                  << " regions and " << pager_->OpenDescriptors() - descriptors_
                  << " descriptors are left";
    for (const std::string& problem : census->problems) ADD_FAILURE() << problem;
  }

  std::unique_ptr<PagerChild> pager_;
  int descriptors_ = 0;
};

TEST_F(FloodTest, ConnectionsThatNeverSpeakAreBoundedAndDropped) {
  ASSERT_NO_FATAL_FAILURE(Start());
  constexpr size_t kConnections = 600;
  std::vector<std::unique_ptr<RawGuest>> silent;
  for (size_t i = 0; i < kConnections; ++i) {
    silent.push_back(std::make_unique<RawGuest>(socket_path()));
    ASSERT_GE(silent.back()->channel(), 0);
  }
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
  EXPECT_LE(pager_->OpenDescriptors(), descriptors_ + 300);
  EXPECT_TRUE(silent.front()->IsEnded()) << "the oldest is kept though there are too many";
  EXPECT_TRUE(silent.back()->IsEnded()) << "the newest is waited for without end";
  silent.clear();
  ExpectNothingLeft();
}

// Both ends of the channel lie in the pager: no end of file will ever come.
TEST_F(FloodTest, ChildrenThatNeverAttachAreBoundedAndForgotten) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Child hostile(Identity::kNobody, [&](Channel& channel) {
    RawGuest guest(socket_path());
    CHILD_CHECK(guest.Hello());
    CHILD_CHECK(guest.Attach(TestUffd()));
    CHILD_CHECK(guest.NewRegion(4 * kBlock).ok());
    int ends[2];
    CHILD_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    for (int i = 0; i < 5000; ++i) {
      CHILD_CHECK(guest.SendPatiently(NewPacket(Kind::kForkIntent), {ends[i % 2]}));
    }
    CHILD_CHECK(channel.Signal());
    CHILD_CHECK(channel.Await());
    return 0;
  });
  ASSERT_TRUE(hostile.channel().Await());
  EXPECT_TRUE(HonestGuestIsServed(socket_path())) << "one user has taken the whole directory";
  EXPECT_TRUE(hostile.channel().Signal());
  EXPECT_EQ(hostile.Wait(), 0);
  ExpectNothingLeft();
}

TEST_F(FloodTest, FilesOfOneUserLeaveRoomForOthers) {
  ASSERT_NO_FATAL_FAILURE(Start());
  Child hostile(Identity::kNobody, [&](Channel& channel) {
    RawGuest guest(socket_path());
    CHILD_CHECK(guest.Hello());
    CHILD_CHECK(guest.Attach(TestUffd()));
    uint32_t made = 0;
    for (uint64_t i = 0; i < 1100; ++i) {
      Message message = NewPacket(Kind::kCreate);
      message.length = kPage;
      const auto created = guest.Ask(message);
      CHILD_CHECK(created.has_value());
      if (created->status == Status::kFull) break;
      CHILD_CHECK(created->status == Status::kOk);
      message.kind = Kind::kMap;
      message.va = (i + 1) * kBlock;
      message.mm = created->mm;
      const auto mapped = guest.Ask(message);
      CHILD_CHECK(mapped.has_value() && mapped->status == Status::kOk);
      ++made;
    }
    CHILD_CHECK(made >= 256 && made < 1024);
    CHILD_CHECK(channel.Signal());
    CHILD_CHECK(channel.Await());
    return 0;
  });
  ASSERT_TRUE(hostile.channel().Await());
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
  EXPECT_TRUE(hostile.channel().Signal());
  EXPECT_EQ(hostile.Wait(), 0);
  ExpectNothingLeft();
}

TEST_F(FloodTest, AGuestWithTooManyPiecesGoesOnAlone) {
  ASSERT_NO_FATAL_FAILURE(Start());
  EXPECT_EQ(AsNobody([&](Channel&) {
              RawGuest guest(socket_path());
              CHILD_CHECK(guest.Hello());
              CHILD_CHECK(guest.Attach(TestUffd()));
              const ScopedMapping region = guest.NewRegion(64 * kBlock);
              CHILD_CHECK(region.ok());
              Message protect = NewPacket(Kind::kProtect);
              protect.length = kPage;
              for (uint64_t page = 0; page < region.size() / kPage; page += 2) {
                protect.va = reinterpret_cast<uintptr_t>(region.data()) + page * kPage;
                if (!guest.SendPatiently(protect)) return 0;
              }
              CHILD_CHECK(guest.IsEnded());
              return 0;
            }),
            0);
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
  ExpectNothingLeft();
}

TEST_F(FloodTest, AGuestThatNeverReadsIsNotWaitedFor) {
  ASSERT_NO_FATAL_FAILURE(Start());
  EXPECT_EQ(AsNobody([&](Channel&) {
              RawGuest guest(socket_path());
              CHILD_CHECK(guest.Hello());
              CHILD_CHECK(guest.Attach(guest.NewUffd()));
              int ends[2];
              CHILD_CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
              Message create = NewPacket(Kind::kCreate);
              create.length = 4 * kBlock;
              for (int i = 0; i < 2000; ++i) {
                CHILD_CHECK(guest.SendPatiently(create, {ends[1]}));
              }
              return 0;
            }),
            0);
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
  ExpectNothingLeft();
}

// Packets as fast as they can be sent, from several guests at once.
TEST_F(FloodTest, PacketsWithoutPauseLeaveTurnsForOthers) {
  ASSERT_NO_FATAL_FAILURE(Start());
  std::vector<std::unique_ptr<Child>> flood;
  for (int i = 0; i < 3; ++i) {
    flood.push_back(std::make_unique<Child>(Identity::kNobody, [&](Channel& channel) {
      RawGuest guest(socket_path());
      CHILD_CHECK(guest.Hello());
      CHILD_CHECK(guest.Attach(TestUffd()));
      CHILD_CHECK(channel.Signal());
      const Deadline end(std::chrono::seconds(2));
      while (!end.expired()) CHILD_CHECK(guest.SendPatiently(NewPacket(Kind::kUnmap)));
      return 0;
    }));
    ASSERT_TRUE(flood.back()->channel().Await());
  }
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
  for (const auto& guest : flood) EXPECT_EQ(guest->Wait(), 0);
  ExpectNothingLeft();
}

// A connection that found no descriptor raises no second edge.
TEST_F(FloodTest, AConnectionMadeWhenDescriptorsWereShortIsServedLater) {
  constexpr int kMaxFds = 40;
  ASSERT_NO_FATAL_FAILURE(Start(kMaxFds));
  std::vector<std::unique_ptr<RawGuest>> guests;
  for (int i = 0; i < kMaxFds; ++i) guests.push_back(std::make_unique<RawGuest>(socket_path()));
  RawGuest late(socket_path());
  ASSERT_TRUE(
      PollUntil(Deadline(kStepDeadline), [&] { return pager_->OpenDescriptors() >= kMaxFds - 1; }));
  Child waits(Identity::kSame, [&](Channel&) { return late.Enter() ? 0 : 1; });
  guests.clear();
  EXPECT_EQ(waits.Wait(), 0);
  late.Disconnect();
  ExpectNothingLeft();
}

// The life pipe is there for its end. Bytes in it, written by anybody of the tree, change nothing.
TEST_F(FloodTest, BytesInTheLifePipeDoNotStopTheLoop) {
  int life[2];
  ASSERT_EQ(pipe2(life, O_CLOEXEC), 0);
  ScopedFd read_end(life[0]);
  PagerChild pager({.frames = FramesChoice::kBase, .life_fd = read_end.get()});
  ASSERT_TRUE(pager.ok()) << pager.ready();
  ASSERT_EQ(write(life[1], "x", 1), 1);
  EXPECT_TRUE(HonestGuestIsServed(pager.socket_path()));
  EXPECT_EQ(pager.Terminate(), 0);
  close(life[1]);
}

}  // namespace
}  // namespace hostmm::test
