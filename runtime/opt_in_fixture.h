// Guests that map one memfd opt-in, and whose agents are played step by step.
//
// Threads: one. See session_fixture.h.
#ifndef HOSTMM_RUNTIME_OPT_IN_FIXTURE_H_
#define HOSTMM_RUNTIME_OPT_IN_FIXTURE_H_

#include <gtest/gtest.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <utility>

#include "runtime/session_fixture.h"

namespace hostmm {

inline constexpr int kPatience = 32;  // ticks until an operation fails

class OptInTest : public SessionFixture {
 protected:
  // A memfd of the guests'.
  OptInTest() : memory_(memfd_create("opt-in", MFD_CLOEXEC)) {
    EXPECT_EQ(ftruncate(memory_.get(), kRegion), 0);
  }

  protocol::Message AdoptAt(uint64_t va, uint64_t length, uint64_t offset, int prot,
                            protocol::Share share = kSharedPt) const {
    protocol::Message adopt = Ranged(protocol::Kind::kAdopt, va, length);
    adopt.offset = offset;
    adopt.prot = static_cast<uint32_t>(prot);
    adopt.mode = share;
    adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
    return adopt;
  }
  // Maps the memfd opt-in, and takes the board.
  std::optional<protocol::Message> MapIn(Guest& guest, uint64_t va = kVa, uint64_t length = kRegion,
                                         uint64_t offset = 0, int prot = PROT_READ | PROT_WRITE) {
    const std::optional<protocol::Message> answer =
        Ask(guest, AdoptAt(va, length, offset, prot), UniqueFd(dup(memory_.get())));
    if (answer->status == protocol::Status::kOk) AgentOf(guest).Next();
    return answer;
  }
  Guest& NewMapper(uint64_t va = kVa, uint64_t length = kRegion, uint64_t offset = 0) {
    Guest& guest = NewOptInGuest();
    EXPECT_EQ(MapIn(guest, va, length, offset)->status, protocol::Status::kOk);
    EXPECT_TRUE(AgentOf(guest).watches());
    return guest;
  }
  static protocol::Message ForAll(protocol::BoardOp op, uint64_t va, uint64_t length,
                                  int prot = PROT_READ) {
    protocol::Message ask = Ranged(protocol::Kind::kForAll, va, length);
    ask.prot = static_cast<uint32_t>(prot);
    ask.value[1] = static_cast<uint64_t>(op);
    return ask;
  }
  UniqueFd Protect(Guest& guest, int prot, uint64_t va = kVa, uint64_t length = kRegion) {
    return Send(guest, ForAll(protocol::BoardOp::kProtect, va, length, prot));
  }
  // The guest's agent does what stands on the board.
  void Do(Guest& guest, int error = 0) {
    const board::Order order = AgentOf(guest).Look();
    if (AgentOf(guest).Note(order.sequence, guest.packets, error) == Agent::Last::kYes) {
      SayDone(guest);
    }
  }
  void SayDone(Guest& guest) {
    const Region region = *segment_.reader().FindRegion(guest.id, GuestAddr(kVa));
    protocol::Message done = NewPacket(protocol::Kind::kBoardDone);
    done.mm = {region.mm.slot, region.mm.generation};
    EXPECT_EQ(Note(guest, done), Session::Verdict::kKeep);
  }
  AccessSet AccessAt(const Guest& guest, uint64_t va = kVa) {
    return segment_.reader().FindRegion(guest.id, GuestAddr(va))->access;
  }
  int ErrorOn(const UniqueFd& reply) {
    const std::optional<protocol::Message> answer = AnswerOn(reply);
    if (!answer.has_value()) return -1;
    return answer->status == protocol::Status::kOk ? 0 : static_cast<int>(answer->value[1]);
  }
  Guest& ForkOf(Guest& parent) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    Packet intent;
    intent.message = NewPacket(protocol::Kind::kForkIntent);
    intent.fds[0].reset(ends[0]);
    EXPECT_EQ(session_.OnPacket(parent, std::move(intent)), Session::Verdict::kKeep);
    Guest& child = *guests_.Find(children_.back());
    agents_.insert_or_assign(child.id.slot, Agent(UniqueFd(ends[1])));
    return child;
  }
  void Attach(Guest& child, uint64_t has_agent = 1) {
    Packet attach;
    attach.message = NewPacket(protocol::Kind::kChildAttach);
    attach.message.value[0] = has_agent;
    attach.sender_pid = 1;
    EXPECT_EQ(session_.OnPacket(child, std::move(attach)), Session::Verdict::kKeep);
  }
  void Ticks(int count) {
    for (int i = 0; i < count; ++i) opt_in_.Tick();
  }
  OptIn::Counts Counts() const { return opt_in_.counts(); }

  UniqueFd memory_;
};

// Whether a write to a bell wakes an edge-triggered epoll, as agents wait.
class BellWatch {
 public:
  explicit BellWatch(int bell) : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
    epoll_event edge = {};
    edge.events = EPOLLIN | EPOLLET;
    EXPECT_EQ(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, bell, &edge), 0);
    Rang();
  }
  bool Rang() {
    epoll_event got;
    return epoll_wait(epoll_.get(), &got, 1, 0) == 1;
  }

 private:
  UniqueFd epoll_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_OPT_IN_FIXTURE_H_
