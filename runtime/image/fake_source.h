// A snapshot for tests: plain memory, and what its image should be, made without the writer.
//
// Use:      FakeMemory memory(blocks, seed); ImageOf(memory, spec-like fields); FakeSource reads
//           it.
// Threads:  one.
#ifndef HOSTMM_RUNTIME_IMAGE_FAKE_SOURCE_H_
#define HOSTMM_RUNTIME_IMAGE_FAKE_SOURCE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/image/image_format.h"
#include "runtime/image/snapshot_source.h"

namespace hostmm {

struct FakeMemory {
  std::string bytes;                      // whole pages
  std::map<uint64_t, PageBitmap> blocks;  // full: those that may have content; incremental: what
                                          // may have changed

  // Zeros, in which nothing is listed.
  explicit FakeMemory(uint64_t length) : bytes(length, '\0') {}
  // Fills a page with noise of its own, or with zeros, and lists it.
  void Fill(uint64_t page, uint64_t seed);
  void Clear(uint64_t page);
  // 11 pages in 5 of 7 blocks, the last of which is short.
  static FakeMemory Sample();
};

inline constexpr ImageId kFakeId = {{0x1234, 0x5678}, 7};
inline constexpr ImageId kFakeBase = {{0x1234, 0x5678}, 5};

ImageHeader FakeHeader(const FakeMemory& memory, const ImageId& base = {});
// The image, as docs/image_format.md has it.
std::string ImageOf(const FakeMemory& memory, const ImageId& base = {});
// Offsets in it where a part begins: records, then the end.
std::vector<size_t> PartsOf(const std::string& image);

class FakeSource : public SnapshotSource {
 public:
  explicit FakeSource(const FakeMemory& memory) : memory_(memory) {}

  uint64_t length() const override { return memory_.bytes.size(); }
  std::string why_lost() const override { return why_lost_; }
  std::optional<uint64_t> NextBlock(uint64_t from) override;
  void ReadBlock(uint64_t block, std::byte* buffer, PageBitmap* pages,
                 std::function<void(int error)> done) override;

  // Called with each block before it is read. RETURNS an errno for it.
  std::function<int(uint64_t block)> on_read = [](uint64_t) { return 0; };
  void Lose(const std::string& why) { why_lost_ = why; }

 private:
  const FakeMemory& memory_;
  std::string why_lost_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_FAKE_SOURCE_H_
