// The budget with agents that answer when the test lets them. The guests are the far ends of socket
// pairs; what their kernels would have mapped is a set.
#include "runtime/page_table_budget.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "runtime/packet.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::OrderOp;
using Admission = PageTableBudget::Admission;

constexpr uint64_t kVa = uint64_t{1} << 40;
constexpr uint64_t kBudgetBlocks = 16;

class PageTableBudgetTest : public testing::Test {
 protected:
  struct Agent {
    Guest* guest;
    UniqueFd end;

    std::optional<Message> Next() const {
      Packet packet;
      if (ReceivePacket(end.get(), &packet) != ReceiveResult::kPacket) return std::nullopt;
      EXPECT_EQ(packet.message.kind, Kind::kOrder);
      EXPECT_EQ(packet.message.op, OrderOp::kZap);
      EXPECT_EQ(packet.message.length, kBlockSize);
      return packet.message;
    }
  };

  void SetUp() override {
    budget_.SetResume([this](const PageTableBudget::Fault& fault) {
      resumed_.push_back(NumberOf(fault.page.value()));
    });
  }

  Agent NewAgent() {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    auto guest = std::make_unique<Guest>();
    guest->id = segment_.AddGuest();
    guest->channel.fd.reset(ends[0]);
    guest->has_agent = true;
    return {guests_.Add(std::move(guest)), UniqueFd(ends[1])};
  }
  void End(const Agent& agent) {
    const GuestId id = agent.guest->id;
    orders_.OnGuestGone(id);
    budget_.OnGuestGone(id);
    ReleasedMms released;
    segment_.tables.RemoveGuest(id, &released);
    guests_.Erase(id);
  }
  void Answer(const Agent& agent, const Message& order,
              protocol::Status status = protocol::Status::kOk) {
    Message done = NewPacket(Kind::kOrderDone);
    done.order = order.order;
    done.status = status;
    orders_.OnDone(*agent.guest, done);
  }

  // A fault in block number `block`.
  Admission Touch(const Agent& agent, uint64_t block, uint64_t page = 3) {
    FaultDecision decision;
    decision.action = FaultAction::kContinue;
    decision.guest = agent.guest->id;
    return budget_.Admit(*agent.guest,
                         {decision, GuestAddr(kVa + block * kBlockSize + page * kPageSize)});
  }
  static uint64_t NumberOf(uint64_t address) { return (address - kVa) / kBlockSize; }
  // Touches blocks that never were, until one must wait. RETURNS its number.
  uint64_t TouchUntilOneWaits(const Agent& agent, uint64_t first = 0) {
    while (Touch(agent, first) == Admission::kNow && first < 1000) ++first;
    return first;
  }
  std::vector<uint64_t> TakeResumed() { return std::exchange(resumed_, {}); }

  TestSegment segment_;
  GuestSet guests_;
  Orders orders_;
  PageTableBudget budget_{kBudgetBlocks * kPageSize + 7, &guests_, &orders_};
  std::vector<uint64_t> resumed_;
};

TEST_F(PageTableBudgetTest, WithinTheBudgetNothingIsZapped) {
  const Agent agent = NewAgent();
  for (uint64_t round = 0; round < 3; ++round) {
    for (uint64_t block = 0; block < kBudgetBlocks / 2; ++block) {
      EXPECT_EQ(Touch(agent, block, round * 17), Admission::kNow);
    }
  }
  EXPECT_FALSE(agent.Next().has_value());
}

TEST_F(PageTableBudgetTest, TheOldestIsZappedBeforeItsRoomIsWanted) {
  const Agent agent = NewAgent();
  for (uint64_t block = 0; block < kBudgetBlocks; ++block) {
    ASSERT_EQ(Touch(agent, block), Admission::kNow);
  }
  const std::optional<Message> zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  EXPECT_EQ(zap->va, kVa);
  EXPECT_FALSE(agent.Next().has_value()) << "one at a time";
}

TEST_F(PageTableBudgetTest, BeyondTheBudgetAFaultWaitsForAZap) {
  const Agent agent = NewAgent();
  EXPECT_EQ(TouchUntilOneWaits(agent), kBudgetBlocks) << "exactly the budget, in whole pages";
  EXPECT_EQ(Touch(agent, 100), Admission::kLater);
  EXPECT_EQ(Touch(agent, 5), Admission::kNow) << "mapped already: nobody waits for that";
  EXPECT_EQ(budget_.waiting(), 2u);
  std::optional<Message> zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  EXPECT_TRUE(TakeResumed().empty());
  Answer(agent, *zap);
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{kBudgetBlocks}) << "who came first, and no other";
  zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  Answer(agent, *zap);
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{100});
  EXPECT_EQ(budget_.waiting(), 0u);
}

