// libhostmm_preload.so: the functions that a program calls instead of libc's. Each is the plain
// system call unless the memory is, or becomes, managed by hostmm; see client.h.
//
// Managed:  MAP_SHARED|MAP_ANONYMOUS memory; files of a tmpfs (memfd, /dev/shm) mapped MAP_SHARED;
//           SysV segments; each of at least protocol::kMinRegionBytes. shmget and shmctl need no
//           hook: segments stay the kernel's own (decision 002), with their keys, permissions,
//           attachment counts and IPC_RMID.
// Exports:  these functions, and in credentials.cc the ones that change user or groups; nothing
//           else (exports.map).
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include "runtime/cli/version.h"
#include "runtime/guest/client.h"
#include "runtime/guest/opt_in.h"
#include "runtime/guest/program_calls.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/protocol.h"

#define HOSTMM_HOOK extern "C" __attribute__((visibility("default")))

namespace hostmm::guest {
namespace {

// By which `hostmm run` tells a library of its own build without loading it.
__attribute__((used, retain)) constexpr char kVersionMark[] = HOSTMM_PRELOAD_MARK;

__attribute__((constructor)) void AtStart() { Initialize(); }

uint64_t Address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

// A kernel result in libc's form.
long Finish(long result) {
  if (!raw::Failed(result)) return result;
  errno = static_cast<int>(-result);
  return -1;
}

}  // namespace
}  // namespace hostmm::guest

using namespace hostmm;         // NOLINT: only hooks below
using namespace hostmm::guest;  // NOLINT

HOSTMM_HOOK void* mmap(void* addr, size_t length, int prot, int flags, int fd,
                       off_t offset) noexcept {
  return reinterpret_cast<void*>(Finish(MapAsProgram(addr, length, prot, flags, fd, offset)));
}

HOSTMM_HOOK void* mmap64(void* addr, size_t length, int prot, int flags, int fd,
                         __off64_t offset) noexcept {
  return reinterpret_cast<void*>(Finish(MapAsProgram(addr, length, prot, flags, fd, offset)));
}

HOSTMM_HOOK int munmap(void* addr, size_t length) noexcept {
  const long result = Manages(Address(addr), length) ? Unmap(Address(addr), length)
                                                     : raw::Call(SYS_munmap, addr, length);
  return static_cast<int>(Finish(result));
}

HOSTMM_HOOK int mprotect(void* addr, size_t length, int prot) noexcept {
  const long result = Manages(Address(addr), length)
                          ? Protect(Address(addr), length, prot, Asked::kPlainCall)
                          : raw::Call(SYS_mprotect, addr, length, prot);
  return static_cast<int>(Finish(result));
}

HOSTMM_HOOK int madvise(void* addr, size_t length, int advice) noexcept {
  const long result = Manages(Address(addr), length)
                          ? Advise(Address(addr), length, advice, Asked::kPlainCall)
                          : raw::Call(SYS_madvise, addr, length, advice);
  return static_cast<int>(Finish(result));
}

HOSTMM_HOOK void* mremap(void* old_addr, size_t old_length, size_t new_length, int flags,
                         ...) noexcept {
  void* new_addr = nullptr;
  if ((flags & (MREMAP_FIXED | 4 /* MREMAP_DONTUNMAP */)) != 0) {
    va_list rest;
    va_start(rest, flags);
    new_addr = va_arg(rest, void*);
    va_end(rest);
  }
  const long result = RemapAsProgram(old_addr, old_length, new_length, flags, new_addr);
  return reinterpret_cast<void*>(Finish(result));
}

HOSTMM_HOOK void* shmat(int shmid, const void* addr, int flags) noexcept {
  long result = AttachSysV(shmid, Address(addr), flags);
  if (result == kPlain) result = raw::Call(SYS_shmat, shmid, addr, flags);
  return reinterpret_cast<void*>(Finish(result));
}

HOSTMM_HOOK int shmdt(const void* addr) noexcept {
  const long result =
      Manages(Address(addr), 1) ? DetachSysV(Address(addr)) : raw::Call(SYS_shmdt, addr);
  return static_cast<int>(Finish(result));
}
