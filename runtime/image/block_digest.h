// From a block of memory to the record of an image: finds the pages of zeros, moves the others
// together, and hashes them.
//
// Threads:  any: it has nothing but its arguments. Some 200 us for a full block, so a worker's.
#ifndef HOSTMM_RUNTIME_IMAGE_BLOCK_DIGEST_H_
#define HOSTMM_RUNTIME_IMAGE_BLOCK_DIGEST_H_

#include <cstddef>

#include "runtime/image/image_format.h"

namespace hostmm {

enum class ImageKind { kFull, kIncremental };

// `pages`: those that count. The data pages of `block` are at its beginning then, and `record` is
// complete but for its own hash. A record without pages need not be written.
void DigestBlock(ImageKind kind, uint64_t index, const PageBitmap& pages, std::byte* block,
                 ImageRecord* record);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_BLOCK_DIGEST_H_
