// A tmpfs mounted huge=within_size, attached nowhere: only its descriptor keeps it alive.
#ifndef HOSTMM_RUNTIME_HUGE_TMPFS_H_
#define HOSTMM_RUNTIME_HUGE_TMPFS_H_

#include "absl/status/statusor.h"
#include "runtime/unique_fd.h"

namespace hostmm {

// RETURNS: a descriptor of the mount's root, for openat(".", O_TMPFILE). Without the privilege to
// mount, a short-lived child makes it in a user namespace of its own; this process stays where it
// is. Errors: what failed, with the remedy. Threads: the caller must not hold locks (a child is
// made with vfork semantics).
absl::StatusOr<UniqueFd> MountHugeTmpfs();

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_HUGE_TMPFS_H_
