// A Session with real tables, files and boards under a fake pager, and guests that are only
// descriptors: what tests of sessions stand on.
//
// Guests:   NewGuest() has no channel and no agent; NewOptInGuest() has both, and its agent is
//           played by the test (Agent).
// Ends:     every guest is forgotten and nothing may be left in the tables.
// Threads:  one; workers of the pool fill files.
#ifndef HOSTMM_RUNTIME_SESSION_FIXTURE_H_
#define HOSTMM_RUNTIME_SESSION_FIXTURE_H_

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/event_loop.h"
#include "runtime/session.h"
#include "runtime/worker_pool.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {

inline constexpr uint64_t kRegion = 8 * kBlockSize;
inline constexpr uint64_t kVa = uint64_t{1} << 40;

// The other end of a guest's channel: what its agent would do, step by step.
class Agent {
 public:
  explicit Agent(UniqueFd channel) : channel_(std::move(channel)) {}

  // The next packet, if one is there.
  std::optional<protocol::Message> Next() {
    Packet packet;
    if (ReceivePacket(channel_.get(), &packet) != ReceiveResult::kPacket) return std::nullopt;
    if (packet.message.op == protocol::OrderOp::kWatch) {
      slot_ = static_cast<uint32_t>(packet.message.value[0]);
      orders_ = std::move(packet.fds[0]);
      acks_fd_ = std::move(packet.fds[1]);
      bell_ = std::move(packet.fds[2]);
      const uint64_t bytes = board::AcksBytes(SegmentConfig{}.max_guests + 1);
      acks_ = Mapping(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, acks_fd_.get(), 0),
                      bytes);
    }
    return packet.message;
  }
  // All that is there. RETURNS how many of them were `op`.
  int Drain(protocol::OrderOp op) {
    int count = 0;
    while (const std::optional<protocol::Message> next = Next()) count += next->op == op ? 1 : 0;
    return count;
  }
  board::Order Look() const {
    board::Order order = {};
    EXPECT_EQ(pread(orders_.get(), &order, sizeof(order), 0), static_cast<ssize_t>(sizeof(order)));
    return order;
  }
  board::Slot& slot() { return acks()->slots[slot_]; }
  board::Acks* acks() { return reinterpret_cast<board::Acks*>(acks_.data()); }
  // Notes `sequence`. RETURNS whether a kBoardDone is due.
  enum class Last { kNo, kYes };
  Last Note(uint64_t sequence, uint32_t packets, int error = 0) {
    slot().packets = packets;
    slot().error = error;
    slot().sequence = sequence;
    return --acks()->pending <= 0 ? Last::kYes : Last::kNo;
  }
  int orders() const { return orders_.get(); }
  int acks_fd() const { return acks_fd_.get(); }
  int bell() const { return bell_.get(); }
  int channel() const { return channel_.get(); }
  bool watches() const { return acks_.ok(); }

 private:
  UniqueFd channel_;
  UniqueFd orders_;
  UniqueFd acks_fd_;
  UniqueFd bell_;
  Mapping acks_;
  uint32_t slot_ = 0;
};

class SessionFixture : public testing::Test, public SessionHost {
 protected:
  SessionFixture()
      : pool_(*WorkerPool::NewEventFd(), 1),
        files_(&pool_),
        adopter_(&segment_.tables, &guests_, &orders_),
        opt_in_(&segment_.tables, &guests_, SegmentConfig{}.max_guests, kRegionsPerGuest),
        filler_(&segment_.tables, &files_, &pool_),
        loop_(*EventLoop::Create()),
        snapshots_({.tables = &segment_.tables,
                    .files = &files_,
                    .guests = &guests_,
                    .orders = &orders_,
                    .pool = &pool_,
                    .loop = loop_.get()},
                   {.uffd = Snapshots::Terms::Uffd::kHere,
                    .normal_modes = UFFDIO_REGISTER_MODE_MISSING,
                    .memory_limit = 0,
                    .policy = {}}),
        store_(*FrameStore::Open(FrameKind::kBase)),
        session_(Terms(), {.tables = &segment_.tables,
                           .files = &files_,
                           .adopter = &adopter_,
                           .orders = &orders_,
                           .opt_in = &opt_in_,
                           .filler = &filler_,
                           .snapshots = &snapshots_,
                           .uffd = &uffd_,
                           .store = &store_,
                           .second = nullptr,
                           .host = this}) {}

  static Session::Terms Terms() {
    Session::Terms terms;
    terms.max_file_bytes = uint64_t{1} << 36;
    return terms;
  }

  // SessionHost.
  Room RoomForGuest(uid_t) const override { return room_; }
  Guest& AddChild(Guest& parent, GuestId child, UniqueFd channel) override {
    auto guest = std::make_unique<Guest>();
    guest->id = child;
    guest->uid = parent.uid;
    guest->gid = parent.gid;
    guest->channel.fd = std::move(channel);
    children_.push_back(child);
    ids_.push_back(child);
    return *guests_.Add(std::move(guest));
  }
  void WatchGuest(Guest& guest, UniqueFd uffd, pid_t pid) override {
    ++attached_;
    guest.pid = pid;
    guest.uffd.fd = std::move(uffd);
  }

