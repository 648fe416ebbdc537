// The pager's state and its loop; pager.h says how it is run.
//
// Threads: the loop thread. Owner: RunPager.
#ifndef HOSTMM_RUNTIME_PAGER_CORE_H_
#define HOSTMM_RUNTIME_PAGER_CORE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/adopter.h"
#include "runtime/cli/pager_options.h"
#include "runtime/collapse_retry.h"
#include "runtime/event_loop.h"
#include "runtime/file_table.h"
#include "runtime/filler.h"
#include "runtime/guest.h"
#include "runtime/memory_climate.h"
#include "runtime/opt_in.h"
#include "runtime/orders.h"
#include "runtime/page_table_budget.h"
#include "runtime/resolver.h"
#include "runtime/rung.h"
#include "runtime/savings.h"
#include "runtime/session.h"
#include "runtime/shared_segment.h"
#include "runtime/snapshot/snapshots.h"
#include "runtime/worker_pool.h"
#include "vmm/host_tables.h"

namespace hostmm {

class PagerCore : public SessionHost {
 public:
  // Errors: what could not be had, with the remedy.
  static absl::StatusOr<std::unique_ptr<PagerCore>> Create(const PagerOptions& options, Rung rung);

  // Serves. Errors: the loop broke.
  absl::Status Run();

  // The lines for the end of `hostmm run`.
  std::vector<std::string> Report() const;

  // SessionHost.
  Room RoomForGuest(uid_t uid) const override;
  Guest& AddChild(Guest& parent, GuestId child, UniqueFd channel) override;
  void WatchGuest(Guest& guest, UniqueFd uffd, pid_t pid) override;

 private:
  // Connected, and has not said yet what it is.
  struct Newcomer {
    WatchedFd channel;
    uint64_t since = 0;  // tick
  };

  PagerCore(const PagerOptions& options, Rung rung, SharedSegment segment, HostTables tables,
            std::unique_ptr<EventLoop> loop, UniqueFd event_fd);

  EventLoop::Progress Accept();
  EventLoop::Progress OnNewcomer(uint64_t number);
  void Introduce(Newcomer newcomer, Packet hello);
  void ShowSegment(const Packet& ask) const;
  void AnswerTool(int connection, Packet& ask);
  void WatchChannel(Guest& guest);
  EventLoop::Progress OnChannel(GuestId id);
  void EndGuest(GuestId id);
  EventLoop::Progress OnTreeGone();
  void EndIfOver();
  void DropOldestNewcomer();
  void DropTheSilent();
  void Tick();

  const PagerOptions options_;
  Rung rung_;
  SharedSegment segment_;
  HostTables tables_;
  std::unique_ptr<EventLoop> loop_;
  UniqueFd listener_;
  UniqueFd life_;
  UniqueFd signals_;
  WorkerPool pool_;
  FileTable files_;
  GuestSet guests_;
  Orders orders_;
  std::optional<PageTableBudget> budget_;
  ClimateWatch climate_;
  Adopter adopter_;
  CollapseRetry collapse_retry_;
  Resolver resolver_;
  OptIn opt_in_;
  Filler filler_;
  Snapshots snapshots_;
  Session session_;
  std::map<uint64_t, Newcomer> newcomers_;  // by number, so the oldest is first
  uint64_t next_newcomer_ = 0;
  uint64_t ticks_ = 0;
  size_t most_guests_ = 0;
  Savings
      best_;  // the sample in which the page tables of plain 4 KiB pages would have been largest
  // Whether more guests may come: without a tree to watch, the first one is the sign that they all
  // have been started.
  enum class Tree { kAlive, kGone } tree_ = Tree::kAlive;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_PAGER_CORE_H_
