// Where a region goes in the guest's address space.
//
// Wanted: va = file offset (mod 2 MiB), or the kernel cannot map 2 MiB frames with one entry;
// modulo 1 GiB for what is at least that long, or it cannot share the tables of hugetlb frames;
// near existing mappings, so that no upper-level table is needed for the region alone. The kernel's
// own choice, top down from the last mapping, gives the last.
//
// Errors:   returns 0 when the kernel has no room. Thread-safe.
#ifndef HOSTMM_RUNTIME_GUEST_PLACEMENT_H_
#define HOSTMM_RUNTIME_GUEST_PLACEMENT_H_

#include <cstdint>

namespace hostmm::guest {

inline constexpr uint64_t kPage = 4096;
inline constexpr uint64_t kBlock = uint64_t{2} << 20;
inline constexpr uint64_t kGigabyte = uint64_t{1} << 30;

inline uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// Reserves (PROT_NONE) `bytes` at an address that equals `offset` modulo `alignment`; to be mapped
// over with MAP_FIXED.
uint64_t Reserve(uint64_t bytes, uint64_t alignment, uint64_t offset);

// Reserves exactly [va, va + bytes) if nothing is mapped there.
enum class Reservation { kDone, kTaken, kFailed };
Reservation ReserveAt(uint64_t va, uint64_t bytes);

// Gives a reservation back.
void Unreserve(uint64_t va, uint64_t bytes);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_PLACEMENT_H_
