#include "runtime/orders.h"

#include <utility>

namespace hostmm {

Orders::SendResult Orders::Send(Guest& guest, protocol::Message order, Done done) {
  if (!guest.has_agent || guest.open_order != 0) return SendResult::kBusy;
  order.order = next_;
  if (SendPacket(guest.channel.fd.get(), order) != hostmm::SendResult::kSent)
    return SendResult::kBusy;
  guest.open_order = next_;
  open_[guest.id.slot] = std::move(done);
  if (++next_ == 0) next_ = 1;
  return SendResult::kSent;
}

void Orders::OnDone(Guest& guest, const protocol::Message& answer) {
  if (answer.order == 0 || answer.order != guest.open_order) return;
  guest.open_order = 0;
  const auto it = open_.find(guest.id.slot);
  if (it == open_.end()) return;
  const Done done = std::move(it->second);
  open_.erase(it);
  if (done) done(answer);
  SendQueued(guest);
}

void Orders::Queue(Guest& guest, const protocol::Message& order, Done done) {
  queued_[guest.id.slot].orders.push_back({order, std::move(done)});
  SendQueued(guest);
}

size_t Orders::QueuedFor(const Guest& guest) const {
  const auto it = queued_.find(guest.id.slot);
  return it == queued_.end() ? 0 : it->second.orders.size();
}

uint32_t Orders::TicksWithoutProgress(const Guest& guest) const {
  const auto it = queued_.find(guest.id.slot);
  return it == queued_.end() ? 0 : it->second.ticks;
}

// One at a time: the answer sends the next.
void Orders::SendQueued(Guest& guest) {
  const auto it = queued_.find(guest.id.slot);
  if (it == queued_.end()) return;
  Waiting& waiting = it->second;
  const Queued& first = waiting.orders.front();
  if (Send(guest, first.order, first.done) != SendResult::kSent) return;
  waiting.ticks = 0;
  waiting.orders.pop_front();
  if (waiting.orders.empty()) queued_.erase(it);
}

void Orders::OnGuestGone(GuestId guest) {
  open_.erase(guest.slot);
  queued_.erase(guest.slot);
}

void Orders::Tick(const GuestSet& guests) {
  if (queued_.empty()) return;
  for (auto& [slot, waiting] : queued_) ++waiting.ticks;
  guests.ForEach([this](Guest& guest) { SendQueued(guest); });
}

}  // namespace hostmm
