// Flags of a region as they travel in protocol::Message (kFlags): the same bits as RegionFlags of
// vmm/, repeated as plain constants because the guest side links nothing of vmm/. session.cc
// asserts that they agree.
#ifndef HOSTMM_RUNTIME_REGION_FLAGS_H_
#define HOSTMM_RUNTIME_REGION_FLAGS_H_

#include <cstdint>

namespace hostmm {

inline constexpr uint64_t kRegionDontFork = 1;
inline constexpr uint64_t kRegionHintHuge = 2;
inline constexpr uint64_t kRegionHintSmall = 4;

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_REGION_FLAGS_H_
