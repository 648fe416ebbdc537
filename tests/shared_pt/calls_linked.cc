#include <cstdlib>

#include "runtime/hostmm_c.h"
#include "tests/process/guest_program.h"
#include "tests/shared_pt/calls.h"

namespace hostmm::test {

static_assert(kMapSharedPt == MAP_SHARED_PT && kMapDedicated == MAP_SHARED_DEDICATED);

const Calls& TheCalls() {
  static constexpr Calls kCalls = {hostmm_mmap, hostmm_munmap, hostmm_mremap, hostmm_mprotect,
                                   hostmm_madvise};
  return kCalls;
}

const Library& TheLibrary() {
  static constexpr Library kLibrary = {hostmm_open,       hostmm_close,     hostmm_mprotect,
                                       hostmm_granule,    hostmm_is_shared, hostmm_shm_open,
                                       hostmm_shm_unlink, hostmm_error};
  return kLibrary;
}

Way TheWay() { return Way::kLinked; }

// Not HOSTMM_SOCKET: that would make it a program under `hostmm run`.
const char* PagerSocket() { return getenv("HOSTMM_TEST_SOCKET"); }

void Attach() {
  hostmm_options options = {};
  options.size = sizeof(options);
  options.socket = PagerSocket();
  MUST(options.socket != nullptr && hostmm_open(&options) == 0);
}

}  // namespace hostmm::test