  void TearDown() override {
    while (!ids_.empty()) EndGuest(*guests_.Find(ids_.back()));
    for (const std::string& name : names_) {
      Guest& root = NewGuest(0);
      protocol::Message unlink = NewPacket(protocol::Kind::kUnlinkName);
      name.copy(unlink.text, sizeof(unlink.text) - 1);
      StatusOf(root, unlink);
      EndGuest(root);
    }
    ExpectSound();
    EXPECT_EQ(segment_.reader().Pools().mms, 0u);
    EXPECT_EQ(segment_.reader().Pools().regions, 0u);
    EXPECT_EQ(segment_.reader().Pools().guests, 0u);
  }
  void ExpectSound() {
    for (const std::string& problem : CheckInvariants(segment_.reader())) ADD_FAILURE() << problem;
  }

  Guest& NewGuest(uid_t uid = 1000, gid_t gid = 1000) {
    auto guest = std::make_unique<Guest>();
    EXPECT_EQ(segment_.tables.AddGuest(1, uid, &guest->id), TableStatus::kOk);
    guest->uid = uid;
    guest->gid = gid;
    guest->program = "test";
    ids_.push_back(guest->id);
    return *guests_.Add(std::move(guest));
  }
  // With a channel and an agent.
  Guest& NewOptInGuest(uid_t uid = 1000) {
    Guest& guest = NewGuest(uid);
    GiveAgent(guest);
    return guest;
  }
  void GiveAgent(Guest& guest) {
    std::array<int, 2> ends;
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    guest.channel.fd.reset(ends[0]);
    guest.has_agent = true;
    agents_.insert_or_assign(guest.id.slot, Agent(UniqueFd(ends[1])));
  }
  Agent& AgentOf(const Guest& guest) { return agents_.at(guest.id.slot); }
  // As when its channel closes.
  void EndGuest(Guest& guest) {
    const GuestId id = guest.id;
    snapshots_.OnLeaving(guest);
    session_.Forget(guest);
    snapshots_.OnGone(guest);
    guests_.Erase(id);
    std::erase(ids_, id);
    agents_.erase(id.slot);
  }

  // The near end of the reply socket.
  UniqueFd Send(Guest& guest, const protocol::Message& message, UniqueFd second = UniqueFd(),
                Session::Verdict* verdict = nullptr) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    UniqueFd near(ends[0]);
    Packet packet;
    packet.message = message;
    packet.fds[0].reset(ends[1]);
    packet.fds[1] = std::move(second);
    packet.fd_count = packet.fds[1].ok() ? 2 : 1;
    const Session::Verdict result = session_.OnPacket(guest, std::move(packet));
    if (verdict != nullptr) *verdict = result;
    return near;
  }
  std::optional<protocol::Message> AnswerOn(const UniqueFd& near) {
    Packet answer;
    if (ReceivePacket(near.get(), &answer) != ReceiveResult::kPacket) return std::nullopt;
    file_ = std::move(answer.fds[0]);
    return answer.message;
  }
  // The answer, if there is one; `verdict` says whether the guest may stay.
  std::optional<protocol::Message> Ask(Guest& guest, const protocol::Message& message,
                                       UniqueFd second = UniqueFd(),
                                       Session::Verdict* verdict = nullptr) {
    return AnswerOn(Send(guest, message, std::move(second), verdict));
  }
  protocol::Status StatusOf(Guest& guest, const protocol::Message& message,
                            UniqueFd second = UniqueFd()) {
    const std::optional<protocol::Message> answer = Ask(guest, message, std::move(second));
    EXPECT_TRUE(answer.has_value());
    return answer.has_value() ? answer->status : protocol::Status::kFull;
  }
  Session::Verdict Note(Guest& guest, const protocol::Message& message) {
    Packet packet;
    packet.message = message;
    return session_.OnPacket(guest, std::move(packet));
  }

  static protocol::Message Ranged(protocol::Kind kind, uint64_t va, uint64_t length) {
    protocol::Message message = NewPacket(kind);
    message.va = va;
    message.length = length;
    message.prot = PROT_READ | PROT_WRITE;
    return message;
  }
  // A region at `va`, as an honest guest makes one.
  MmId MapOne(Guest& guest, uint64_t va = kVa, protocol::Share share = 0) {
    const std::optional<protocol::Message> created =
        Ask(guest, Ranged(protocol::Kind::kCreate, 0, kRegion));
    EXPECT_EQ(created->status, protocol::Status::kOk);
    protocol::Message map = Ranged(protocol::Kind::kMap, va, kRegion);
    map.mm = created->mm;
    map.mode = share;
    EXPECT_EQ(StatusOf(guest, map), protocol::Status::kOk);
    return {created->mm.slot, created->mm.generation};
  }
  uint32_t Regions(const Guest& guest) { return segment_.reader().Info(guest.id)->regions; }

  TestSegment segment_;
  WorkerPool pool_;
  FileTable files_;
  GuestSet guests_;
  Orders orders_;
  Adopter adopter_;
  OptIn opt_in_;
  Filler filler_;
  std::unique_ptr<EventLoop> loop_;
  Snapshots snapshots_;
  UffdAccess uffd_;
  FrameStore store_;
  Session session_;
  std::vector<GuestId> ids_;
  std::map<uint32_t, Agent> agents_;
  std::vector<std::string> names_;  // that a test has made
  UniqueFd file_;
  Room room_ = Room::kFree;
  std::vector<GuestId> children_;
  int attached_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SESSION_FIXTURE_H_
