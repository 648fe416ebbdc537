// Guests that lie: what they may cost is their own session, never the pager, another guest, or a
// descriptor of the pager's.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "tests/pager/pager_child.h"
#include "tests/pager/raw_guest.h"
#include "tests/testing/deadline.h"
#include "tests/testing/skip.h"
#include "tests/testing/touch.h"
#include "vmm/units.h"

namespace hostmm::test {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

// After each test an honest guest is served, and nothing of the hostile ones is left.
class HostileGuestTest : public testing::Test {
 protected:
  HostileGuestTest() : pager_({.frames = FramesChoice::kBase}) {}

  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    ASSERT_TRUE(pager_.ok()) << pager_.ready();
    // Also the first use of everything that the pager keeps open from then on.
    ASSERT_TRUE(HonestGuestIsServed(pager_.socket_path()));
    ASSERT_TRUE(pager_.BecomesEmpty(kAnyNumber));
    descriptors_ = pager_.OpenDescriptors();
  }

  void TearDown() override {
    if (IsSkipped()) return;
    EXPECT_TRUE(HonestGuestIsServed(pager_.socket_path()));
    if (pager_.BecomesEmpty(descriptors_)) return;
    const std::optional<Census> census = pager_.Take();
    ASSERT_TRUE(census.has_value()) << "the pager does not answer";
    ADD_FAILURE() << census->guests << " guests, " << census->mms << " mms, " << census->regions
                  << " regions, " << census->in_flight << " entries in flight and "
                  << pager_.OpenDescriptors() - descriptors_ << " descriptors are left";
    for (const std::string& problem : census->problems) ADD_FAILURE() << problem;
  }

  const std::string& socket_path() const { return pager_.socket_path(); }

  static constexpr int kAnyNumber = 1 << 20;
  PagerChild pager_;
  int descriptors_ = 0;
};

Message Ranged(Kind kind, uint64_t va, uint64_t length) {
  Message message = NewPacket(kind);
  message.va = va;
  message.length = length;
  return message;
}

// Numbers on which range arithmetic goes wrong.
std::vector<uint64_t> EvilNumbers() {
  std::vector<uint64_t> numbers = {0, 1, 4095, 4097, 512, ~uint64_t{0}};
  for (const int shift : {12, 21, 30, 47, 57, 62, 63}) {
    const uint64_t power = uint64_t{1} << shift;
    for (const uint64_t near : {power - kPageSize, power, power + kPageSize}) {
      numbers.push_back(near);
      numbers.push_back(~near + 1);
    }
  }
  return numbers;
}

// Descriptors of many kinds, to be passed where others belong.
struct Assortment {
  std::vector<ScopedFd> owned;

  Assortment() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) == 0) Take(ends);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0) Take(ends);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0) Take(ends);
    owned.emplace_back(open("/dev/null", O_RDWR | O_CLOEXEC));
    owned.emplace_back(open("/proc/self/status", O_RDONLY | O_CLOEXEC));
    owned.emplace_back(open("/", O_PATH | O_CLOEXEC));
    owned.emplace_back(epoll_create1(EPOLL_CLOEXEC));
    owned.emplace_back(memfd_create("hostile", MFD_CLOEXEC));
    owned.emplace_back(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  }
  void Take(const int* ends) {
    owned.emplace_back(ends[0]);
    owned.emplace_back(ends[1]);
  }
};

class Fuzzer {
 public:
  explicit Fuzzer(uint32_t seed) : random_(seed), numbers_(EvilNumbers()) {}

  Message NextPacket() {
    Message message = NewPacket(static_cast<Kind>(Below(40)));
    if (Below(50) == 0) message.kind = static_cast<Kind>(random_());
    if (Below(100) == 0) message.magic = random_();
    if (Below(100) == 0) message.version = random_();
    message.va = Number();
    message.length = Number();
    message.offset = Below(2) == 0 ? 0 : Number();
    message.mm = {Below(8), Below(8)};
    message.prot = Below(4) == 0 ? random_() : Below(8);
    message.order = Below(4);
    message.value[0] = Number();
    message.value[1] = Number();
    for (char& byte : message.text) byte = static_cast<char>(random_());
    return message;
  }
  std::vector<int> NextDescriptors(const Assortment& all) {
    std::vector<int> fds;
    for (uint32_t i = Below(5); i > 0; --i) {
      fds.push_back(all.owned[Below(static_cast<uint32_t>(all.owned.size()))].get());
    }
    return fds;
  }
  uint32_t Below(uint32_t bound) { return random_() % bound; }

