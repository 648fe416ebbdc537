#include "runtime/snapshot/view_orders.h"

#include <gtest/gtest.h>

#include <memory>
#include <utility>

namespace hostmm {
namespace {

// Of a guest that never answers.
class ViewOrdersTest : public testing::Test {
 protected:
  ViewOrdersTest() {
    auto guest = std::make_unique<Guest>();
    guest->id = GuestId{1, 1};
    guest->has_agent = true;
    guest_ = guests_.Add(std::move(guest));
  }
  ViewOrders::Item ItemOf(protocol::OrderOp op) const {
    ViewOrders::Item item{guest_->id, {}};
    item.order.op = op;
    return item;
  }
  // RETURNS how many have been said to be late at once.
  size_t SendMany(protocol::OrderOp op, size_t count) {
    size_t late = 0;
    for (size_t i = 0; i < count; ++i) {
      view_orders_.Send({ItemOf(op)}, [&late](ViewOrders::End end) {
        late += end == ViewOrders::End::kSomeLate ? 1 : 0;
      });
    }
    return late;
  }

  GuestSet guests_;
  Orders orders_;
  ViewOrders view_orders_{&guests_, &orders_};
  Guest* guest_ = nullptr;
};

// One that makes faults without end must not fill the pager's memory with them.
TEST_F(ViewOrdersTest, ZapsDoNotQueueWithoutEnd) {
  constexpr size_t kMany = 100'000;
  const size_t late = SendMany(protocol::OrderOp::kZapPages, kMany);
  EXPECT_GT(late, 0u);
  EXPECT_EQ(orders_.QueuedFor(*guest_), kMany - late);
}

// A removal by many threads is that much.
TEST_F(ViewOrdersTest, WhoAnswersMayHaveManyMoreThanWhoDoesNot) {
  EXPECT_EQ(SendMany(protocol::OrderOp::kZapPages, 20'000), 0u);
  for (int tick = 0; tick < 2; ++tick) orders_.Tick(guests_);
  EXPECT_EQ(SendMany(protocol::OrderOp::kZapPages, 100), 100u);
}

// It would show live memory for ever.
TEST_F(ViewOrdersTest, ThatAViewIsLostIsAlwaysSaid) {
  SendMany(protocol::OrderOp::kZapPages, 100'000);
  EXPECT_EQ(SendMany(protocol::OrderOp::kLoseView, 3), 0u);
}

}  // namespace
}  // namespace hostmm
