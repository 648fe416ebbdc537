#include "runtime/guest/api_call.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

// In the initial block, so that it needs nothing of the dynamic linker.
__attribute__((tls_model("initial-exec"))) thread_local char t_error[512];

}  // namespace

void Explain(int error, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int used = vsnprintf(t_error, sizeof(t_error), format, arguments);
  va_end(arguments);
  if (used < 0 || static_cast<size_t>(used) >= sizeof(t_error)) return;
  const char* name = strerrorname_np(error);
  snprintf(t_error + used, sizeof(t_error) - static_cast<size_t>(used), ": %s",
           name != nullptr ? name : "unknown error");
}

const char* LastError() { return t_error; }

long Finish(long result) {
  if (!raw::Failed(result)) return result;
  errno = static_cast<int>(-result);
  return -1;
}

}  // namespace hostmm::guest