 private:
  // Mostly evil, sometimes a place where something may be mapped.
  uint64_t Number() {
    if (Below(3) == 0) return uint64_t{Below(64)} * kBlockSize;
    return numbers_[Below(static_cast<uint32_t>(numbers_.size()))];
  }

  std::mt19937 random_;  // seeded: a failure repeats
  const std::vector<uint64_t> numbers_;
};

TEST_F(HostileGuestTest, RandomPacketsHarmNobody) {
  constexpr int kSessions = 40;
  constexpr int kPackets = 200;
  const Assortment assortment;
  for (int session = 0; session < kSessions; ++session) {
    Fuzzer fuzzer(static_cast<uint32_t>(session));
    RawGuest guest(socket_path());
    ASSERT_GE(guest.channel(), 0);
    if (fuzzer.Below(8) != 0) {
      ASSERT_TRUE(guest.Enter()) << "session " << session;
    }
    for (int i = 0; i < kPackets; ++i) {
      if (!guest.SendPatiently(fuzzer.NextPacket(), fuzzer.NextDescriptors(assortment))) break;
    }
  }
}

// As above, but nothing that ends the session, so that the tables see all of it.
TEST_F(HostileGuestTest, RandomRangesLeaveSoundTables) {
  constexpr Kind kKinds[] = {Kind::kCreate,  Kind::kMap,     Kind::kAdopt, Kind::kUnmap,
                             Kind::kProtect, Kind::kPunch,   Kind::kFlags, Kind::kMove,
                             Kind::kRemove,  Kind::kMayPunch};
  Assortment assortment;
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Enter());
  Fuzzer fuzzer(1);
  uint32_t accepted = 0;
  for (int i = 0; i < 4000; ++i) {
    Message message = fuzzer.NextPacket();
    message.magic = protocol::kMagic;
    message.version = protocol::kVersion;
    message.kind = kKinds[fuzzer.Below(std::size(kKinds))];
    if (message.kind != Kind::kCreate && message.kind != Kind::kMap &&
        message.kind != Kind::kAdopt && message.kind != Kind::kMove) {
      ASSERT_TRUE(guest.SendPatiently(message)) << i;
      continue;
    }
    if (message.kind == Kind::kCreate) message.length = fuzzer.Below(64) * kPageSize;
    std::vector<int> fds = fuzzer.NextDescriptors(assortment);
    if (fds.size() > 2) fds.resize(2);  // with the reply socket: as many as a packet may have
    const auto answer = guest.Ask(message, fds);
    ASSERT_TRUE(answer.has_value()) << i;
    if (answer->status != Status::kOk) continue;
    ++accepted;
    if (message.kind != Kind::kCreate) continue;
    Message map = Ranged(Kind::kMap, uint64_t{fuzzer.Below(64)} * kBlockSize, message.length);
    map.mm = answer->mm;
    ASSERT_TRUE(guest.Ask(map).has_value()) << i;
  }
  EXPECT_GT(accepted, 100u) << "the fuzzer no longer reaches the tables";
  const std::optional<Census> census = pager_.Take();
  ASSERT_TRUE(census.has_value());
  for (const std::string& problem : census->problems) ADD_FAILURE() << problem;
}

TEST_F(HostileGuestTest, APacketOfAnotherSizeOrMagicEndsTheSession) {
  const Message good = NewPacket(Kind::kUnmap);
  Message bad_magic = good;
  bad_magic.magic ^= 1;
  Message bad_version = good;
  ++bad_version.version;
  char large[sizeof(Message) + 1] = {};
  memcpy(large, &good, sizeof(good));
  const struct {
    const char* what;
    const void* bytes;
    size_t size;
  } packets[] = {{"one byte short", &good, sizeof(good) - 1},
                 {"one byte long", large, sizeof(large)},
                 {"empty", &good, 0},
                 {"another magic", &bad_magic, sizeof(bad_magic)},
                 {"another version", &bad_version, sizeof(bad_version)}};
  for (const auto& packet : packets) {
    RawGuest guest(socket_path());
    ASSERT_TRUE(guest.Enter());
    guest.SendBytes(packet.bytes, packet.size, {});
    EXPECT_TRUE(guest.IsEnded()) << packet.what;
  }
}

TEST_F(HostileGuestTest, WhatIsNoUserfaultfdEndsTheSession) {
  const Assortment assortment;
  for (const ScopedFd& fd : assortment.owned) {
    RawGuest guest(socket_path());
    ASSERT_TRUE(guest.Hello());
    ASSERT_TRUE(guest.Send(NewPacket(Kind::kAttach), {fd.get()}));
    EXPECT_TRUE(guest.IsEnded()) << std::filesystem::read_symlink("/proc/self/fd/" +
                                                                  std::to_string(fd.get()));
  }
}

