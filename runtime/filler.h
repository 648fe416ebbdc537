// Fills ranges of files before they are touched (MADV_WILLNEED on opt-in memory): block by block,
// by a worker, when nothing else waits for one.
//
// It is advice: what cannot be had, or does not fit in a short list, is left out, and while memory
// is short nothing is filled. A block that is there already costs a look at the tables.
//
// Threads:  the loop thread; the worker touches the file alone.
// Errors:   none.
#ifndef HOSTMM_RUNTIME_FILLER_H_
#define HOSTMM_RUNTIME_FILLER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>

#include "runtime/file_table.h"
#include "runtime/worker_pool.h"
#include "vmm/density_policy.h"
#include "vmm/host_tables.h"

namespace hostmm {

class Filler {
 public:
  // All outlive it.
  Filler(HostTables* tables, FileTable* files, WorkerPool* pool)
      : tables_(tables), files_(files), pool_(pool) {}

  // Pages [first, first + count) of `mm`, as `region` of `guest` has them: its hints count.
  void Add(GuestId guest, const Region& region, FilePage first, PageCount count);

  void SetMemory(MemoryClimate memory);

 private:
  enum class FillGrain : uint8_t { kSmallOnly, kHuge };
  struct Job {
    GuestId guest;
    MmId mm;
    FillGrain grain;
    BlockIndex next;
    BlockIndex end;
  };
  // What a worker does and what came of it.
  struct Task {
    std::shared_ptr<const Backing> backing;
    BlockIndex block;
    PageCount pages;  // of the block that the file has
    FillGrain grain = FillGrain::kSmallOnly;
    Backing::FillResult result = Backing::FillResult::kRefused;
    enum class Made : uint8_t { kSmall, kHuge } made = Made::kSmall;
  };

  static void Fill(Task* task);
  void Step();
  std::optional<Task> NextTask(Job* job) const;
  void OnDone(MmId mm, const Task& task);

  HostTables* const tables_;
  FileTable* const files_;
  WorkerPool* const pool_;
  MemoryClimate memory_ = MemoryClimate::kAmple;
  enum class Worker : uint8_t { kIdle, kBusy } worker_ = Worker::kIdle;
  std::deque<Job> jobs_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_FILLER_H_
