// TestSegment: memory for one segment, formatted, for tests and benchmarks.
//
// Memory:  zeroed by the C library, so that a large segment costs only the pages that are touched.
// Units:   none.
// Threads: as HostTables.
// Errors:  out of memory ends the test.

#ifndef HOSTMM_VMM_TEST_SEGMENT_H_
#define HOSTMM_VMM_TEST_SEGMENT_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "vmm/host_tables.h"

namespace hostmm {

class TestSegment {
 public:
  explicit TestSegment(const SegmentConfig& config = {})
      : size_(HostTables::SegmentBytes(config)),
        memory_(Allocate(size_ + kPageSize)),
        tables(HostTables::Format(bytes(), config)) {}

  std::span<std::byte> bytes() {
    void* start = memory_.get();
    size_t room = size_ + kPageSize;
    return {static_cast<std::byte*>(std::align(kPageSize, size_, start, room)), size_};
  }
  TableReader reader() const { return tables.reader(); }

  // The common beginning of a test. Both end the test if they fail.
  GuestId AddGuest() {
    GuestId id;
    if (tables.AddGuest(1, 0, &id) != TableStatus::kOk) std::abort();
    return id;
  }
  MmId AddMm(PageCount length, FrameKind frames = FrameKind::kHuge) {
    MmId id;
    if (tables.CreateMm({.length = length, .frames = frames}, &id) != TableStatus::kOk) {
      std::abort();
    }
    return id;
  }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  static std::byte* Allocate(size_t size) {
    void* memory = std::calloc(size, 1);
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<std::byte*>(memory);
  }

  size_t size_;
  std::unique_ptr<std::byte, Free> memory_;

 public:
  HostTables tables;
};

// A geometry whose spans are small, so that small files have several of them: 4 blocks (8 MiB).
inline constexpr Geometry kSmallSpans{
    .page_shift = 12, .bits = {9, 2, 4, 4}, .huge_leaf_level = 1, .share_level = 0, .levels = 4};
// The same with segments, as kPowerPcSegments has them.
inline constexpr Geometry kSmallSegments{.page_shift = 12,
                                         .bits = {9, 2, 4, 4},
                                         .huge_leaf_level = Geometry::kNoHugeLeaf,
                                         .share_level = 1,
                                         .levels = 4};

}  // namespace hostmm

#endif  // HOSTMM_VMM_TEST_SEGMENT_H_
