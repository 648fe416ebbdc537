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
// Opt-in: the protection of what is mapped is that of all regions of the file with this flag.
inline constexpr uint64_t kRegionSharedPt = 16;
// With kRegionSharedPt: plain mprotect is refused with EPERM.
inline constexpr uint64_t kRegionDedicated = 32;
// The descriptor that it was mapped from cannot be written: never writable, and its guest cannot
// make it writable for others.
inline constexpr uint64_t kRegionNeverWrite = 64;
// MAP_PRIVATE, read-only: a write by a debugger stays this process's own.
inline constexpr uint64_t kRegionPrivate = 128;
// Private memory whose fork is a snapshot: the child has a private-writable view of it.
inline constexpr uint64_t kRegionCow = 512;
// A view of a snapshot; with kRegionViewWritable what is written stays this process's own.
inline constexpr uint64_t kRegionView = 1024;
inline constexpr uint64_t kRegionViewWritable = 2048;
// A view that shares no frame with the live region any more: what is touched is copied.
inline constexpr uint64_t kRegionCopyOnly = 4096;

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_REGION_FLAGS_H_
