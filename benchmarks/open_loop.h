// benchmarks/open_loop.h
//
// A load whose requests come when they come, not when the one before is done: each has a time at
// which it is due, and its latency counts from then. So a stall counts for every request that it
// delays, as it does for those who sent them.
//
// Arrivals: exponential gaps from a seeded generator; the same for every side of a comparison.
// Units:    nanoseconds of CLOCK_MONOTONIC.
// Memory:   a Log may be in memory that processes share; one thread fills it, others read it when
//           it is done.
#ifndef HOSTMM_BENCHMARKS_OPEN_LOOP_H_
#define HOSTMM_BENCHMARKS_OPEN_LOOP_H_

#include <atomic>
#include <cstdint>
#include <span>
#include <string>

#include "benchmarks/store_records.h"

namespace hostmm::benchmarks {

struct Request {
  uint64_t due_ns;
  uint64_t latency_ns;
};

struct Log {
  static constexpr uint64_t kRoom = 250'000;  // with which it is below 8 MiB, hostmm's minimum
  std::atomic<uint64_t> count;
  Request requests[kRoom];
};

// Waits until `due_ns`; returns at once if that is past.
void SleepUntil(uint64_t due_ns);

// Lets the calling thread sleep as exactly as the kernel can.
void SleepExactly();

class Arrivals {
 public:
  Arrivals(uint64_t seed, uint64_t first_ns, double mean_gap_ns);
  uint64_t Next();

 private:
  Random random_;
  double due_ns_;
  double mean_gap_ns_;
};

struct Latencies {
  uint64_t count;
  uint64_t p50_ns, p99_ns, p999_ns, max_ns;
};

// Of the requests that were due in [from_ns, to_ns).
Latencies LatenciesOf(std::span<Log* const> logs, uint64_t from_ns, uint64_t to_ns);

// Members of a JSON object, each name with `prefix`.
std::string ToJson(const std::string& prefix, const Latencies& latencies);

}  // namespace hostmm::benchmarks

#endif  // HOSTMM_BENCHMARKS_OPEN_LOOP_H_
