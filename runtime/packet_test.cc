#include "runtime/packet.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <iterator>
#include <vector>

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;

int OpenDescriptors() {
  return static_cast<int>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

class PacketTest : public testing::Test {
 protected:
  PacketTest() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    ours_.reset(ends[0]);
    theirs_.reset(ends[1]);
    WantCredentials(ours_.get());
  }

  // The guest's side: anything goes.
  bool SendRaw(const void* bytes, size_t size, const std::vector<int>& fds = {}) {
    std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
    iovec vector = {const_cast<void*>(bytes), size};
    msghdr header = {};
    header.msg_iov = &vector;
    header.msg_iovlen = 1;
    if (!fds.empty()) {
      header.msg_control = control.data();
      header.msg_controllen = control.size();
      cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
      cmsg->cmsg_level = SOL_SOCKET;
      cmsg->cmsg_type = SCM_RIGHTS;
      cmsg->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      memcpy(CMSG_DATA(cmsg), fds.data(), fds.size() * sizeof(int));
    }
    return sendmsg(theirs_.get(), &header, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
  }
  ReceiveResult Receive() { return ReceivePacket(ours_.get(), &packet_); }

  UniqueFd ours_;
  UniqueFd theirs_;
  Packet packet_;
};

TEST_F(PacketTest, CarriesTheMessageItsDescriptorsAndItsSender) {
  Message message = NewPacket(Kind::kAdopt);
  message.va = 0x1234'5000;
  strcpy(message.text, "name");
  ASSERT_TRUE(SendRaw(&message, sizeof(message), {0, 1, 2}));
  ASSERT_EQ(Receive(), ReceiveResult::kPacket);
  EXPECT_EQ(packet_.message.kind, Kind::kAdopt);
  EXPECT_EQ(packet_.message.va, 0x1234'5000u);
  EXPECT_STREQ(packet_.message.text, "name");
  EXPECT_EQ(packet_.fd_count, 3);
  for (const UniqueFd& fd : packet_.fds) {
    EXPECT_TRUE(fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) << fd.get();
  }
  EXPECT_EQ(packet_.sender_pid, getpid());
}

TEST_F(PacketTest, NothingIsNothingAndTheEndIsTheEnd) {
  EXPECT_EQ(Receive(), ReceiveResult::kNothing);
  theirs_.reset();
  EXPECT_EQ(Receive(), ReceiveResult::kClosed);
}

TEST_F(PacketTest, WhatIsNoSocketIsClosed) {
  const UniqueFd file(open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_EQ(ReceivePacket(file.get(), &packet_), ReceiveResult::kClosed);
  EXPECT_EQ(ReceivePacket(-1, &packet_), ReceiveResult::kClosed);
}

TEST_F(PacketTest, AnotherSizeOrMagicIsMalformed) {
  char bytes[2 * sizeof(Message)] = {};
  const Message good = NewPacket(Kind::kUnmap);
  memcpy(bytes, &good, sizeof(good));
  for (const size_t size : {size_t{1}, sizeof(Message) - 1, sizeof(Message) + 1, sizeof(bytes)}) {
    ASSERT_TRUE(SendRaw(bytes, size)) << size;
    EXPECT_EQ(Receive(), ReceiveResult::kMalformed) << size;
  }
  ++bytes[0];
  ASSERT_TRUE(SendRaw(bytes, sizeof(Message)));
  EXPECT_EQ(Receive(), ReceiveResult::kMalformed);
}

// The version is the caller's affair: it has an answer for it.
TEST_F(PacketTest, AnotherVersionIsAPacket) {
  Message message = NewPacket(Kind::kHello);
  ++message.version;
  ASSERT_TRUE(SendRaw(&message, sizeof(message)));
  EXPECT_EQ(Receive(), ReceiveResult::kPacket);
}

TEST_F(PacketTest, TheTextAlwaysEnds) {
  Message message = NewPacket(Kind::kHello);
  memset(message.text, 'x', sizeof(message.text));
  ASSERT_TRUE(SendRaw(&message, sizeof(message)));
  ASSERT_EQ(Receive(), ReceiveResult::kPacket);
  EXPECT_EQ(strlen(packet_.message.text), sizeof(message.text) - 1);
}

TEST_F(PacketTest, DescriptorsOfABadPacketAreClosed) {
  const Message good = NewPacket(Kind::kUnmap);
  const int before = OpenDescriptors();
  for (const size_t count : {size_t{1}, size_t{3}, size_t{4}, size_t{10}, size_t{253}}) {
    const std::vector<int> many(count, 0);
    ASSERT_TRUE(SendRaw(&good, sizeof(good) - 1, many));
    EXPECT_EQ(Receive(), ReceiveResult::kMalformed) << count;
    ASSERT_TRUE(SendRaw(&good, sizeof(good), many));
    // The room for credentials and for alignment takes a few more than that.
    const ReceiveResult result = Receive();
    if (count <= protocol::kMaxFds) {
      EXPECT_EQ(result, ReceiveResult::kPacket) << count;
    }
    if (count >= 10) {
      EXPECT_EQ(result, ReceiveResult::kMalformed) << count;
    }
    EXPECT_LE(packet_.fd_count, protocol::kMaxFds);
  }
  packet_ = Packet();
  EXPECT_EQ(OpenDescriptors(), before);
}

// Without credentials their place holds descriptors, too.
TEST_F(PacketTest, DescriptorsWithoutAPlaceAreClosed) {
  const int off = 0;
  ASSERT_EQ(setsockopt(ours_.get(), SOL_SOCKET, SO_PASSCRED, &off, sizeof(off)), 0);
  const Message good = NewPacket(Kind::kUnmap);
  const int before = OpenDescriptors();
  for (size_t count = 4; count < 16; ++count) {
    ASSERT_TRUE(SendRaw(&good, sizeof(good), std::vector<int>(count, 0)));
    Receive();
  }
  packet_ = Packet();
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST_F(PacketTest, APeerThatDoesNotReadLosesPackets) {
  int sent = 0;
  while (SendPacket(theirs_.get(), NewPacket(Kind::kReply), 0) == SendResult::kSent) {
    ASSERT_LT(++sent, 100'000) << "it would wait, or there is no end";
  }
  EXPECT_GT(sent, 0);
  ours_.reset();
  EXPECT_EQ(SendPacket(theirs_.get(), NewPacket(Kind::kReply)), SendResult::kLost);
  EXPECT_EQ(SendPacket(-1, NewPacket(Kind::kReply)), SendResult::kLost);
}

TEST_F(PacketTest, APeerIsWhoTheKernelSaysItIs) {
  const absl::StatusOr<Peer> peer = PeerOf(ours_.get());
  ASSERT_TRUE(peer.ok());
  EXPECT_EQ(peer->pid, getpid());
  EXPECT_EQ(peer->uid, geteuid());
  EXPECT_FALSE(PeerOf(-1).ok());
}

// A socket that lingers would hold up whoever closes it last.
TEST_F(PacketTest, AReceivedSocketNoLongerLingers) {
  const UniqueFd tcp(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  linger setting = {.l_onoff = 1, .l_linger = 3600};
  ASSERT_EQ(setsockopt(tcp.get(), SOL_SOCKET, SO_LINGER, &setting, sizeof(setting)), 0);
  const Message message = NewPacket(Kind::kUnmap);
  ASSERT_TRUE(SendRaw(&message, sizeof(message), {tcp.get()}));
  ASSERT_EQ(Receive(), ReceiveResult::kPacket);
  socklen_t length = sizeof(setting);
  ASSERT_EQ(getsockopt(tcp.get(), SOL_SOCKET, SO_LINGER, &setting, &length), 0);
  EXPECT_EQ(setting.l_onoff, 0);
}

}  // namespace
}  // namespace hostmm
