// The ioctls of a userfaultfd, with results that say what to do instead of an errno.
//
// A userfaultfd acts on the address space that created it, from any process that holds the
// descriptor: all of these work from the pager on a guest. Addresses are the guest's, bytes,
// page-aligned (2 MiB-aligned on hugetlb).
//
// Threads:  any; the kernel locks. No allocation, no log.
#ifndef HOSTMM_RUNTIME_USERFAULTFD_H_
#define HOSTMM_RUNTIME_USERFAULTFD_H_

#include <cstdint>

#include "runtime/unique_fd.h"

namespace hostmm {

enum class UffdResult {
  kDone,
  kAlreadyMapped,  // EEXIST: somebody else was faster. Wake.
  kPartial,        // some pages were done
  kRetry,  // EAGAIN: the address space is changing (fork, mremap). The fault will come again after
           // a wake.
  kGuestGone,  // ESRCH or ENOENT: the process, or its mapping, has gone
  kBusy,       // EBUSY: the range belongs to another userfaultfd
  kRefused,    // anything else
};

// `modes` is of UFFDIO_REGISTER_MODE_*. Errors: kBusy, kGuestGone, kRefused (EINVAL: not shmem,
// hugetlb or anonymous).
UffdResult UffdRegister(int uffd, uint64_t va, uint64_t bytes, uint64_t modes);
UffdResult UffdUnregister(int uffd, uint64_t va, uint64_t bytes);
// Wakes the threads that wait for a fault in the range; they try again.
UffdResult UffdWake(int uffd, uint64_t va, uint64_t bytes);
// Maps pages that the file has already, and wakes. kAlreadyMapped does not wake. kYes: so that the
// first write is an event; the range is to be registered with MODE_WP.
enum class WriteProtected : uint8_t { kNo, kYes };
UffdResult UffdContinue(int uffd, uint64_t va, uint64_t bytes,
                        WriteProtected protect = WriteProtected::kNo);
// The same for a window around what is waited for: if the kernel has the window as several
// mappings, of which it maps nothing then, the first `unit` bytes alone.
UffdResult UffdContinueWindow(int uffd, uint64_t va, uint64_t bytes, uint64_t unit,
                              WriteProtected protect);
// Write-protects what is mapped in the range, and what will be, or lifts that and wakes. Errors:
// kGuestGone, kRefused (not registered with MODE_WP).
UffdResult UffdWriteProtect(int uffd, uint64_t va, uint64_t bytes, WriteProtected protect);
// Maps an anonymous copy of `from`, or of zeros, in a private mapping, and wakes. kAlreadyMapped
// does not wake.
UffdResult UffdCopy(int uffd, uint64_t va, const void* from, uint64_t bytes);
// Not on hugetlb.
UffdResult UffdZero(int uffd, uint64_t va, uint64_t bytes);
// Whether the address space still exists. Write-protects the range, if it is registered with
// MODE_WP.
enum class Alive : uint8_t { kNo, kYes };
Alive UffdAddressSpace(int uffd, uint64_t va, uint64_t bytes);

// How guests of this pager can get a userfaultfd that sees faults in system calls too.
struct UffdAccess {
  enum class Source { kDevice, kSyscall, kNone };
  Source source = Source::kNone;
  UniqueFd device;  // kDevice: /dev/userfaultfd, to be handed to guests, who then need no privilege
  uint64_t features = 0;     // what UFFDIO_API offers
  const char* why_not = "";  // kNone: the reason and the remedy, one line
};
UffdAccess ProbeUserfaultfd();

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_USERFAULTFD_H_
