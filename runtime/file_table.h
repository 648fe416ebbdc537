// The files behind the mms: our own with their frames, and adopted ones, which have only an
// identity here. Our own that have a name have one too: guests hand them in like adopted files.
//
// Owner: the pager. Threads: the loop thread; a worker may hold a reference to a Backing meanwhile.
#ifndef HOSTMM_RUNTIME_FILE_TABLE_H_
#define HOSTMM_RUNTIME_FILE_TABLE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/backing.h"
#include "runtime/worker_pool.h"
#include "vmm/units.h"

namespace hostmm {

// What makes two files the same: device and inode, or a SysV id (device 0: no file system
// has it).
using AdoptedKey = std::pair<uint64_t, uint64_t>;

class FileTable {
 public:
  explicit FileTable(WorkerPool* pool) : pool_(pool) {}

  void AddOwn(MmId mm, std::shared_ptr<const Backing> backing);
  void AddAdopted(MmId mm, AdoptedKey key);
  void AddNamed(MmId mm, std::shared_ptr<const Backing> backing, AdoptedKey key);

  // nullptr if there is none: an adopted file, or one that is gone.
  std::shared_ptr<const Backing> Find(MmId mm) const;
  // Adopted, or ours and named.
  std::optional<MmId> FindAdopted(AdoptedKey key) const;

  // Called for each mm that the tables have released, a file's or not.
  void SetOnReleased(std::function<void(MmId)> on_released) {
    on_released_ = std::move(on_released);
  }

  // Forgets files that the tables have released. Their memory is given back by a worker: for
  // gigabytes that takes long.
  void Release(const std::vector<MmId>& mms);

 private:
  static uint64_t Key(MmId mm) { return (static_cast<uint64_t>(mm.generation) << 32) | mm.slot; }

  WorkerPool* pool_;
  std::function<void(MmId)> on_released_ = [](MmId) {};
  absl::flat_hash_map<uint64_t, std::shared_ptr<const Backing>> own_;
  absl::flat_hash_map<uint64_t, AdoptedKey> adopted_;
  absl::flat_hash_map<AdoptedKey, MmId> adopted_by_key_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_FILE_TABLE_H_
