// benchmarks/hostmm_calls.h
//
// The library's functions, found as a program does that also runs without it: the measured programs
// are not linked with hostmm, and are started under `hostmm run`.
//
// Units: bytes. Threads: any. Errors: end the program, with hostmm_error()'s line where there is
// one; without hostmm, Hostmm() does.
#ifndef HOSTMM_BENCHMARKS_HOSTMM_CALLS_H_
#define HOSTMM_BENCHMARKS_HOSTMM_CALLS_H_

#include <cstdint>
#include <string_view>

#include "runtime/hostmm_c.h"

namespace hostmm::benchmarks {

struct HostmmCalls {
  decltype(&hostmm_is_shared) is_shared;
  decltype(&hostmm_shm_open) shm_open;
  decltype(&hostmm_snapshot) snapshot;
  decltype(&hostmm_snapshot_info) snapshot_info;
  decltype(&hostmm_snapshot_map) snapshot_map;
  decltype(&hostmm_snapshot_export) snapshot_export;
  decltype(&hostmm_image_load) image_load;
  decltype(&hostmm_error) error;
};

const HostmmCalls& Hostmm();

// Whether the program runs under hostmm.
bool HasHostmm();

// Prints "PROGRAM: what: " and why the last hostmm_ function failed; ends with status 1.
[[noreturn]] void FailHostmm(std::string_view what);

// Makes a named region and maps all of it, readable and writable, with MAP_SHARED_PT.
uint8_t* MapNewRegion(const char* name, uint64_t bytes);

// A snapshot of the region at `region`, to be closed.
int TakeSnapshot(const volatile uint8_t* region);

// The bytes that are copied at once for the snapshot.
uint64_t UnitOf(int snapshot);

// [offset, offset + bytes) of the snapshot, to read.
const uint8_t* MapView(int snapshot, uint64_t offset, uint64_t bytes);

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_HOSTMM_CALLS_H_
