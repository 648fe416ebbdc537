// What a measured program reads of itself, before and after.
//
// Units:   nanoseconds of CLOCK_MONOTONIC; minor faults of the whole process since it began.
// Threads: any.
#ifndef HOSTMM_BENCHMARKS_OWN_COUNTERS_H_
#define HOSTMM_BENCHMARKS_OWN_COUNTERS_H_

#include <sys/resource.h>
#include <time.h>

#include <cstdint>

namespace hostmm::benchmarks {

inline uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

inline uint64_t MinorFaults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_minflt);
}

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_OWN_COUNTERS_H_
