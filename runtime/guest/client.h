// The guest side of hostmm in one process: what the hooks of the preload library call.
//
// Life:     cold (nothing done yet) -> attached (a channel to the pager) -> off (the pager is gone
//           or refused: every call is the plain system call from now on). Nothing is connected,
//           started or allocated before the first mapping that hostmm manages.
// Errors:   fail open. A function that cannot do its work with the pager says so with kPlain or
//           does nothing; the caller makes the original system call and the program goes on. One
//           line on standard error says why, once.
// Threads:  any. One lock orders everything that changes state; Manages() needs none.
// fork:     the child is attached before application code runs in it (pthread_atfork). vfork,
//           posix_spawn and exec need nothing. A raw clone(2) or _Fork child is not attached: its
//           faults are the kernel's, its data is right.
#ifndef HOSTMM_RUNTIME_GUEST_CLIENT_H_
#define HOSTMM_RUNTIME_GUEST_CLIENT_H_

#include <cstdint>

namespace hostmm::guest {

// The result of a managed mmap or mremap: an address, or -errno, as the kernel would return it; or
// kPlain: not managed, make the plain call.
inline constexpr long kPlain = 0;

// False: no pager, and none is to be asked: every call is the plain one.
bool IsOn();
// Whether memory that did not opt in is managed, too (under `hostmm run`).
bool IsTransparent();
// MAP_PRIVATE_COW memory that is shorter is plain.
uint64_t CowMinBytes();

// Reads HOSTMM_SOCKET, HOSTMM_ONLY and HOSTMM_QUIET, once, before the program can change its
// environment.
void Initialize();

// The process has another user, group or capabilities now: libc changes only the threads that it
// knows, so the agent is replaced by one that has what the caller has. A guest whose agent cannot
// be ended goes off.
void CredentialsChanged();

// False means: surely nothing managed in [va, va + bytes). Lock-free and cheap.
bool Manages(uint64_t va, uint64_t bytes);

// mmap of MAP_SHARED|MAP_ANONYMOUS memory, at least protocol::kMinRegionBytes long.
// `share`: kRegion* of region_flags.h, 0: not opt-in; opt-in memory may be shorter; kRegionCow: it
// is MAP_PRIVATE_COW memory. *error: with
// kPlain, why hostmm could not (an errno), or 0: the plain call has the answer.
long MapAnonymous(uint64_t addr, uint64_t bytes, int prot, int flags, uint32_t share, int* error);

// mmap MAP_SHARED of a file that the program made (memfd, /dev/shm): mapped by the kernel as asked,
// placed so that it can be mapped huge, and made known to the pager, which has it collapsed when
// full.
long MapShmemFile(uint64_t addr, uint64_t bytes, int prot, int flags, int fd, uint64_t offset);

// shmat of a segment of at least protocol::kMinRegionBytes. RETURNS as shmat, or kPlain.
long AttachSysV(int shmid, uint64_t addr, int flags);
// shmdt of something managed. RETURNS as shmdt.
long DetachSysV(uint64_t addr);

// The plain call over a range in which Manages() was true, made under the client's lock, and then
// told to the pager. RETURN what the system call returned.
long MapOver(uint64_t addr, uint64_t bytes, int prot, int flags, int fd, uint64_t offset);
long Unmap(uint64_t addr, uint64_t bytes);
// madvise of memory that is not opt-in.
long AdvisePlain(uint64_t addr, uint64_t bytes, int advice);
long Remap(uint64_t old_addr, uint64_t old_bytes, uint64_t new_bytes, int flags, uint64_t new_addr);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_CLIENT_H_
