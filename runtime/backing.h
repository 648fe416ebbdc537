// The frames of one shared file, seen from the pager: fill, collapse, sample.
//
// The pager touches memory only through its own mappings here, which are registered with no
// userfaultfd (invariant I8), and only with madvise, which reports what a plain touch would turn
// into SIGBUS. There are two views of a kHuge file, because the kernel chooses the frame's size by
// the mapping that touches first:
//
//     huge view    2 MiB frames        small view   MADV_NOHUGEPAGE: 4 KiB frames
//
// Units:    FilePage, PageCount, BlockIndex.
// Threads:  any; calls for different blocks run side by side, for one block the caller (the
//           in-flight state) keeps them apart. The owner may drop its reference while a worker
//           still has one.
#ifndef HOSTMM_RUNTIME_BACKING_H_
#define HOSTMM_RUNTIME_BACKING_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "runtime/mapping.h"
#include "runtime/unique_fd.h"
#include "vmm/access.h"
#include "vmm/units.h"

namespace hostmm {

class Backing {
 public:
  enum class FillResult {
    kDone,
    kOutOfFrames,  // the store is full or memory is; what fitted stays
    kRefused,      // the kernel refused for another reason
  };
  enum class Use { kUsed, kUnused };

  // Maps `file` of `length` pages. Errors: the failed system call.
  static absl::StatusOr<Backing> Create(FrameKind kind, UniqueFd file, PageCount length);

  const UniqueFd& file() const { return file_; }
  FrameKind kind() const { return kind_; }
  // The file as an open file of its own: what a guest does to its flags or its offset is none of
  // our business. `access` is O_RDONLY or O_RDWR. Not ok: errno says why.
  UniqueFd OpenAnew(int access) const;

  // Makes the whole block one 2 MiB frame (kHuge: if the block had no page yet). REQUIRES: the
  // block lies in the file.
  FillResult FillHuge(BlockIndex block) const;
  // Makes 4 KiB frames where there are none. REQUIRES: the pages lie in one block.
  FillResult FillSmall(FilePage first, PageCount count) const;
  // Replaces the 4 KiB frames of a full block by one of 2 MiB, in all processes.
  FillResult Collapse(BlockIndex block) const;
  // Whether the block's pages hold something: a sample of its content. Reads with pread, which
  // fills no hole.
  Use Sample(BlockIndex block) const;

 private:
  Backing(FrameKind kind, UniqueFd file) : kind_(kind), file_(std::move(file)) {}

  FrameKind kind_;
  UniqueFd file_;
  Mapping huge_view_;  // 2 MiB-aligned inside a larger reservation: see huge_base_
  Mapping small_view_;
  std::byte* huge_base_ = nullptr;
  std::byte* small_base_ = nullptr;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_BACKING_H_
