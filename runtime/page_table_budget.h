// Keeps each guest's kernel page tables for 4 KiB frames below a budget (base frames only).
//
// Each block of 2 MiB that a guest has touched costs it one 4 KiB page of page table. Regions under
// a budget are registered for MINOR faults, so every first touch of a page passes here. Beyond the
// budget the blocks that were touched first are zapped, through the agent; the data stays in the
// file and comes back with a minor fault. First in, first out: the pager does not see which of the
// mapped blocks are in use.
//
// Units:    bytes of page table; blocks. Threads: the loop thread.
#ifndef HOSTMM_RUNTIME_PAGE_TABLE_BUDGET_H_
#define HOSTMM_RUNTIME_PAGE_TABLE_BUDGET_H_

#include <cstdint>
#include <deque>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "runtime/guest.h"
#include "runtime/orders.h"
#include "vmm/fault.h"

namespace hostmm {

class PageTableBudget {
 public:
  PageTableBudget(uint64_t bytes_per_guest, GuestSet* guests, Orders* orders)
      : blocks_per_guest_(bytes_per_guest / kPageSize), guests_(guests), orders_(orders) {}

  // The decision's pages were mapped in the guest.
  void OnMapped(Guest& guest, const FaultDecision& decision);
  void OnGuestGone(GuestId guest) { mapped_.erase(guest.slot); }

 private:
  struct Mapped {
    std::deque<uint64_t> order;            // addresses of blocks, oldest first
    absl::flat_hash_set<uint64_t> blocks;  // the same, to find them
  };

  void ZapDownToBudget(Guest& guest, Mapped* mapped);

  const uint64_t blocks_per_guest_;
  GuestSet* const guests_;
  Orders* const orders_;
  absl::flat_hash_map<uint32_t, Mapped> mapped_;  // by slot
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_PAGE_TABLE_BUDGET_H_
