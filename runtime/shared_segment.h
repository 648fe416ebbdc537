// The memory of the host mm: a memfd that this process alone can write, for ever.
//
// It is sealed after our writable mapping is made (F_SEAL_FUTURE_WRITE), so that whoever gets the
// descriptor can map it for reading only: a guest can never change the tables, or hold a lock in
// them.
//
// Owner: the pager. Size: a multiple of 4 KiB; memory is used as it is touched.
#ifndef HOSTMM_RUNTIME_SHARED_SEGMENT_H_
#define HOSTMM_RUNTIME_SHARED_SEGMENT_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "runtime/mapping.h"
#include "runtime/unique_fd.h"

namespace hostmm {

struct SharedSegment {
  UniqueFd fd;
  Mapping memory;

  // Errors: the failed system call with the size.
  static absl::StatusOr<SharedSegment> Create(size_t bytes);
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SHARED_SEGMENT_H_
