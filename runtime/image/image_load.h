// Puts an image into memory.
//
// Checked:  a record's pages reach the memory after its hash was found right. That the image is
//           whole shows only at its end: after EILSEQ the memory has what was read until then.
// Zeros:    what a full image leaves out is given back to the system where that can be done
//           (MADV_REMOVE, in units of 2 MiB), else written where it is not zero already; so
//           loading a sparse image makes no memory of its holes. An incremental image leaves alone
//           what it leaves out.
// Used by:  the guest library: as image_read.h.
#ifndef HOSTMM_RUNTIME_IMAGE_IMAGE_LOAD_H_
#define HOSTMM_RUNTIME_IMAGE_IMAGE_LOAD_H_

#include <cstddef>

namespace hostmm {

// madvise(addr, length, MADV_REMOVE), or what does the same. RETURNS 0 if it was done.
using RemoveMemory = int (*)(void* addr, size_t length);
int RemoveBySystemCall(void* addr, size_t length);

// Reads an image into [addr, addr + length), which is writable. What is behind the image's own
// length stays. RETURNS 0, or an errno, and then one line in `why`:
// EINVAL: no image. EILSEQ: damaged, or not whole. EFBIG: it is longer than length. ENOMEM: no
// memory to check a record in. Else of read.
int LoadImage(int fd, void* addr, size_t length, char* why, size_t why_bytes,
              RemoveMemory remove = RemoveBySystemCall);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_IMAGE_LOAD_H_
