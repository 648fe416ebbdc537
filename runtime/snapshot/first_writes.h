// The first write to a page of a frozen file since its newest snapshot: the road on which snapshots
// are kept what they were.
//
//   write        the thread sleeps; Decide says kPrivatize
//   Copy         the page as it is -> the pre-image store: once, for all snapshots that share it
//   Privatize    the tables of those snapshots name the copy (vmm/cow_tables.h)
//   Revoke       the live page is zapped in all views that have it mapped
//   Grant        the page is mapped writable; whoever waits goes on
//
// A page that is being copied collects the writers that come meanwhile. Nobody is granted a page
// that another snapshot has come to share in the meantime: he is woken, and comes again.
//
// Out of memory or of tables: the snapshots are lost, as a whole, and the writer goes on; the live
// file loses nothing.
//
// Threads:  the loop thread; a copy of 2 MiB is a worker's.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_FIRST_WRITES_H_
#define HOSTMM_RUNTIME_SNAPSHOT_FIRST_WRITES_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/guest.h"
#include "runtime/snapshot/live_files.h"
#include "runtime/snapshot/views.h"
#include "runtime/worker_pool.h"
#include "vmm/cow_tables.h"
#include "vmm/fault.h"
#include "vmm/host_tables.h"

namespace hostmm {

class FirstWrites {
 public:
  // Makes all snapshots of the file lost, thaws it, and then calls back.
  using Lose = std::function<void(MmId source, const std::string& why, std::function<void()> then)>;

  FirstWrites(HostTables* tables, GuestSet* guests, LiveFiles* files, Views* views,
              WorkerPool* pool, Lose lose)
      : tables_(tables),
        cow_(tables),
        guests_(guests),
        files_(files),
        views_(views),
        pool_(pool),
        lose_(std::move(lose)) {}

  // `decision` is kPrivatize for `event`, or one that lets it have a page that no snapshot shares
  // (cause kPrivatized): it does not have it before the views have given it back.
  void OnWrite(const FaultEvent& event, const FaultDecision& decision);

  // As if somebody wrote to the pages; `then` when no snapshot shares them any more, or all are
  // lost. REQUIRES: one page, or one block of 2 MiB frames.
  void Privatize(MmId source, FilePage first, PageCount count, std::function<void()> then);

  // A copy of the page, or of the block that begins with it, is being made: snapshots that come to
  // share it meanwhile get it, too.
  bool IsCopying(MmId source, FilePage first) const {
    return copying_.contains(KeyOf(source, first));
  }

 private:
  using Key = std::pair<uint64_t, uint64_t>;  // mm, page
  struct Copying {
    std::vector<FaultEvent> writers;
    std::vector<std::function<void()>> others;
  };

  // Made, or not (an errno). The file may have another store by then.
  struct Copy {
    std::shared_ptr<PreimageStore> store;
    FrameNumber frame;
    int error;
  };

  static Key KeyOf(MmId mm, FilePage page) {
    return {(static_cast<uint64_t>(mm.generation) << 32) | mm.slot, page.value()};
  }

  void Begin(MmId source, FilePage first, PageCount count);
  void OnCopied(MmId source, FilePage first, PageCount count, const std::shared_ptr<Copy>& made);
  void Finish(MmId source, FilePage first, PageCount count);
  void Grant(const FaultEvent& event, MmId source, FilePage first, PageCount count);

  HostTables* const tables_;
  CowTables cow_;
  GuestSet* const guests_;
  LiveFiles* const files_;
  Views* const views_;
  WorkerPool* const pool_;
  const Lose lose_;
  absl::flat_hash_map<Key, Copying> copying_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_FIRST_WRITES_H_
