// What the writer of an image needs of a snapshot.
//
// Units:    blocks of 2 MiB, pages of 4 KiB.
// Threads:  everything on the loop thread; `done` too.
#ifndef HOSTMM_RUNTIME_IMAGE_SNAPSHOT_SOURCE_H_
#define HOSTMM_RUNTIME_IMAGE_SNAPSHOT_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "runtime/image/image_format.h"

namespace hostmm {

class SnapshotSource {
 public:
  virtual ~SnapshotSource() = default;

  // Bytes of the region: a multiple of 4 KiB.
  virtual uint64_t length() const = 0;
  // Why the snapshot is lost; empty: it is whole. What was read before this said so is right.
  virtual std::string why_lost() const = 0;

  // The first block at or after `from` that may have content, or, of an incremental image, may
  // have changed since the base. nullopt: none.
  virtual std::optional<uint64_t> NextBlock(uint64_t from) = 0;

  // Reads a block into `buffer`, which has kImageBlock bytes and stays until `done(errno)` is
  // called; that may be at once. `pages`: set to those of an incremental image that may have
  // changed; of others it is not looked at. What counts must be right, the rest may be anything.
  virtual void ReadBlock(uint64_t block, std::byte* buffer, PageBitmap* pages,
                         std::function<void(int error)> done) = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_SNAPSHOT_SOURCE_H_
