// An owned memory mapping of this process: unmapped when the owner goes. Not thread-safe; move it,
// do not share it.
#ifndef HOSTMM_RUNTIME_MAPPING_H_
#define HOSTMM_RUNTIME_MAPPING_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace hostmm {

class Mapping {
 public:
  Mapping() = default;
  // Takes over [base, base + bytes), which mmap returned. A MAP_FAILED base makes an empty Mapping.
  Mapping(void* base, size_t bytes)
      : base_(base == MAP_FAILED ? nullptr : static_cast<std::byte*>(base)),
        bytes_(base == MAP_FAILED ? 0 : bytes) {}
  Mapping(Mapping&& other) noexcept
      : base_(std::exchange(other.base_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    if (this != &other) {
      Release();
      base_ = std::exchange(other.base_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
    }
    return *this;
  }
  ~Mapping() { Release(); }

  bool ok() const { return base_ != nullptr; }
  std::byte* data() const { return base_; }
  size_t size() const { return bytes_; }
  std::span<std::byte> bytes() const { return {base_, bytes_}; }

 private:
  void Release() {
    if (base_ != nullptr) munmap(base_, bytes_);
  }

  std::byte* base_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_MAPPING_H_
