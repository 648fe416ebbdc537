#include "runtime/page_table_budget.h"

#include <optional>

namespace hostmm {
namespace {

using State = SecondChance::State;

// For an answer of the agent: 1 s. On a machine that is busy its thread may not run for a while;
// and in the few cases in which it cannot answer, the program must get on. Arbitrary.
constexpr uint64_t kPatienceTicks = 4;

GuestAddr BlockOf(const PageTableBudget::Fault& fault) {
  return GuestAddr(fault.page.value() & ~(kBlockSize - 1));
}

}  // namespace

PageTableBudget::Account& PageTableBudget::AccountOf(const Guest& guest) {
  std::unique_ptr<Account>& account = accounts_[guest.id.slot];
  if (account == nullptr) account = std::make_unique<Account>(blocks_per_guest_);
  return *account;
}

PageTableBudget::Admission PageTableBudget::Admit(Guest& guest, const Fault& fault) {
  Account& account = AccountOf(guest);
  const GuestAddr block = BlockOf(fault);
  const State state = account.blocks.StateOf(block);
  if (state == State::kMapped) return Admission::kNow;
  const bool may_wait = guest.has_agent && account.agent == Agent::kAnswers;
  if (state == State::kAbsent && account.blocks.HasRoom()) {
    account.blocks.Map(block);
  } else if (!may_wait) {
    MapWithoutRoom(account, block);
  } else {
    account.waiters.push_back({fault, ticks_});
    ZapOne(guest, account);
    return Admission::kLater;
  }
  ZapOne(guest, account);
  return Admission::kNow;
}

// One order is out at a time; its answer sends the next. An order of somebody else's may stand in
// the way: then the next fault or tick tries again.
void PageTableBudget::ZapOne(Guest& guest, Account& account) {
  if (!guest.has_agent || guest.open_order != 0) return;
  const std::optional<GuestAddr> victim = account.blocks.Evict();
  if (!victim.has_value()) return;
  protocol::Message zap = NewPacket(protocol::Kind::kOrder);
  zap.op = protocol::OrderOp::kZap;
  zap.va = victim->value();
  zap.length = kBlockSize;
  const auto done = [this, id = guest.id, block = *victim](const protocol::Message& answer) {
    OnZapped(id, block, answer.status);
  };
  if (orders_->Send(guest, zap, done) == Orders::SendResult::kSent) return;
  account.blocks.EndEviction(*victim, SecondChance::Zap::kUndone);
}

void PageTableBudget::OnZapped(GuestId id, GuestAddr block, protocol::Status status) {
  Guest* guest = guests_->Find(id);
  if (guest == nullptr) return;
  Account& account = AccountOf(*guest);
  account.agent = Agent::kAnswers;
  SecondChance::Zap how = SecondChance::Zap::kDone;
  if (account.overtaken == Account::Overtaken::kYes) how = SecondChance::Zap::kUndone;
  // The region is gone or locked, or has a part of the block only.
  if (status != protocol::Status::kOk) how = SecondChance::Zap::kRefused;
  account.overtaken = Account::Overtaken::kNo;
  account.blocks.EndEviction(block, how);
  ResumeWhatHasRoom(account);
  ZapOne(*guest, account);
}

void PageTableBudget::MapWithoutRoom(Account& account, GuestAddr block) {
  switch (account.blocks.StateOf(block)) {
    case State::kAbsent:
      return account.blocks.Map(block);
    case State::kLeaving:
      // Before the zap or behind it: only another zap makes sure.
      account.overtaken = Account::Overtaken::kYes;
      return;
    case State::kMapped:
      return;
  }
}

// In the order in which they came. One that waits for its own block to be gone holds up nobody.
void PageTableBudget::ResumeWhatHasRoom(Account& account) {
  std::deque<Waiter> waiters;
  waiters.swap(account.waiters);
  for (const Waiter& waiter : waiters) {
    const GuestAddr block = BlockOf(waiter.fault);
    const State state = account.blocks.StateOf(block);
    if (state == State::kLeaving || (state == State::kAbsent && !account.blocks.HasRoom())) {
      account.waiters.push_back(waiter);
      continue;
    }
    if (state == State::kAbsent) account.blocks.Map(block);
    resume_(waiter.fault);
  }
}

// The thread that waits may hold what the agent waits for: a lock of the library, over a system
// call that fills memory. Or the agent is stopped by a debugger.
void PageTableBudget::ResumeTheLate(Account& account) {
  while (!account.waiters.empty() && ticks_ - account.waiters.front().since > kPatienceTicks) {
    const Waiter waiter = account.waiters.front();
    account.waiters.pop_front();
    account.agent = Agent::kIsLate;
    MapWithoutRoom(account, BlockOf(waiter.fault));
    resume_(waiter.fault);
  }
}

void PageTableBudget::Tick() {
  ++ticks_;
  guests_->ForEach([this](Guest& guest) {
    const auto it = accounts_.find(guest.id.slot);
    if (it == accounts_.end()) return;
    ResumeTheLate(*it->second);
    ZapOne(guest, *it->second);
  });
}

void PageTableBudget::OnGuestGone(GuestId guest) {
  const auto it = accounts_.find(guest.slot);
  if (it == accounts_.end()) return;
  // Each decision is ended, also those of the dead.
  for (const Waiter& waiter : it->second->waiters) resume_(waiter.fault);
  accounts_.erase(it);
}

size_t PageTableBudget::waiting() const {
  size_t count = 0;
  for (const auto& [slot, account] : accounts_) count += account->waiters.size();
  return count;
}

}  // namespace hostmm
