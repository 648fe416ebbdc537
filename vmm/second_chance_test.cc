#include "vmm/second_chance.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <random>
#include <set>
#include <vector>

namespace hostmm {
namespace {

using State = SecondChance::State;
using Zap = SecondChance::Zap;

constexpr uint64_t kCapacity = 64;

GuestAddr Block(uint64_t number) { return GuestAddr((number + 1) * kBlockSize); }

// Zaps what is to be zapped, at once. RETURNS the blocks, in order.
std::vector<GuestAddr> ZapAll(SecondChance* blocks) {
  std::vector<GuestAddr> gone;
  while (const std::optional<GuestAddr> victim = blocks->Evict()) {
    blocks->EndEviction(*victim, Zap::kDone);
    gone.push_back(*victim);
  }
  return gone;
}

// Maps `count` blocks from number `first` on, each followed by the zaps that it brings.
std::vector<GuestAddr> MapEach(SecondChance* blocks, uint64_t first, uint64_t count) {
  std::vector<GuestAddr> gone;
  for (uint64_t i = first; i < first + count; ++i) {
    blocks->Map(Block(i));
    for (const GuestAddr block : ZapAll(blocks)) gone.push_back(block);
  }
  return gone;
}

// The two policies to compare, with the same room.
class Guest {
 public:
  virtual ~Guest() = default;
  // RETURNS 1 if this touch was a fault.
  virtual int Touch(uint64_t number) = 0;
};

class SecondChanceGuest : public Guest {
 public:
  int Touch(uint64_t number) override {
    if (blocks_.StateOf(Block(number)) == State::kMapped) return 0;
    EXPECT_TRUE(blocks_.HasRoom());
    blocks_.Map(Block(number));
    EXPECT_LE(blocks_.size(), kCapacity);
    ZapAll(&blocks_);
    return 1;
  }

 private:
  SecondChance blocks_{kCapacity};
};

class FifoGuest : public Guest {
 public:
  int Touch(uint64_t number) override {
    if (!mapped_.insert(number).second) return 0;
    order_.push_back(number);
    if (order_.size() > kCapacity) {
      mapped_.erase(order_.front());
      order_.pop_front();
    }
    return 1;
  }

