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
#include <linux/magic.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/statfs.h>

#include "runtime/cli/version.h"
#include "runtime/guest/client.h"
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

enum class Candidate { kNo, kAnonymous, kShmemFile };

Candidate Classify(size_t length, int flags, int fd, off_t offset) {
  const int type = flags & MAP_TYPE;
  // A length that overflows when rounded up to pages, or an offset inside a page, is the kernel's
  // to refuse, with its own errno.
  constexpr uint64_t kPageMask = 4095;
  if (length < protocol::kMinRegionBytes || length > ~kPageMask) return Candidate::kNo;
  if ((static_cast<uint64_t>(offset) & kPageMask) != 0) return Candidate::kNo;
  if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE) return Candidate::kNo;
  // Who asks for hugetlb, the low 4 GiB or a growing stack has reasons that we would spoil.
  if ((flags & (MAP_HUGETLB | MAP_32BIT | MAP_GROWSDOWN)) != 0) return Candidate::kNo;
  if ((flags & MAP_ANONYMOUS) != 0) {
    // MAP_SHARED_VALIDATE of no file is an error, and the kernel's to report.
    return type == MAP_SHARED ? Candidate::kAnonymous : Candidate::kNo;
  }
  struct statfs info = {};
  const bool shmem = raw::Call(SYS_fstatfs, fd, &info) == 0 && info.f_type == TMPFS_MAGIC;
  return shmem ? Candidate::kShmemFile : Candidate::kNo;
}

long DoMmap(void* addr, size_t length, int prot, int flags, int fd, off_t offset) {
  long result = kPlain;
  switch (Classify(length, flags, fd, offset)) {
    case Candidate::kAnonymous:
      result = MapAnonymous(Address(addr), length, prot, flags);
      break;
    case Candidate::kShmemFile:
      result = MapShmemFile(Address(addr), length, prot, flags, fd, static_cast<uint64_t>(offset));
      break;
    case Candidate::kNo:
      break;
  }
  if (result != kPlain) return result;
  if ((flags & MAP_FIXED) != 0 && Manages(Address(addr), length)) {
    return MapOver(Address(addr), length, prot, flags, fd, static_cast<uint64_t>(offset));
  }
  return raw::Call(SYS_mmap, addr, length, prot, flags, fd, offset);
}

}  // namespace
}  // namespace hostmm::guest

using namespace hostmm;         // NOLINT: only hooks below
using namespace hostmm::guest;  // NOLINT

HOSTMM_HOOK void* mmap(void* addr, size_t length, int prot, int flags, int fd,
                       off_t offset) noexcept {
  return reinterpret_cast<void*>(Finish(DoMmap(addr, length, prot, flags, fd, offset)));
}

HOSTMM_HOOK void* mmap64(void* addr, size_t length, int prot, int flags, int fd,
                         __off64_t offset) noexcept {
  return reinterpret_cast<void*>(Finish(DoMmap(addr, length, prot, flags, fd, offset)));
}

HOSTMM_HOOK int munmap(void* addr, size_t length) noexcept {
  const long result = Manages(Address(addr), length) ? Unmap(Address(addr), length)
                                                     : raw::Call(SYS_munmap, addr, length);
  return static_cast<int>(Finish(result));
}

HOSTMM_HOOK int mprotect(void* addr, size_t length, int prot) noexcept {
  const long result = Manages(Address(addr), length) ? Protect(Address(addr), length, prot)
                                                     : raw::Call(SYS_mprotect, addr, length, prot);
  return static_cast<int>(Finish(result));
}

HOSTMM_HOOK int madvise(void* addr, size_t length, int advice) noexcept {
  const long result = Manages(Address(addr), length) ? Advise(Address(addr), length, advice)
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
  const bool ours = Manages(Address(old_addr), old_length) ||
                    ((flags & MREMAP_FIXED) != 0 && Manages(Address(new_addr), new_length));
  const long result =
      ours ? Remap(Address(old_addr), old_length, new_length, flags, Address(new_addr))
           : raw::Call(SYS_mremap, old_addr, old_length, new_length, flags, new_addr);
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
