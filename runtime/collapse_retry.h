// Blocks that were filled but could not be collapsed when they were: tried again on later ticks.
//
// A collapse fails for passing reasons (a page is held for I/O, memory is fragmented). No fault
// will come to such a block again, because all its pages are there, so that without this it would
// stay in small pages for good.
//
// Pace:     one try per block and tick at most, kMaxTries in all; as work that comes last.
// Threads:  the loop thread; a worker does the collapse.
#ifndef HOSTMM_RUNTIME_COLLAPSE_RETRY_H_
#define HOSTMM_RUNTIME_COLLAPSE_RETRY_H_

#include <vector>

#include "runtime/file_table.h"
#include "runtime/worker_pool.h"
#include "vmm/host_tables.h"

namespace hostmm {

class CollapseRetry {
 public:
  // 8 s at four ticks per second. Arbitrary: longer than I/O holds a page.
  static constexpr int kMaxTries = 32;

  CollapseRetry(HostTables* tables, FileTable* files, WorkerPool* pool)
      : tables_(tables), files_(files), pool_(pool) {}

  void Add(MmId mm, BlockIndex block) { waiting_.push_back({mm, block, 0}); }
  void Tick();
  size_t waiting() const { return waiting_.size(); }

 private:
  struct Block {
    MmId mm;
    BlockIndex block;
    int tries;
  };
  enum class Collapsed { kNo, kYes };

  void Finish(Block block, Collapsed collapsed);

  HostTables* const tables_;
  FileTable* const files_;
  WorkerPool* const pool_;
  std::vector<Block> waiting_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_COLLAPSE_RETRY_H_