TEST_F(PageTableBudgetTest, AllWhoWaitForOneBlockGoOnTogether) {
  const Agent agent = NewAgent();
  const uint64_t block = TouchUntilOneWaits(agent);
  EXPECT_EQ(Touch(agent, block, 400), Admission::kLater);
  Answer(agent, *agent.Next());
  EXPECT_EQ(TakeResumed(), (std::vector<uint64_t>{block, block}));
}

// Mapped before the zap it would be gone again, behind it nobody would know of it.
TEST_F(PageTableBudgetTest, ABlockThatIsBeingZappedIsWaitedFor) {
  const Agent agent = NewAgent();
  for (uint64_t block = 0; block < kBudgetBlocks; ++block) Touch(agent, block);
  const std::optional<Message> zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  const uint64_t leaving = NumberOf(zap->va);
  EXPECT_EQ(Touch(agent, leaving), Admission::kLater);
  Answer(agent, *zap);
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{leaving});
}

TEST_F(PageTableBudgetTest, WhatCannotBeZappedMakesRoomAndIsNotAskedForAgain) {
  const Agent agent = NewAgent();
  const uint64_t waits = TouchUntilOneWaits(agent);
  const std::optional<Message> zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  Answer(agent, *zap, protocol::Status::kRefused);
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{waits});
  for (uint64_t block = 100; block < 200; ++block) {
    if (const std::optional<Message> next = agent.Next()) {
      EXPECT_NE(next->va, zap->va);
      Answer(agent, *next);
    }
    Touch(agent, block);
  }
}

TEST_F(PageTableBudgetTest, AGuestWithoutAnAgentIsNotHeld) {
  const Agent agent = NewAgent();
  agent.guest->has_agent = false;
  EXPECT_EQ(TouchUntilOneWaits(agent), 1000u);
  EXPECT_FALSE(agent.Next().has_value());
  // A new agent takes up what has come together.
  agent.guest->has_agent = true;
  EXPECT_EQ(Touch(agent, 2000), Admission::kLater);
  int zaps = 0;
  while (const std::optional<Message> zap = agent.Next()) {
    Answer(agent, *zap);
    ++zaps;
  }
  EXPECT_GE(zaps, 1000 - static_cast<int>(kBudgetBlocks));
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{2000});
}

TEST_F(PageTableBudgetTest, NobodyWaitsForAnAgentThatDoesNotAnswer) {
  const Agent agent = NewAgent();
  const uint64_t waits = TouchUntilOneWaits(agent);
  const std::optional<Message> zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  const uint64_t leaving = NumberOf(zap->va);
  EXPECT_EQ(Touch(agent, leaving), Admission::kLater);
  int ticks = 0;
  while (resumed_.empty() && ticks < 100) {
    budget_.Tick();
    ++ticks;
  }
  EXPECT_GE(ticks, 3) << "a busy machine";
  EXPECT_LE(ticks, 8) << "two seconds";
  EXPECT_EQ(TakeResumed(), (std::vector<uint64_t>{waits, leaving}));
  EXPECT_EQ(Touch(agent, 500), Admission::kNow) << "until it answers";

  Answer(agent, *zap);
  const std::optional<Message> again = agent.Next();
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->va, zap->va) << "it was mapped meanwhile, before or behind the zap";
  EXPECT_EQ(Touch(agent, 501), Admission::kLater) << "and the budget holds again";
}

TEST_F(PageTableBudgetTest, AnOrderOfSomebodyElseInTheWayIsOutwaited) {
  const Agent agent = NewAgent();
  Message other = NewPacket(Kind::kOrder);
  other.op = OrderOp::kZap;
  other.length = kBlockSize;
  ASSERT_EQ(orders_.Send(*agent.guest, other, nullptr), Orders::SendResult::kSent);
  const uint64_t waits = TouchUntilOneWaits(agent);
  EXPECT_EQ(waits, kBudgetBlocks);
  Answer(agent, *agent.Next());
  EXPECT_FALSE(agent.Next().has_value());
  budget_.Tick();
  const std::optional<Message> zap = agent.Next();
  ASSERT_TRUE(zap.has_value());
  Answer(agent, *zap);
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{waits});
}

