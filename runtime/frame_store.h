// clang-format off
// Where frames come from: one rung of the ladder of frames, as a factory of files.
//
//   kHuge     files of a tmpfs mounted huge=within_size that is attached nowhere: 2 MiB frames on first
//             touch, whatever shmem_enabled says but `deny`, without privilege (a user namespace
//             makes the mount when the pager is not root)
//   kHugetlb  hugetlb memfds: frames of the hugetlb pool, whose page tables the kernel shares
//   kBase     memfds: 4 KiB frames
//
// Owner:    the pager.
// Threads:  the loop thread.
// Leaves:   nothing behind: the mount goes with its last descriptor.
// clang-format on
#ifndef HOSTMM_RUNTIME_FRAME_STORE_H_
#define HOSTMM_RUNTIME_FRAME_STORE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/unique_fd.h"
#include "vmm/access.h"

namespace hostmm {

class FrameStore {
 public:
  // Opens the rung `kind` and proves that it gives frames of its size. kAdopted is no store.
  // Errors: the reason and the remedy, one line.
  static absl::StatusOr<FrameStore> Open(FrameKind kind);

  FrameKind kind() const { return kind_; }

  // A new, empty, unnamed file of `bytes` (a multiple of 4 KiB; 2 MiB for kHugetlb). kHugetlb
  // reserves its frames. Errors: ResourceExhausted when the store cannot hold that much; else the
  // failed system call.
  absl::StatusOr<UniqueFd> NewFile(uint64_t bytes) const;

 private:
  FrameStore(FrameKind kind, UniqueFd mount) : kind_(kind), mount_(std::move(mount)) {}

  FrameKind kind_;
  UniqueFd mount_;  // kHuge only
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_FRAME_STORE_H_
