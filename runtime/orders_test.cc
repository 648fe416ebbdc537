// Orders, and one that gives them: the adopter. The guests are the far ends of socket pairs.
#include "runtime/orders.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/adopter.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;

constexpr uint64_t kVa = uint64_t{1} << 40;

class OrdersTest : public testing::Test {
 protected:
  struct Agent {
    Guest* guest;
    UniqueFd end;

    // The next order, nothing if there is none.
    std::optional<Message> Next() const {
      Packet packet;
      if (ReceivePacket(end.get(), &packet) != ReceiveResult::kPacket) return std::nullopt;
      EXPECT_EQ(packet.message.kind, Kind::kOrder);
      return packet.message;
    }
  };

  Agent NewAgent() {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    auto guest = std::make_unique<Guest>();
    guest->id = segment_.AddGuest();
    guest->channel.fd.reset(ends[0]);
    guest->has_agent = true;
    return {guests_.Add(std::move(guest)), UniqueFd(ends[1])};
  }
  void Answer(const Agent& agent, const Message& order, uint64_t value = 0) {
    Message done = NewPacket(Kind::kOrderDone);
    done.order = order.order;
    done.value[0] = value;
    orders_.OnDone(*agent.guest, done);
  }
  void End(const Agent& agent) {
    const GuestId id = agent.guest->id;
    orders_.OnGuestGone(id);
    ReleasedMms released;
    segment_.tables.RemoveGuest(id, &released);
    guests_.Erase(id);
  }

  TestSegment segment_;
  GuestSet guests_;
  Orders orders_;
};

Message Zap() {
  Message order = NewPacket(Kind::kOrder);
  order.op = OrderOp::kZap;
  return order;
}

TEST_F(OrdersTest, OneAtATimeAndOnlyItsOwnAnswerCounts) {
  const Agent agent = NewAgent();
  int answers = 0;
  const auto count = [&](const Message&) { ++answers; };
  EXPECT_EQ(orders_.Send(*agent.guest, Zap(), count), Orders::SendResult::kSent);
  EXPECT_EQ(orders_.Send(*agent.guest, Zap(), count), Orders::SendResult::kBusy);
  const std::optional<Message> order = agent.Next();
  ASSERT_TRUE(order.has_value());
  EXPECT_FALSE(agent.Next().has_value());
  Message wrong = *order;
  for (const uint32_t number : {0u, order->order + 1, order->order - 1, ~0u}) {
    wrong.order = number;
    Answer(agent, wrong);
    EXPECT_EQ(answers, 0) << number;
  }
  Answer(agent, *order);
  Answer(agent, *order);
  EXPECT_EQ(answers, 1);
  EXPECT_EQ(orders_.Send(*agent.guest, Zap(), nullptr), Orders::SendResult::kSent);
  Answer(agent, *agent.Next());  // no done: nothing to call
}

TEST_F(OrdersTest, AnotherGuestsAnswerDoesNotCount) {
  const Agent one = NewAgent();
  const Agent other = NewAgent();
  int answers = 0;
  orders_.Send(*one.guest, Zap(), [&](const Message&) { ++answers; });
  orders_.Send(*other.guest, Zap(), nullptr);
  Answer(other, *one.Next());
  EXPECT_EQ(answers, 0);
}

TEST_F(OrdersTest, ADeadGuestsSlotStartsAnew) {
  const Agent old = NewAgent();
  int answers = 0;
  orders_.Send(*old.guest, Zap(), [&](const Message&) { ++answers; });
  const Message order = *old.Next();
  const uint32_t slot = old.guest->id.slot;
  End(old);
  const Agent next = NewAgent();
  ASSERT_EQ(next.guest->id.slot, slot);
  Answer(next, order);
  EXPECT_EQ(answers, 0);
  EXPECT_EQ(orders_.Send(*next.guest, Zap(), nullptr), Orders::SendResult::kSent);
}

TEST_F(OrdersTest, AnAgentThatDoesNotReadIsBusy) {
  const Agent agent = NewAgent();
  while (SendPacket(agent.guest->channel.fd.get(), NewPacket(Kind::kReply)) == SendResult::kSent) {
  }
  EXPECT_EQ(orders_.Send(*agent.guest, Zap(), nullptr), Orders::SendResult::kBusy);
  EXPECT_EQ(agent.guest->open_order, 0u);
}

TEST_F(OrdersTest, AGuestWithoutAnAgentIsBusy) {
  const Agent agent = NewAgent();
  agent.guest->has_agent = false;
  EXPECT_EQ(orders_.Send(*agent.guest, Zap(), nullptr), Orders::SendResult::kBusy);
  EXPECT_FALSE(agent.Next().has_value());
}

TEST_F(OrdersTest, DoneMayGiveTheNextOrder) {
  const Agent agent = NewAgent();
  std::function<void(const Message&)> again = [&](const Message&) {
    EXPECT_EQ(orders_.Send(*agent.guest, Zap(), again), Orders::SendResult::kSent);
  };
  orders_.Send(*agent.guest, Zap(), again);
  for (int i = 0; i < 5; ++i) {
    const std::optional<Message> order = agent.Next();
    ASSERT_TRUE(order.has_value());
    Answer(agent, *order);
  }
}

