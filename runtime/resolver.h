// The fault road: from a guest's userfaultfd to the answer. Read resolver.cc top to bottom, or
// docs/life_of_a_fault.md.
//
// Every event read is answered: resolved (populated or continued, then woken), denied (left to the
// kernel), or parked until the populate that it waits for is done or the page-table budget has room
// (page_table_budget.h); and every decision is committed exactly once.
//
// Threads:  the loop thread. Frames are made by the workers, except a few small pages when memory
//           is ample: those cost less than handing them over.
#ifndef HOSTMM_RUNTIME_RESOLVER_H_
#define HOSTMM_RUNTIME_RESOLVER_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/collapse_retry.h"
#include "runtime/event_loop.h"
#include "runtime/file_table.h"
#include "runtime/guest.h"
#include "runtime/userfaultfd.h"
#include "runtime/worker_pool.h"
#include "vmm/fault_policy.h"
#include "vmm/host_tables.h"

namespace hostmm {

class PageTableBudget;
class Snapshots;

class Resolver {
 public:
  // All outlive the Resolver.
  Resolver(HostTables* tables, FileTable* files, GuestSet* guests, WorkerPool* pool,
           CollapseRetry* retry)
      : tables_(tables), files_(files), guests_(guests), pool_(pool), retry_(retry) {}

  // Asks `budget` before anything of a tracked region is mapped. Without one nothing is tracked.
  void SetBudget(PageTableBudget* budget);

  // Reads and answers the faults of one guest. kMore: a bounded number was read, there may be
  // others.
  EventLoop::Progress Drain(Guest& guest);

  // Asks `snapshots` of what is frozen, and of views. Without one there are none.
  void SetSnapshots(Snapshots* snapshots);

  // Called once a tick.
  void SetMemory(MemoryClimate memory);

  size_t parked() const;

 private:
  // What a populate came to.
  struct Filled {
    Outcome outcome = Outcome::kFailed;
    Grain actual = Grain::kSmall;
  };
  struct Waiter {
    GuestId guest;
    uint64_t va;
    uint64_t bytes;
  };
  using BlockKey = std::pair<uint64_t, uint64_t>;  // mm, block

  static Filled Fill(const Backing& backing, const FaultDecision& decision);
  static BlockKey KeyOf(const FaultDecision& decision);

  Climate ClimateFor(FaultKind kind) const;
  void OnEvent(Guest& guest, const FaultEvent& event);
  void ContinueLater(const FaultDecision& decision, GuestAddr page);
  void Resolve(Guest& guest, const FaultEvent& event, const FaultDecision& decision);
  void Populate(const FaultDecision& decision);
  void Collapse(std::shared_ptr<const Backing> backing, const FaultDecision& decision);
  void Finish(const FaultDecision& decision, Filled filled);
  std::vector<Waiter> TakeWaiters(const FaultDecision& decision);
  void Continue(const FaultDecision& decision, GuestAddr page);
  bool WantsOnlyWhatItTouches(GuestId guest, GuestAddr page) const;
  UffdResult MapPresent(const Guest& guest, const FaultDecision& decision, GuestAddr page) const;
  void Deny(const Waiter& waiter);
  void LeaveToKernel(const Waiter& waiter);
  void Wake(const Waiter& waiter);

  HostTables* const tables_;
  FileTable* const files_;
  GuestSet* const guests_;
  WorkerPool* const pool_;
  CollapseRetry* const retry_;
  PageTableBudget* budget_ = nullptr;
  Snapshots* snapshots_ = nullptr;
  Climate climate_;
  absl::flat_hash_map<BlockKey, std::vector<Waiter>> parked_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_RESOLVER_H_
