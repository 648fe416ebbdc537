#include "runtime/snapshot/view_orders.h"

#include <algorithm>
#include <utility>

namespace hostmm {
namespace {

// 2 s: somebody else's write waits for it. An agent needs microseconds; one that is late for so
// long is stopped, or its program holds the lock that it wants.
constexpr uint32_t kPatienceTicks = 8;

// Zaps that wait for one agent that answers none; and for one that answers. Beyond that it is late.
// Each is for a write or a removal that somebody waits with: an honest one comes nowhere near it.
// Arbitrary; each takes some 700 bytes.
constexpr size_t kMaxQueuedZaps = 4096;
constexpr size_t kMaxQueuedOfTheQuick = 65'536;
constexpr uint32_t kQuickTicks = 2;

}  // namespace

void ViewOrders::Send(const std::vector<Item>& items, Done done, const Each& each) {
  const uint64_t number = next_++;
  Group& group = groups_[number];
  group.done = std::move(done);
  for (const Item& item : items) {
    Guest* guest = guests_->Find(item.guest);
    if (guest == nullptr) continue;
    // A view that is lost must be told so, however late.
    const bool zaps = item.order.op == protocol::OrderOp::kZapPages;
    const bool quick = orders_->TicksWithoutProgress(*guest) < kQuickTicks;
    if (zaps && orders_->QueuedFor(*guest) >= (quick ? kMaxQueuedOfTheQuick : kMaxQueuedZaps)) {
      group.end = End::kSomeLate;
      continue;
    }
    group.waiting.push_back(item.guest);
    // The answer comes later: never from here.
    orders_->Queue(*guest, item.order,
                   [this, number, each, id = item.guest](const protocol::Message& answer) {
                     if (each) each(id);
                     OnAnswer(number, id, answer.status);
                   });
  }
  EndIfLast(number);
}

void ViewOrders::OnAnswer(uint64_t number, GuestId guest, protocol::Status status) {
  const auto it = groups_.find(number);
  if (it == groups_.end()) return;
  if (status != protocol::Status::kOk) it->second.end = End::kSomeLate;
  const auto one = std::ranges::find(it->second.waiting, guest);
  if (one != it->second.waiting.end()) it->second.waiting.erase(one);
  EndIfLast(number);
}

void ViewOrders::EndIfLast(uint64_t number) {
  const auto it = groups_.find(number);
  if (it != groups_.end() && it->second.waiting.empty()) Finish(number, it->second.end);
}

void ViewOrders::Finish(uint64_t number, End end) {
  const auto it = groups_.find(number);
  const Done done = std::move(it->second.done);
  groups_.erase(it);
  done(end);
}

void ViewOrders::OnGuestGone(GuestId guest) {
  std::vector<uint64_t> numbers;
  for (auto& [number, group] : groups_) {
    if (std::erase(group.waiting, guest) != 0) numbers.push_back(number);
  }
  for (const uint64_t number : numbers) EndIfLast(number);
}

void ViewOrders::Tick() {
  std::vector<uint64_t> late;
  for (auto& [number, group] : groups_) {
    if (++group.ticks > kPatienceTicks) late.push_back(number);
  }
  for (const uint64_t number : late) {
    if (groups_.contains(number)) Finish(number, End::kSomeLate);
  }
}

}  // namespace hostmm
