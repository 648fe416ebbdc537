// Errors of hostmm.h as absl::Status: what a caller can ask of one, and how they are made. hostmm.h
// brings it.
//
// Content:  the function, its arguments and hostmm_error()'s line, under the code that
//           absl::ErrnoToStatus gives; the errno itself in a payload.
#ifndef HOSTMM_RUNTIME_HOSTMM_STATUS_H_
#define HOSTMM_RUNTIME_HOSTMM_STATUS_H_

#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
// Beside this file in the tree and where it is installed: hence no path.
#include "hostmm_c.h"

namespace hostmm {
inline namespace v1 {

namespace internal {
inline constexpr char kErrnoPayload[] = "hostmm/errno";
}  // namespace internal

// The errno behind a status of these headers; none if it is OK or comes from elsewhere.
inline std::optional<int> ErrnoOf(const absl::Status& status) {
  const auto payload = status.GetPayload(internal::kErrnoPayload);
  int error = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &error)) {
    return std::nullopt;
  }
  return error;
}

namespace internal {

inline absl::Status ErrorOf(int error, absl::string_view what) {
  absl::Status status = absl::ErrnoToStatus(error, what);
  status.SetPayload(kErrnoPayload, absl::Cord(absl::StrCat(error)));
  return status;
}

// `call` in these functions returns the text of the call: it is made only when something failed.

// The C function that `call` made has just failed.
template <class Call>
absl::Status LastError(const Call& call) {
  const int error = errno;
  return ErrorOf(error, absl::StrCat(call(), ": ", hostmm_error()));
}

// A step that is the kernel's own has just failed.
template <class Call>
absl::Status SystemError(const Call& call, absl::string_view step) {
  const int error = errno;
  return ErrorOf(error, absl::StrCat(call(), ": ", step));
}

// Arguments, as the text of a call has them.

template <class Enum>
int Number(Enum value) {
  return static_cast<int>(value);
}

inline std::string Text(const void* address) {
  return absl::StrCat("0x", absl::Hex(reinterpret_cast<uintptr_t>(address)));
}

}  // namespace internal

}  // namespace v1
}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_HOSTMM_STATUS_H_
