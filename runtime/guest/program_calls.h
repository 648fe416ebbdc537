// mmap and mremap as a program calls them: managed where hostmm manages such memory, else the
// system call. What the hooks do, and the library's functions for memory that does not opt in.
//
// RETURN what the system call would: an address or -errno. Threads: any.
#ifndef HOSTMM_RUNTIME_GUEST_PROGRAM_CALLS_H_
#define HOSTMM_RUNTIME_GUEST_PROGRAM_CALLS_H_

#include <stddef.h>
#include <sys/types.h>

namespace hostmm::guest {

long MapAsProgram(void* addr, size_t length, int prot, int flags, int fd, off_t offset);
long RemapAsProgram(void* old_addr, size_t old_length, size_t new_length, int flags,
                    void* new_addr);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_PROGRAM_CALLS_H_
