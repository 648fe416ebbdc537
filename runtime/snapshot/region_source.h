// A snapshot as the writer of images reads it, while everybody goes on writing to the live file.
//
// A block is read from the live file first; pages that have been written since the snapshot, before
// the read or while it went on, are found in the tables after it, and are read again from the
// pre-images, which do not change. A first write is let go on only when its pre-image is in the
// tables, so nothing is missed.
//
// Threads:  the loop thread; a worker reads.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_REGION_SOURCE_H_
#define HOSTMM_RUNTIME_SNAPSHOT_REGION_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "runtime/backing.h"
#include "runtime/image/snapshot_source.h"
#include "runtime/snapshot/live_files.h"
#include "runtime/snapshot/preimage_store.h"
#include "runtime/snapshot/snapshot_set.h"
#include "runtime/worker_pool.h"
#include "vmm/cow_tables.h"

namespace hostmm {

class RegionSource : public SnapshotSource {
 public:
  // Holds both snapshots until it goes. `earlier` (may be null): only what has changed since
  // counts.
  RegionSource(const CowTables& cow, SnapshotSet* set, const LiveFile& file, WorkerPool* pool,
               TakenSnapshot* snapshot, TakenSnapshot* earlier);
  ~RegionSource() override;
  RegionSource(const RegionSource&) = delete;
  RegionSource& operator=(const RegionSource&) = delete;

  uint64_t length() const override { return snapshot_->length; }
  std::string why_lost() const override { return snapshot_->lost; }
  std::optional<uint64_t> NextBlock(uint64_t from) override;
  void ReadBlock(uint64_t block, std::byte* buffer, PageBitmap* pages,
                 std::function<void(int error)> done) override;

 private:
  void ReadPreimages(uint64_t block, std::byte* buffer, const std::function<void(int)>& done);
  uint64_t blocks() const { return (length() + kBlockSize - 1) / kBlockSize; }
  // The first block, at or after `from`, of which `later` has a page otherwise than `earlier`; or
  // blocks().
  uint64_t NextChanged(MmId earlier, MmId later, uint64_t from) const;
  // `fn(uint32_t index)` for those pages of the block.
  template <class Fn>
  void ForEachChanged(MmId earlier, MmId later, uint64_t block, Fn fn) const;

  const CowTables cow_;
  SnapshotSet* const set_;
  const std::shared_ptr<const Backing> backing_;
  std::shared_ptr<PreimageStore> store_;
  WorkerPool* const pool_;
  TakenSnapshot* const snapshot_;
  TakenSnapshot* const earlier_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_REGION_SOURCE_H_