// The descriptor of one guest, passed by another: the events of the first are looked up in the
// regions of the second, and so left to the kernel.
TEST_F(HostileGuestTest, AnothersUserfaultfdServesNobodyAndBlocksNobody) {
  RawGuest owner(socket_path());
  ASSERT_TRUE(owner.Hello());
  TestUffd uffd = owner.NewUffd();
  const ScopedFd memory(memfd_create("own", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(memory.get(), kBlock), 0);
  const ScopedMapping region = ScopedMapping::SharedFile(memory.get(), kBlock);
  ASSERT_EQ(uffd.Register(region.data(), kBlock, UFFDIO_REGISTER_MODE_MISSING), 0);
  Child liar(Identity::kSame, [&](Channel&) {
    RawGuest guest(socket_path());
    CHILD_CHECK(guest.Hello());
    CHILD_CHECK(guest.Send(NewPacket(Kind::kAttach), {uffd.fd()}));
    CHILD_CHECK(guest.NewRegion(kBlock).ok());
    return 0;
  });
  Touch touch(&uffd, region.data(), Touch::Kind::kWrite);
  EXPECT_EQ(liar.Wait(), 0);
  // Either the pager denied it, or the liar was gone before: then its copy has closed.
  uffd.Close();
  EXPECT_TRUE(touch.Finished());
}

TEST_F(HostileGuestTest, AttachingAgainEndsTheSession) {
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Hello());
  for (int i = 0; i < 100; ++i) guest.Send(NewPacket(Kind::kAttach));
  EXPECT_TRUE(guest.IsEnded());
}

// Reads an event before the pager does, if it can.
void StealEvent(int uffd) {
  uffd_msg message;
  const iovec vector = {&message, sizeof(message)};
  PollUntil(Deadline(std::chrono::milliseconds(1)),
            [&] { return preadv2(uffd, &vector, 1, -1, RWF_NOWAIT) > 0; });
}

// O_NONBLOCK belongs to the open file, of which the guest has kept a descriptor: it can take the
// flag away at any time, and a read(2) of the pager would then wait for a fault that never comes.
TEST_F(HostileGuestTest, AUserfaultfdMadeBlockingDoesNotStopTheLoop) {
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Hello());
  ASSERT_TRUE(guest.Attach(guest.NewUffd()));
  const ScopedMapping region = guest.NewRegion(4 * kBlock);
  ASSERT_TRUE(region.ok());
  const int fd = guest.uffd().fd();
  ASSERT_EQ(fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK), 0);
  Touch touch(guest.mutable_uffd(), region.data(), Touch::Kind::kWrite);
  EXPECT_TRUE(touch.Finished());
  // Its events are stolen: the pager is woken for nothing.
  for (int i = 0; i < 20; ++i) {
    Touch stolen(guest.mutable_uffd(), region.block(3) + i * kPage, Touch::Kind::kRead);
    StealEvent(fd);
    guest.uffd().Wake(region.block(3), kBlock);
    EXPECT_TRUE(stolen.Finished());
  }
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
}

// Reading a fork event makes a descriptor in the reader.
TEST_F(HostileGuestTest, ForkEventsLeaveNoDescriptor) {
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Hello());
  TestUffd uffd = guest.NewUffd(UFFD_FEATURE_EVENT_FORK);
  if (!uffd.valid()) GTEST_SKIP() << "needs UFFD_FEATURE_EVENT_FORK (root)";
  ASSERT_TRUE(guest.Attach(std::move(uffd)));
  const ScopedMapping region = guest.NewRegion(4 * kBlock);
  ASSERT_TRUE(region.ok());
  const int before = pager_.OpenDescriptors();
  for (int i = 0; i < 20; ++i) {
    Child child(Identity::kSame, [](Channel&) { return 0; });
    ASSERT_EQ(child.Wait(), 0);
  }
  EXPECT_TRUE(
      PollUntil(Deadline(kStepDeadline), [&] { return pager_.OpenDescriptors() <= before; }))
      << pager_.OpenDescriptors() - before << " descriptors more";
}

TEST_F(HostileGuestTest, DescriptorsThatNoPacketWantsAreClosed) {
  const Assortment assortment;
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Enter());
  ASSERT_TRUE(guest.Ask(NewPacket(Kind::kMap)).has_value());  // its attaching is over, too
  const int before = pager_.OpenDescriptors();
  const std::vector<int> three = {assortment.owned[0].get(), assortment.owned[2].get(),
                                  assortment.owned[4].get()};
  for (const Kind kind :
       {Kind::kUnmap, Kind::kProtect, Kind::kPunch, Kind::kFlags, Kind::kMap, Kind::kMove,
        Kind::kCreate, Kind::kAdopt, Kind::kOrderDone, Kind::kMayPunch, Kind::kRemove}) {
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(guest.SendPatiently(NewPacket(kind), three));
  }
  ASSERT_TRUE(guest.Ask(NewPacket(Kind::kMap)).has_value());  // all of them were worked off
  EXPECT_TRUE(
      PollUntil(Deadline(kWakeDeadline), [&] { return pager_.OpenDescriptors() <= before; }));
  // More than any packet may have.
  std::vector<int> many(100, assortment.owned[0].get());
  guest.SendPatiently(NewPacket(Kind::kUnmap), many);
  EXPECT_TRUE(guest.IsEnded());
}

