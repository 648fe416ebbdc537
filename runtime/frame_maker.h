// Files from the pager's frame stores: of the rung that was chosen, or of the next one when that
// has no frames left.
//
// Owner: Session. Threads: the loop thread. Errors: the last store's, with the remedy.
#ifndef HOSTMM_RUNTIME_FRAME_MAKER_H_
#define HOSTMM_RUNTIME_FRAME_MAKER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/backing.h"
#include "runtime/frame_store.h"

namespace hostmm {

class FrameMaker {
 public:
  // `second` may be null. Both outlive it.
  FrameMaker(const FrameStore* store, const FrameStore* second) : store_(store), second_(second) {}

  // A file of at least `bytes`: whole 4 KiB, or 2 MiB if its frames are hugetlb.
  absl::StatusOr<std::shared_ptr<const Backing>> Make(uint64_t bytes);

  // Why a file came from the second store, the last time that one did.
  const std::string& why_weaker() const { return why_weaker_; }

 private:
  const FrameStore* const store_;
  const FrameStore* const second_;
  std::string why_weaker_;
};

// What the length of a mapping of such frames is counted in.
constexpr uint64_t UnitOf(FrameKind frames) {
  return frames == FrameKind::kHugetlb ? kBlockSize : kPageSize;
}

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_FRAME_MAKER_H_