TEST_F(PageTableBudgetTest, AGuestThatGoesTakesItsFaultsAlong) {
  const Agent agent = NewAgent();
  const uint64_t waits = TouchUntilOneWaits(agent);
  const uint32_t slot = agent.guest->id.slot;
  End(agent);
  EXPECT_EQ(TakeResumed(), std::vector<uint64_t>{waits}) << "each decision is ended once";
  const Agent next = NewAgent();
  ASSERT_EQ(next.guest->id.slot, slot);
  EXPECT_EQ(TouchUntilOneWaits(next), kBudgetBlocks) << "it pays for its predecessor";
}

TEST_F(PageTableBudgetTest, GuestsDoNotPayForEachOther) {
  const Agent one = NewAgent();
  const Agent other = NewAgent();
  TouchUntilOneWaits(one);
  EXPECT_EQ(TouchUntilOneWaits(other), kBudgetBlocks);
  Answer(one, *one.Next());
  EXPECT_EQ(TakeResumed().size(), 1u);
  EXPECT_EQ(budget_.waiting(), 1u);
}

// Four threads race an agent that is slow, that carries an order out long before it answers, and
// sometimes refuses because the block is not mapped any more. Whatever the order of things, there
// are never more blocks mapped than the budget allows, and every thread goes on.
class Race {
 public:
  explicit Race(uint32_t seed) : random_(seed) {}

  template <class Touch, class Answer>
  void Step(Touch touch, Answer answer) {
    const uint32_t what = random_() % 8;
    if (what < 5) {
      const size_t thread = random_() % threads_.size();
      if (threads_[thread].has_value()) return;  // it sleeps
      const uint64_t block = random_() % 3 == 0 ? random_() % 8 : random_() % 100;
      if (mapped_.contains(block)) return;
      if (touch(block) == Admission::kNow) {
        mapped_.insert(block);
      } else {
        threads_[thread] = block;
      }
    } else if (what == 5 && order_.has_value() && !carried_out_) {
      mapped_.erase(*order_);
      carried_out_ = true;
    } else if (what == 6 && carried_out_) {
      order_.reset();
      carried_out_ = false;
      answer();
    } else if (what == 7 && !mapped_.empty() && random_() % 50 == 0) {
      mapped_.erase(mapped_.begin());  // the guest unmapped it
    }
  }
  void Order(uint64_t block) { order_ = block; }
  bool has_order() const { return order_.has_value(); }
  void Resumed(uint64_t block) {
    mapped_.insert(block);
    ++resumed_;
    for (std::optional<uint64_t>& thread : threads_) {
      if (thread == block) {
        thread.reset();
        return;
      }
    }
    ADD_FAILURE() << "nobody waits for block " << block;
  }
  size_t mapped() const { return mapped_.size(); }
  int resumed() const { return resumed_; }
  bool sleeps() const {
    for (const auto& thread : threads_) {
      if (thread.has_value()) return true;
    }
    return false;
  }

 private:
  std::mt19937 random_;
  std::array<std::optional<uint64_t>, 4> threads_;
  std::set<uint64_t> mapped_;
  std::optional<uint64_t> order_;
  bool carried_out_ = false;
  int resumed_ = 0;
};

TEST_F(PageTableBudgetTest, TheBudgetHoldsInEveryRace) {
  int resumed = 0;
  size_t most = 0;
  for (uint32_t seed = 0; seed < 40; ++seed) {
    const Agent agent = NewAgent();
    Race race(seed);
    budget_.SetResume(
        [&](const PageTableBudget::Fault& fault) { race.Resumed(NumberOf(fault.page.value())); });
    std::optional<Message> order;
    const auto step = [&] {
      if (!race.has_order()) {
        order = agent.Next();
        if (order.has_value()) race.Order(NumberOf(order->va));
      }
      race.Step([&](uint64_t block) { return Touch(agent, block); },
                [&] { Answer(agent, *order); });
      most = std::max(most, race.mapped());
      ASSERT_LE(race.mapped(), kBudgetBlocks) << "seed " << seed;
    };
    for (int i = 0; i < 5000; ++i) {
      step();
      if (HasFatalFailure()) return;
    }
    resumed += race.resumed();
    End(agent);
  }
  EXPECT_EQ(most, kBudgetBlocks) << "the race never came to the edge";
  EXPECT_GT(resumed, 1000);
}

}  // namespace
}  // namespace hostmm
