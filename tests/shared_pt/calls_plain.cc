// libc's functions, which the preload library replaces when there is one; what else it has is
// looked up, because the program must run without it, too.
#include <dlfcn.h>
#include <sys/mman.h>

#include <cstdlib>

#include "tests/shared_pt/calls.h"

namespace hostmm::test {
namespace {

void* Remap(void* old_addr, size_t old_length, size_t new_length, int flags, void* new_addr) {
  return mremap(old_addr, old_length, new_length, flags, new_addr);
}

template <class Function>
void Find(const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

Library FindLibrary() {
  Library library = {};
  Find("hostmm_open", &library.open);
  Find("hostmm_close", &library.close);
  Find("hostmm_mprotect", &library.protect_for_all);
  Find("hostmm_granule", &library.granule);
  Find("hostmm_is_shared", &library.is_shared);
  Find("hostmm_shm_open", &library.shm_open);
  Find("hostmm_shm_unlink", &library.shm_unlink);
  Find("hostmm_error", &library.error);
  return library;
}

}  // namespace

const Calls& TheCalls() {
  static constexpr Calls kCalls = {mmap, munmap, Remap, mprotect, madvise};
  return kCalls;
}

const Library& TheLibrary() {
  static const Library library = FindLibrary();
  return library;
}

Way TheWay() { return Way::kPlain; }

const char* PagerSocket() { return getenv("HOSTMM_SOCKET"); }

void Attach() {}

}  // namespace hostmm::test
