// The live files that have snapshots, or are about to: what the pager keeps for each beside its
// tables.
//
// Life:     made when the first snapshot is asked for, gone when the last one is.
// Owner:    Snapshots.
// Threads:  the loop thread; a worker may hold a reference to `store` and `backing` meanwhile.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_LIVE_FILES_H_
#define HOSTMM_RUNTIME_SNAPSHOT_LIVE_FILES_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "runtime/backing.h"
#include "runtime/snapshot/preimage_store.h"
#include "runtime/unique_fd.h"
#include "vmm/fault.h"
#include "vmm/units.h"

namespace hostmm {

struct LiveFile {
  enum class State : uint8_t {
    kThawed,    // nothing of it is registered for more than holes
    kFreezing,  // some guests can still write; faults wait
    kFrozen,    // every first write comes here
  };

  MmId mm;
  std::shared_ptr<const Backing> backing;
  std::shared_ptr<PreimageStore> store;
  // The life pipe (protocol.h, kFreeze, kHoldLife): nobody writes to it or reads from it. Who is
  // frozen learns by the end of all write ends that no view is left.
  UniqueFd life_read;
  UniqueFd life_write;

  uint32_t snapshots = 0;  // of it, that are not lost
  // Which images are of this file, and the number of its latest snapshot.
  std::array<uint64_t, 2> random = {};
  uint64_t sequence = 0;
  State state = State::kThawed;
  uint32_t freeze = 0;             // number of the latest one
  uint32_t ticks = 0;              // that it has taken so far
  std::vector<GuestId> waiting;    // who has not been frozen yet
  std::vector<FaultEvent> parked;  // faults that wait for the end of the freeze
  std::function<void(int error)> done;
};

class LiveFiles {
 public:
  // nullptr: it has no snapshots and is not about to.
  LiveFile* Find(MmId mm) const;
  // `limit_bytes`: of its pre-images. Errors: the failed system call.
  absl::StatusOr<LiveFile*> FindOrMake(MmId mm, std::shared_ptr<const Backing> backing,
                                       uint64_t limit_bytes);
  void Erase(MmId mm) { files_.erase(KeyOf(mm)); }
  bool empty() const { return files_.empty(); }
  std::vector<MmId> all() const;

 private:
  static uint64_t KeyOf(MmId mm) { return (static_cast<uint64_t>(mm.generation) << 32) | mm.slot; }

  absl::flat_hash_map<uint64_t, std::unique_ptr<LiveFile>> files_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_LIVE_FILES_H_
