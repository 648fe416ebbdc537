// FramePool: which frames of one pre-image store are used, and by how many tables.
//
// What:    the book-keeping of a store of copied pages: a set of free runs and a use count per
//          frame. The store itself (a file) is the caller's, who makes it as long as end() says.
// Flow:    Allocate -> copy the pages -> CowTables::Privatize -> SetUses with what that says. Then
//          Drop for each report of HostTables::SetFrameSink, and Recycle when the memory of the
//          frame has been given back: who gives it back meanwhile must not find new content there.
//          A copy that failed: SetUses(.., 0), and Recycle.
// Units:   FrameNumber and counts in 4 KiB frames.
// Memory:  the heap, not the segment: nobody but the pager asks.
// Threads: none; the owner's.
// Errors:  Allocate returns nullopt at the limit, having changed nothing.

#ifndef HOSTMM_VMM_FRAME_POOL_H_
#define HOSTMM_VMM_FRAME_POOL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "vmm/pte.h"

namespace hostmm {

class FramePool {
 public:
  // At most `limit` frames have memory at a time; 0: as many as a file can have.
  explicit FramePool(uint64_t limit = 0) : limit_(limit == 0 ? kMaxFilePages : limit) {}

  // `count` contiguous frames, from now on used, by no table yet. REQUIRES: count != 0.
  std::optional<FrameNumber> Allocate(uint64_t count);
  // So many tables name each of the frames. 0: they were not needed, and are not used any more.
  // REQUIRES: allocated, and no uses set yet.
  void SetUses(FrameNumber first, uint64_t count, uint32_t uses);
  // One table less names the frame. RETURNS: whether it is not used any more. REQUIRES: it has
  // uses.
  bool Drop(FrameNumber frame);
  // Allocate may hand the frames out again. REQUIRES: not used any more, and not recycled since.
  void Recycle(FrameNumber first, uint64_t count);

  // That somebody uses; not those that wait to be recycled, which count for the limit.
  uint64_t used() const { return used_; }
  // Frames that the store must have room for; shrinks when the last ones are recycled.
  uint64_t end() const { return uses_.size(); }

 private:
  uint64_t limit_;
  uint64_t used_ = 0;
  uint64_t held_ = 0;                    // used, or not recycled yet
  std::vector<uint32_t> uses_;           // by frame; 0: none, or allocated and not named yet
  std::map<uint64_t, uint64_t> free_{};  // first frame -> frames; runs that touch are one
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_FRAME_POOL_H_