 private:
  std::set<uint64_t> mapped_;
  std::deque<uint64_t> order_;
};

// `hot` blocks from number `base` on, touched at random, and each eighth touch to a block that was
// never touched before. RETURNS the faults of the hot blocks.
int HotTouches(Guest* guest, int touches, uint64_t base, uint64_t hot, uint64_t* cold) {
  std::mt19937 random(1);  // NOLINT: the same each time
  int faults = 0;
  for (int i = 0; i < touches; ++i) {
    if (i % 8 == 0) guest->Touch((*cold)++);
    faults += guest->Touch(base + random() % hot);
  }
  return faults;
}

int Loop(Guest* guest, uint64_t blocks, int rounds) {
  int faults = 0;
  for (int round = 0; round < rounds; ++round) {
    for (uint64_t i = 0; i < blocks; ++i) faults += guest->Touch(i);
  }
  return faults;
}

TEST(SecondChanceTest, WhatNeverComesBackGoesInTheOrderInWhichItCame) {
  SecondChance blocks(kCapacity);
  const std::vector<GuestAddr> gone = MapEach(&blocks, 0, 3 * kCapacity);
  ASSERT_GE(gone.size(), 2 * kCapacity);
  for (uint64_t i = 0; i < gone.size(); ++i) EXPECT_EQ(gone[i], Block(i)) << i;
}

TEST(SecondChanceTest, SomeRoomIsKeptFree) {
  SecondChance blocks(kCapacity);
  MapEach(&blocks, 0, kCapacity);
  EXPECT_LT(blocks.size(), kCapacity);
  // Not so much that it costs what the budget is for.
  EXPECT_GE(blocks.size(), kCapacity * 15 / 16);
}

TEST(SecondChanceTest, WhatIsLeavingTakesUpRoom) {
  SecondChance blocks(kCapacity);
  uint64_t number = 0;
  while (blocks.HasRoom()) blocks.Map(Block(number++));
  EXPECT_EQ(number, kCapacity);
  const std::optional<GuestAddr> victim = blocks.Evict();
  ASSERT_EQ(victim, Block(0));
  EXPECT_EQ(blocks.StateOf(Block(0)), State::kLeaving);
  EXPECT_FALSE(blocks.HasRoom()) << "it may still be mapped";
  blocks.EndEviction(*victim, Zap::kDone);
  EXPECT_EQ(blocks.StateOf(Block(0)), State::kAbsent);
  EXPECT_TRUE(blocks.HasRoom());
}

TEST(SecondChanceTest, AZapThatProvedNothingIsRepeated) {
  SecondChance blocks(kCapacity);
  for (uint64_t i = 0; i < kCapacity; ++i) blocks.Map(Block(i));
  const std::optional<GuestAddr> victim = blocks.Evict();
  ASSERT_TRUE(victim.has_value());
  blocks.EndEviction(*victim, Zap::kUndone);
  EXPECT_EQ(blocks.StateOf(*victim), State::kMapped);
  EXPECT_EQ(blocks.Evict(), victim);
}

TEST(SecondChanceTest, ABlockThatNobodyCanZapIsForgotten) {
  SecondChance blocks(kCapacity);
  for (uint64_t i = 0; i < kCapacity; ++i) blocks.Map(Block(i));
  const std::optional<GuestAddr> victim = blocks.Evict();
  ASSERT_TRUE(victim.has_value());
  blocks.EndEviction(*victim, Zap::kRefused);
  EXPECT_EQ(blocks.size(), kCapacity - 1);
  EXPECT_NE(blocks.Evict(), victim);
  // It is no ghost: when it is touched again it is new.
  blocks.Map(*victim);
  const std::vector<GuestAddr> gone = MapEach(&blocks, kCapacity, kCapacity);
  EXPECT_NE(std::find(gone.begin(), gone.end(), *victim), gone.end());
}

TEST(SecondChanceTest, WhatComesBackSoonIsPassedOver) {
  SecondChance blocks(kCapacity);
  uint64_t number = kCapacity;
  MapEach(&blocks, 0, kCapacity);
  ASSERT_EQ(blocks.StateOf(Block(0)), State::kAbsent);
  blocks.Map(Block(0));
  ZapAll(&blocks);
  MapEach(&blocks, number, 10 * kCapacity);
  EXPECT_EQ(blocks.StateOf(Block(0)), State::kMapped);
}

TEST(SecondChanceTest, WhatComesBackLateIsNew) {
  SecondChance blocks(kCapacity);
  MapEach(&blocks, 0, 3 * kCapacity);
  ASSERT_EQ(blocks.StateOf(Block(0)), State::kAbsent);
  blocks.Map(Block(0));
  ZapAll(&blocks);
  MapEach(&blocks, 3 * kCapacity, kCapacity);
  EXPECT_EQ(blocks.StateOf(Block(0)), State::kAbsent);
}

// An instruction that needs six blocks must find them all mapped at some time.
TEST(SecondChanceTest, TheLastSixAreNeverTheNextToGo) {
  for (const uint64_t capacity : {0, 1, 7, 8, 9, 16, 63, 1000}) {
    SecondChance blocks(capacity);
    std::mt19937 random(2);  // NOLINT: the same each time
    std::deque<GuestAddr> last;
    for (int i = 0; i < 20'000; ++i) {
      const GuestAddr block = Block(random() % (2 * capacity + 20));
      if (blocks.StateOf(block) != State::kAbsent) continue;
      blocks.Map(block);
      last.push_back(block);
      if (last.size() > 6) last.pop_front();
      ZapAll(&blocks);
      for (const GuestAddr each : last) {
        ASSERT_EQ(blocks.StateOf(each), State::kMapped) << capacity << ", step " << i;
      }
    }
  }
}

TEST(SecondChanceTest, AHotSetIsSparedByAScan) {
  SecondChanceGuest ours;
  FifoGuest fifo;
  uint64_t cold = 1000;
  uint64_t fifo_cold = 1000;
  // Most of what may be protected, and half of that.
  for (const uint64_t hot : {40, 20}) {
    const int with = HotTouches(&ours, 100'000, 0, hot, &cold);
    const int without = HotTouches(&fifo, 100'000, 0, hot, &fifo_cold);
    EXPECT_LT(with * 20, without) << hot;
  }
}

TEST(SecondChanceTest, AHotSetThatMovesIsFollowed) {
  SecondChanceGuest ours;
  FifoGuest fifo;
  uint64_t cold = 10'000;
  uint64_t fifo_cold = 10'000;
  for (uint64_t move = 0; move < 10; ++move) {
    const uint64_t base = move * 100;
    // What it takes to learn is less than what is forgotten first in, first out.
    EXPECT_LT(HotTouches(&ours, 20'000, base, 40, &cold),
              HotTouches(&fifo, 20'000, base, 40, &fifo_cold));
    EXPECT_LT(HotTouches(&ours, 20'000, base, 40, &cold) * 20,
              HotTouches(&fifo, 20'000, base, 40, &fifo_cold))
        << "learned by then";
  }
}

TEST(SecondChanceTest, ALoopOverALittleMoreThanFitsMostlyHits) {
  SecondChanceGuest ours;
  FifoGuest fifo;
  constexpr uint64_t kBlocks = kCapacity * 5 / 4;
  const int without = Loop(&fifo, kBlocks, 100);
  EXPECT_EQ(without, static_cast<int>(kBlocks) * 100) << "the worst case of first in, first out";
  EXPECT_LT(Loop(&ours, kBlocks, 100), without * 6 / 10);
}

TEST(SecondChanceTest, ALoopOverMuchMoreIsNotWorseThanFirstInFirstOut) {
  SecondChanceGuest ours;
  FifoGuest fifo;
  EXPECT_LE(Loop(&ours, 4 * kCapacity, 20), Loop(&fifo, 4 * kCapacity, 20));
}

TEST(SecondChanceTest, RandomTouchesCostWhatTheReserveCosts) {
  SecondChanceGuest ours;
  FifoGuest fifo;
  std::mt19937 random(3);  // NOLINT: the same each time
  int with = 0;
  int without = 0;
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t block = random() % (2 * kCapacity);
    with += ours.Touch(block);
    without += fifo.Touch(block);
  }
  // A sixteenth of the room is kept free: about so many more.
  EXPECT_LT(with, without * 17 / 16);
}

// Every call in a random order, against what must hold.
TEST(SecondChanceTest, RandomProgramKeepsItsCount) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    std::mt19937 random(seed);
    const uint64_t capacity = random() % 100;
    SecondChance blocks(capacity);
    std::map<uint64_t, State> model;  // without the absent
    std::vector<GuestAddr> leaving;
    for (int step = 0; step < 2000; ++step) {
      const GuestAddr block = Block(random() % (2 * capacity + 20));
      const uint32_t what = random() % 4;
      if (what < 2 && !model.contains(block.value())) {
        blocks.Map(block);
        model[block.value()] = State::kMapped;
      } else if (what == 2) {
        if (const std::optional<GuestAddr> victim = blocks.Evict()) {
          ASSERT_TRUE(model.contains(victim->value()));
          ASSERT_EQ(model[victim->value()], State::kMapped);
          model[victim->value()] = State::kLeaving;
          leaving.push_back(*victim);
        }
      } else if (!leaving.empty()) {
        const GuestAddr one = leaving[random() % leaving.size()];
        std::erase(leaving, one);
        const Zap how = static_cast<Zap>(random() % 3);
        blocks.EndEviction(one, how);
        if (how == Zap::kUndone) {
          model[one.value()] = State::kMapped;
        } else {
          model.erase(one.value());
        }
      }
      const auto it = model.find(block.value());
      ASSERT_EQ(blocks.StateOf(block), it == model.end() ? State::kAbsent : it->second)
          << "seed " << seed << ", step " << step;
      ASSERT_EQ(blocks.size(), model.size());
    }
  }
}

}  // namespace
}  // namespace hostmm
