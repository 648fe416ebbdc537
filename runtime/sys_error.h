// errno as absl::Status, for slow paths: the system call and its arguments stand in the message.
#ifndef HOSTMM_RUNTIME_SYS_ERROR_H_
#define HOSTMM_RUNTIME_SYS_ERROR_H_

#include <cerrno>
#include <string_view>

#include "absl/status/status.h"

namespace hostmm {

// The Status for the current errno, with "what: strerror" as its message. Call it before anything
// else can change errno.
inline absl::Status SysError(std::string_view what) { return absl::ErrnoToStatus(errno, what); }

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SYS_ERROR_H_
