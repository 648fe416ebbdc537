// The frames of a live file's snapshots: pages as they were before somebody wrote to them.
//
// One packed, unnamed file of 4 KiB frames for all snapshots of one live file: a page is copied
// once, however many snapshots need it. Which frames are used, and by how many tables, FramePool
// (vmm/) knows. Frames that nobody needs any more are punched out of the file by a worker, in as
// few calls as they can be: a call for each page that was written, while threads wait for the loop,
// would be the longest that anybody waits for.
//
// Units:    FrameNumber: 4 KiB frames of this file; FilePage: pages of the live file.
// Threads:  Copy and Read any thread: they touch only files, with read(2) and write(2), so that a
//           full machine is an error here and no SIGBUS. All else on the loop thread.
// Errors:   an errno, or 0.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_PREIMAGE_STORE_H_
#define HOSTMM_RUNTIME_SNAPSHOT_PREIMAGE_STORE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/unique_fd.h"
#include "runtime/worker_pool.h"
#include "vmm/frame_pool.h"
#include "vmm/pte.h"
#include "vmm/units.h"

namespace hostmm {

class PreimageStore {
 public:
  // At most `limit_bytes`; 0: as much as memory has. Errors: the failed system call.
  static absl::StatusOr<PreimageStore> Create(uint64_t limit_bytes);

  // Contiguous frames; nullopt at the limit, for which what is being given back counts. Then
  // SetUses or Discard, once.
  std::optional<FrameNumber> Allocate(uint64_t count) { return pool_.Allocate(count); }
  void SetUses(FrameNumber first, uint64_t count, uint32_t uses) {
    pool_.SetUses(first, count, uses);
  }
  void Discard(FrameNumber first, PageCount count);
  // One table less names each of the frames.
  void Drop(FrameNumber first, PageCount count);
  // Has the memory of what was dropped and discarded given back. Until then it is not used again.
  static void GiveBack(const std::shared_ptr<PreimageStore>& store, WorkerPool* pool);
  bool gives_back() const { return giving_back_ != 0; }
  // Calls `then` when something has been given back. REQUIRES: gives_back().
  void AfterGiveBack(std::function<void()> then) { waiting_.push_back(std::move(then)); }
  // Those that are not to be called by a store that is to be retired.
  std::vector<std::function<void()>> TakeWaiting() { return std::exchange(waiting_, {}); }
  // Has all of it given back, if no one else holds it.
  static void Retire(std::shared_ptr<PreimageStore> store, WorkerPool* pool);

  // Copies [first, first + count) of the live file to frames from `frame` on. Pages behind the end
  // of the file are zeros.
  int Copy(int live_file, FilePage first, PageCount count, FrameNumber frame) const;
  int Read(FrameNumber frame, std::byte* page, uint64_t bytes) const;

  uint64_t used_bytes() const { return pool_.used() * kPageSize; }

 private:
  struct Run {
    uint64_t first;
    uint64_t count;
  };

  PreimageStore(UniqueFd file, uint64_t limit_frames)
      : file_(std::move(file)), pool_(limit_frames) {}

  static std::vector<Run> Joined(std::vector<Run> runs);
  void OnGivenBack(const std::vector<Run>& runs);
  void Punch(const Run& run) const;

  UniqueFd file_;
  FramePool pool_;
  std::vector<Run> unused_;  // to be given back
  uint32_t giving_back_ = 0;
  std::vector<std::function<void()>> waiting_;
};

// Reads exactly `bytes`; what lies behind the end of the file is zeros. RETURNS an errno, or 0.
int ReadFrames(int file, uint64_t offset, std::byte* to, uint64_t bytes);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_PREIMAGE_STORE_H_
