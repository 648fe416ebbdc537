#include "runtime/page_table_budget.h"

namespace hostmm {

void PageTableBudget::OnMapped(Guest& guest, const FaultDecision& decision) {
  Mapped& mapped = mapped_[guest.id.slot];
  const uint64_t block = decision.wake_start.value() & ~(kBlockSize - 1);
  if (!mapped.blocks.insert(block).second) return;
  mapped.order.push_back(block);
  ZapDownToBudget(guest, &mapped);
}

// One order is out at a time; its answer sends the next.
void PageTableBudget::ZapDownToBudget(Guest& guest, Mapped* mapped) {
  if (mapped->order.size() <= blocks_per_guest_) return;
  protocol::Message zap = NewPacket(protocol::Kind::kOrder);
  zap.op = protocol::OrderOp::kZap;
  zap.va = mapped->order.front();
  zap.length = kBlockSize;
  const auto again = [this, id = guest.id](const protocol::Message&) {
    Guest* found = guests_->Find(id);
    const auto it = mapped_.find(id.slot);
    if (found != nullptr && it != mapped_.end()) ZapDownToBudget(*found, &it->second);
  };
  if (orders_->Send(guest, zap, again) != Orders::SendResult::kSent) return;
  mapped->blocks.erase(mapped->order.front());
  mapped->order.pop_front();
}

}  // namespace hostmm
