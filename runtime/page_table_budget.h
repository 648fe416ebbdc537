// Keeps each guest's kernel page tables for 4 KiB frames below a budget (base frames only).
//
// Each block of 2 MiB that a guest has touched costs it one 4 KiB page of page table. Regions under
// a budget are registered for MINOR faults, so that nothing of a block is mapped unless it passes
// here. When the budget is nearly used up, blocks are zapped through the agent, before their room
// is wanted; when it is used up, a fault of one more block waits until a zap is answered. So the
// budget is a bound, however fast the guest touches. The data stays in the file and comes back with
// a minor fault. Which block goes: vmm/second_chance.h.
//
// Bound:    the lowest level of tables, of whole blocks, of a guest whose agent answers. Not held:
//           a guest without an agent, or one whose agent has let a fault wait for a second (until
//           it answers again); a block that is locked in memory or only partly the region's, of
//           which the kernel keeps the table; entries that mremap has moved.
// Units:    bytes of page table; blocks. Threads: the loop thread.
#ifndef HOSTMM_RUNTIME_PAGE_TABLE_BUDGET_H_
#define HOSTMM_RUNTIME_PAGE_TABLE_BUDGET_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "runtime/guest.h"
#include "runtime/orders.h"
#include "vmm/fault.h"
#include "vmm/second_chance.h"

namespace hostmm {

class PageTableBudget {
 public:
  // A decision to continue, and the page that the guest's thread waits for.
  struct Fault {
    FaultDecision decision;
    GuestAddr page;
  };
  enum class Admission { kNow, kLater };
  using Resume = std::function<void(const Fault&)>;

  PageTableBudget(uint64_t bytes_per_guest, GuestSet* guests, Orders* orders)
      : blocks_per_guest_(bytes_per_guest / kPageSize), guests_(guests), orders_(orders) {}

  // Whoever asks Admit. It is called, from answers, ticks and ends of guests, exactly once for each
  // fault that was to come later.
  void SetResume(Resume resume) { resume_ = std::move(resume); }

  // kNow: pages of the block in which the fault's page lies may be mapped.
  Admission Admit(Guest& guest, const Fault& fault);
  // Once a tick: nobody waits for an agent that does not answer.
  void Tick();
  void OnGuestGone(GuestId guest);

  size_t waiting() const;

 private:
  enum class Agent { kAnswers, kIsLate };
  struct Waiter {
    Fault fault;
    uint64_t since;  // tick
  };
  struct Account {
    explicit Account(uint64_t blocks) : blocks(blocks) {}

    SecondChance blocks;
    std::deque<Waiter> waiters;
    Agent agent = Agent::kAnswers;
    // The block whose zap is on its way was mapped meanwhile for a fault that could not wait.
    enum class Overtaken { kNo, kYes } overtaken = Overtaken::kNo;
  };

  Account& AccountOf(const Guest& guest);
  void ZapOne(Guest& guest, Account& account);
  void OnZapped(GuestId id, GuestAddr block, protocol::Status status);
  void MapWithoutRoom(Account& account, GuestAddr block);
  void ResumeWhatHasRoom(Account& account);
  void ResumeTheLate(Account& account);

  const uint64_t blocks_per_guest_;
  GuestSet* const guests_;
  Orders* const orders_;
  Resume resume_ = [](const Fault&) {};
  uint64_t ticks_ = 0;
  absl::flat_hash_map<uint32_t, std::unique_ptr<Account>> accounts_;  // by slot
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_PAGE_TABLE_BUDGET_H_
