#include "runtime/guest/program_calls.h"

#include <linux/magic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include "runtime/guest/client.h"
#include "runtime/guest/opt_in.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/hostmm_c.h"
#include "runtime/protocol.h"
#include "runtime/region_flags.h"

namespace hostmm::guest {
namespace {

uint64_t Address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }

enum class Candidate { kNo, kOptIn, kAnonymous, kCow, kShmemFile };

constexpr uint64_t kPageMask = 4095;

// Who asks for hugetlb, the low 4 GiB or a growing stack has reasons that we would spoil.
constexpr int kReasons = MAP_HUGETLB | MAP_32BIT | MAP_GROWSDOWN;

// Copy-on-write memory is plain private memory where it is not worth it, which means the same.
Candidate ClassifyPrivate(size_t length, int flags) {
  const int wanted = MAP_ANONYMOUS | MAP_PRIVATE_COW;
  if ((flags & wanted) != wanted || (flags & kReasons) != 0) return Candidate::kNo;
  return length >= CowMinBytes() && length <= ~kPageMask ? Candidate::kCow : Candidate::kNo;
}

Candidate Classify(size_t length, int flags, int fd, off_t offset) {
  if (!IsOn()) return Candidate::kNo;
  if (ShareOf(flags) != 0) return Candidate::kOptIn;
  const int type = flags & MAP_TYPE;
  if (type == MAP_PRIVATE) return ClassifyPrivate(length, flags);
  if (!IsTransparent()) return Candidate::kNo;
  // A length that overflows when rounded up to pages, or an offset inside a page, is the kernel's
  // to refuse, with its own errno.
  if (length < protocol::kMinRegionBytes || length > ~kPageMask) return Candidate::kNo;
  if ((static_cast<uint64_t>(offset) & kPageMask) != 0) return Candidate::kNo;
  if (type != MAP_SHARED && type != MAP_SHARED_VALIDATE) return Candidate::kNo;
  if ((flags & kReasons) != 0) return Candidate::kNo;
  if ((flags & MAP_ANONYMOUS) != 0) {
    // MAP_SHARED_VALIDATE of no file is an error, and the kernel's to report.
    return type == MAP_SHARED ? Candidate::kAnonymous : Candidate::kNo;
  }
  struct statfs info = {};
  const bool shmem = raw::Call(SYS_fstatfs, fd, &info) == 0 && info.f_type == TMPFS_MAGIC;
  return shmem ? Candidate::kShmemFile : Candidate::kNo;
}

}  // namespace

long MapAsProgram(void* addr, size_t length, int prot, int flags, int fd, off_t offset) {
  long result = kPlain;
  int error = 0;  // of no use: the plain call is made
  switch (Classify(length, flags, fd, offset)) {
    case Candidate::kOptIn:
      result = MapOptIn(Address(addr), length, prot, flags, fd, static_cast<uint64_t>(offset),
                        Asked::kPlainCall);
      break;
    case Candidate::kAnonymous:
      result = MapAnonymous(Address(addr), length, prot, flags, 0, &error);
      break;
    case Candidate::kCow:
      result = MapAnonymous(Address(addr), length, prot, flags, static_cast<uint32_t>(kRegionCow),
                            &error);
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

long RemapAsProgram(void* old_addr, size_t old_length, size_t new_length, int flags,
                    void* new_addr) {
  const bool ours = Manages(Address(old_addr), old_length) ||
                    ((flags & MREMAP_FIXED) != 0 && Manages(Address(new_addr), new_length));
  return ours ? Remap(Address(old_addr), old_length, new_length, flags, Address(new_addr))
              : raw::Call(SYS_mremap, old_addr, old_length, new_length, flags, new_addr);
}

}  // namespace hostmm::guest
