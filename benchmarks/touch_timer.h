// benchmarks/touch_timer.h
//
// Times the first touch of each page of a range in the calling process, one clock pair per page.
// Both programs of the fault-floor benchmark use this very code, so that what is timed is equal.
//
// Units: nanoseconds; they include one clock_gettime (some tens of ns).
// Threads: single-threaded; nothing else may run in the process meanwhile, or its minor faults are
// counted too.
#ifndef HOSTMM_BENCHMARKS_TOUCH_TIMER_H_
#define HOSTMM_BENCHMARKS_TOUCH_TIMER_H_

#include <cstdint>
#include <string>

namespace hostmm::benchmarks {

struct TouchTimes {
  uint64_t pages;
  uint64_t faults;  // minor faults of the process meanwhile: `pages` when every touch was one
  uint64_t p50_ns;
  uint64_t p99_ns;
  uint64_t mean_ns;
};

// Makes the calling thread run on processor `cpu` only. Returns whether that worked.
bool PinToProcessor(uint64_t cpu);

// Writes to one byte of each of `pages` pages from `base` on, in ascending order. A write, because
// the kernel maps sixteen pages around a read of a file page when nobody intervenes.
TouchTimes TimeTouches(volatile uint8_t* base, uint64_t pages);

// As one line of JSON with the step "timed".
std::string ToJson(const TouchTimes& times);

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_TOUCH_TIMER_H_
