// tests/shared_pt/calls.h
//
// The two ways to ask for shared page tables: plain mmap, mprotect and so on, under `hostmm run`
// (calls_plain.cc), and the functions of libhostmm.so, without LD_PRELOAD (calls_linked.cc). Every
// case is built with both.
//
// Errors:   those of the functions. What only the library has is null where it is not loaded.
// Threads:  any.
#ifndef HOSTMM_TESTS_SHARED_PT_CALLS_H_
#define HOSTMM_TESTS_SHARED_PT_CALLS_H_

#include <sys/types.h>

#include <cstddef>

struct hostmm_options;

namespace hostmm::test {

// MAP_SHARED_PT and MAP_SHARED_DEDICATED of hostmm_c.h, which a program that is not linked with the
// library need not have.
inline constexpr int kMapSharedPt = 0x200000;
inline constexpr int kMapDedicated = 0x400000;

struct Calls {
  void* (*map)(void* addr, size_t length, int prot, int flags, int fd, off_t offset);
  int (*unmap)(void* addr, size_t length);
  void* (*remap)(void* old_addr, size_t old_length, size_t new_length, int flags, void* new_addr);
  int (*protect)(void* addr, size_t length, int prot);
  int (*advise)(void* addr, size_t length, int advice);
};
const Calls& TheCalls();

// The functions of hostmm_c.h that no system call has the shape of.
struct Library {
  int (*open)(const hostmm_options* options);
  int (*close)();
  int (*protect_for_all)(void* addr, size_t length, int prot);
  size_t (*granule)();
  int (*is_shared)(const void* addr);
  int (*shm_open)(const char* name, int oflag, mode_t mode, size_t length);
  int (*shm_unlink)(const char* name);
  const char* (*error)();
};
const Library& TheLibrary();

enum class Way { kPlain, kLinked };
Way TheWay();

// The pager of the test; null: there is none.
const char* PagerSocket();
// To be called first in every program: opens the library, where a program has to.
void Attach();

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SHARED_PT_CALLS_H_