class AdopterTest : public OrdersTest {
 protected:
  MmId Adopt(const Agent& agent, uint64_t blocks, uint64_t va = kVa) {
    const MmId mm = segment_.AddMm(PageCount(blocks * kPagesPerBlock), FrameKind::kAdopted);
    MapToo(agent, mm, blocks, va);
    adopter_.Add(mm);
    return mm;
  }
  void MapToo(const Agent& agent, MmId mm, uint64_t blocks, uint64_t va = kVa) {
    EXPECT_EQ(segment_.tables.MapRegion(agent.guest->id,
                                        {GuestAddr(va), PageCount(blocks * kPagesPerBlock), mm,
                                         FilePage(0), AccessSet::ReadWrite(), 0}),
              TableStatus::kOk);
  }
  // The next order within a few looks.
  std::optional<Message> Await(const Agent& agent) {
    for (int tick = 0; tick < 200; ++tick) {
      if (std::optional<Message> order = agent.Next()) return order;
      adopter_.Tick();
    }
    return agent.Next();
  }

  Adopter adopter_{&segment_.tables, &guests_, &orders_};
};

TEST_F(AdopterTest, AsksForEachBlockUntilItIsHuge) {
  const Agent agent = NewAgent();
  const MmId mm = Adopt(agent, 4);
  std::optional<Message> order = Await(agent);
  ASSERT_TRUE(order.has_value());
  EXPECT_EQ(order->op, OrderOp::kCollapse);
  EXPECT_EQ(order->va, kVa);
  EXPECT_EQ(order->length, 4 * kBlockSize);
  EXPECT_EQ(order->value[0], 0b1111u);
  Answer(agent, *order, 0b0101);
  order = Await(agent);
  ASSERT_TRUE(order.has_value());
  EXPECT_EQ(order->value[0], 0b1010u) << "only what is not huge yet";
  Answer(agent, *order, 0b1010);
  EXPECT_EQ(segment_.tables.Info(mm).huge_blocks, 4u);
  EXPECT_FALSE(Await(agent).has_value()) << "all is done";
}

TEST_F(AdopterTest, AnAnswerCountsOnlyForWhatWasAsked) {
  const Agent agent = NewAgent();
  const MmId mm = Adopt(agent, 2);
  const std::optional<Message> order = Await(agent);
  ASSERT_TRUE(order.has_value());
  Answer(agent, *order, ~uint64_t{0});
  EXPECT_EQ(segment_.tables.Info(mm).huge_blocks, 2u);
  EXPECT_TRUE(CheckInvariants(segment_.reader()).empty());
}

TEST_F(AdopterTest, AFileThatDoesNotChangeIsAskedForMoreAndMoreSeldom) {
  const Agent agent = NewAgent();
  Adopt(agent, 1);
  int orders = 0;
  for (int tick = 0; tick < 500; ++tick) {
    adopter_.Tick();
    const std::optional<Message> order = agent.Next();
    if (!order.has_value()) continue;
    ++orders;
    Answer(agent, *order, 0);
  }
  EXPECT_GT(orders, 5);
  EXPECT_LT(orders, 20);
}

TEST_F(AdopterTest, AMappingThatIsNotAlignedIsNotAskedFor) {
  const Agent agent = NewAgent();
  Adopt(agent, 4, kVa + kPageSize);
  EXPECT_FALSE(Await(agent).has_value());
}

TEST_F(AdopterTest, AnotherGuestTakesOverFromADeadOne) {
  const Agent first = NewAgent();
  const Agent second = NewAgent();
  const MmId mm = Adopt(first, 2);
  MapToo(second, mm, 2);
  // One of the two is asked; that one dies over it.
  adopter_.Tick();
  const bool first_was_asked = first.Next().has_value();
  const Agent& dies = first_was_asked ? first : second;
  const Agent& lives = first_was_asked ? second : first;
  End(dies);
  EXPECT_TRUE(Await(lives).has_value());
}

TEST_F(AdopterTest, AnAnswerAfterTheFileIsGoneChangesNothing) {
  const Agent agent = NewAgent();
  Adopt(agent, 2);
  const std::optional<Message> order = Await(agent);
  ASSERT_TRUE(order.has_value());
  ReleasedMms released;
  segment_.tables.UnmapRange(agent.guest->id, GuestAddr(kVa), PageCount(2 * kPagesPerBlock),
                             &released);
  ASSERT_EQ(released.size(), 1u);
  // Its slot goes to another file, of which nothing was collapsed.
  const MmId next = segment_.AddMm(PageCount(2 * kPagesPerBlock), FrameKind::kAdopted);
  ASSERT_EQ(next.slot, released[0].slot);
  Answer(agent, *order, ~uint64_t{0});
  EXPECT_EQ(segment_.tables.Info(next).huge_blocks, 0u);
}

}  // namespace
}  // namespace hostmm
