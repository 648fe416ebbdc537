// What the C functions have in common: libc's form of a result, and one line of why.
//
// Threads:  threads of the program, never the agent: the line is in memory that it has not.
#ifndef HOSTMM_RUNTIME_GUEST_API_CALL_H_
#define HOSTMM_RUNTIME_GUEST_API_CALL_H_

#include <stdint.h>

#define HOSTMM_API extern "C" __attribute__((visibility("default")))

namespace hostmm::guest {

// Sets the line of hostmm_error(): the call, and the name of the errno.
__attribute__((format(printf, 2, 3))) void Explain(int error, const char* format, ...);
const char* LastError();

// For functions that need a pager and come without an open. RETURNS whether there is one; else it
// has explained ENOTCONN. What was open and has lost its pager stays without until the program says
// otherwise: another pager would not have the files that it knows.
bool EnsureOpen();

// A kernel's result in libc's form.
long Finish(long result);
inline uint64_t Address(const void* pointer) { return reinterpret_cast<uint64_t>(pointer); }
inline void* Pointer(long result) { return reinterpret_cast<void*>(Finish(result)); }

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_API_CALL_H_
