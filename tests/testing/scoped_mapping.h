// tests/testing/scoped_mapping.h
//
// A shared mapping of a file at an aligned address, as guests and pagers of this project make them.
//
// Units:    bytes.
// Owner:    the address range; unmapped on destruction. A child after fork holds its own copy.
// Threads:  the object is not synchronised; the memory behind it is what the tests are about.
// Errors:   ok() is false and errno tells why, after a failed mmap.

#ifndef HOSTMM_TESTS_TESTING_SCOPED_MAPPING_H_
#define HOSTMM_TESTS_TESTING_SCOPED_MAPPING_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace hostmm::test {

inline constexpr size_t kPage = 4096;
inline constexpr size_t kBlock = size_t{2} << 20;
inline constexpr size_t kGiB = size_t{1} << 30;

// Linux 6.1; newer than the C library headers of Debian 12.
inline constexpr int kMadvCollapse = 25;

// Finds `bytes` of free address space that start at `skew` bytes past a multiple of `alignment`,
// and keeps them reserved (PROT_NONE) until something is mapped over them. Null if there is none.
inline char* ReserveAligned(size_t bytes, size_t alignment, size_t skew = 0) {
  const size_t total = bytes + alignment + skew;
  void* raw = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const uintptr_t start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = (start + alignment - 1) / alignment * alignment + skew;
  if (aligned > start) munmap(raw, aligned - start);
  const uintptr_t end = start + total;
  if (end > aligned + bytes)
    munmap(reinterpret_cast<void*>(aligned + bytes), end - aligned - bytes);
  return reinterpret_cast<char*>(aligned);
}

class ScopedMapping {
 public:
  ScopedMapping() = default;
  ScopedMapping(ScopedMapping&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  ScopedMapping& operator=(ScopedMapping&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~ScopedMapping() {
    if (data_ != nullptr) munmap(data_, size_);
  }

  // Maps `fd` from offset 0, MAP_SHARED, at a multiple of `alignment` plus `skew`.
  static ScopedMapping SharedFile(int fd, size_t bytes, int prot = PROT_READ | PROT_WRITE,
                                  size_t alignment = kBlock, size_t skew = 0) {
    ScopedMapping result;
    char* place = ReserveAligned(bytes, alignment, skew);
    if (place == nullptr) return result;
    void* mapped = mmap(place, bytes, prot, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd, 0);
    if (mapped == MAP_FAILED) {
      munmap(place, bytes);
      return result;
    }
    return Adopt(place, bytes);
  }

  // Takes over a range that the caller mapped.
  static ScopedMapping Adopt(char* data, size_t bytes) {
    ScopedMapping result;
    result.data_ = data;
    result.size_ = bytes;
    return result;
  }

  // Gives the range up without unmapping it (it was moved or detached by other means).
  char* Release() {
    size_ = 0;
    return std::exchange(data_, nullptr);
  }

  bool ok() const { return data_ != nullptr; }
  char* data() const { return data_; }
  size_t size() const { return size_; }
  char* block(size_t index) const { return data_ + index * kBlock; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// Single accesses that the compiler may neither drop nor widen.
inline char ReadByte(const char* at) { return *static_cast<const volatile char*>(at); }
inline void WriteByte(char* at, char value) { *static_cast<volatile char*>(at) = value; }

// One read per `step` bytes over the range.
inline void ReadEvery(const char* at, size_t bytes, size_t step) {
  for (size_t offset = 0; offset < bytes; offset += step) ReadByte(at + offset);
}

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_SCOPED_MAPPING_H_