// The last close of a TCP socket with SO_LINGER and unsent data waits for as long as its owner
// wished.
TEST_F(HostileGuestTest, ASocketThatLingersDoesNotStopTheLoop) {
  const ScopedFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(listen(listener.get(), 1), 0);
  ASSERT_EQ(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  ScopedFd lingering(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  connect(lingering.get(), reinterpret_cast<sockaddr*>(&address), length);
  const linger forever = {.l_onoff = 1, .l_linger = 3600};
  ASSERT_EQ(setsockopt(lingering.get(), SOL_SOCKET, SO_LINGER, &forever, sizeof(forever)), 0);
  const std::vector<char> data(1 << 20);
  ASSERT_TRUE(PollUntil(Deadline(kWakeDeadline), [&] {
    return send(lingering.get(), data.data(), data.size(), MSG_NOSIGNAL) < 0 && errno == EAGAIN;
  }));
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Enter());
  for (const Kind kind : {Kind::kUnmap, Kind::kMap, Kind::kAdopt}) {
    ASSERT_TRUE(guest.Send(NewPacket(kind), {lingering.get(), lingering.get()}));
  }
  lingering.Close();  // the pager's are the last
  EXPECT_TRUE(HonestGuestIsServed(socket_path()));
}

TEST_F(HostileGuestTest, AnothersFileIsRefused) {
  RawGuest owner(socket_path());
  ASSERT_TRUE(owner.Enter());
  Message create = NewPacket(Kind::kCreate);
  create.length = 8 * kBlock;
  const auto created = owner.Ask(create);
  ASSERT_TRUE(created.has_value());
  ASSERT_EQ(created->status, Status::kOk);
  RawGuest thief(socket_path());
  ASSERT_TRUE(thief.Enter());
  Message map = Ranged(Kind::kMap, 16 * kBlock, create.length);
  map.mm = created->mm;
  const auto refused = thief.Ask(map);
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->status, Status::kRefused);
  const auto allowed = owner.Ask(map);
  ASSERT_TRUE(allowed.has_value());
  EXPECT_EQ(allowed->status, Status::kOk);
  // And not a second time.
  const auto again = owner.Ask(map);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->status, Status::kRefused);
}

// A region that the guest says it has and has not: faults elsewhere, truncated and punched files.
TEST_F(HostileGuestTest, AFileCutOffUnderThePagerIsTheGuestsLoss) {
  RawGuest guest(socket_path());
  ASSERT_TRUE(guest.Enter());
  Message create = NewPacket(Kind::kCreate);
  create.length = 8 * kBlock;
  ScopedFd file;
  const auto created = guest.Ask(create, {}, &file);
  ASSERT_TRUE(created.has_value());
  const ScopedMapping region = ScopedMapping::SharedFile(file.get(), create.length);
  Message map = Ranged(Kind::kMap, reinterpret_cast<uintptr_t>(region.data()), create.length);
  map.mm = created->mm;
  ASSERT_TRUE(guest.Ask(map).has_value());
  ASSERT_EQ(ftruncate(file.get(), kBlock), 0);
  // Inside, behind the cut in the file of the pager's making, and inside again.
  Touch inside(guest.mutable_uffd(), region.data(), Touch::Kind::kWrite);
  EXPECT_TRUE(inside.Finished());
  Child outside(Identity::kSame, [&](Channel&) {
    RawGuest self(socket_path());
    CHILD_CHECK(self.Hello());
    TestUffd uffd = self.NewUffd();
    CHILD_CHECK(uffd.Register(region.data(), region.size(), UFFDIO_REGISTER_MODE_MISSING) == 0);
    CHILD_CHECK(self.Attach(std::move(uffd)));
    WriteByte(region.block(5), 1);
    return 0;
  });
  EXPECT_EQ(outside.Wait(), 128 + SIGBUS);
  Touch again(guest.mutable_uffd(), region.data() + kPage, Touch::Kind::kWrite);
  EXPECT_TRUE(again.Finished());
}

}  // namespace
}  // namespace hostmm::test
