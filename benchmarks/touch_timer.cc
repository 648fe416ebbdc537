#include "benchmarks/touch_timer.h"

#include <sched.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "benchmarks/own_counters.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;

}  // namespace

bool PinToProcessor(uint64_t cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  return sched_setaffinity(0, sizeof(set), &set) == 0;
}

TouchTimes TimeTouches(volatile uint8_t* base, uint64_t pages) {
  // Filled beforehand: a fault of the vector's own pages must not be among those counted.
  std::vector<uint64_t> ns(pages, 1);
  const uint64_t faults_before = MinorFaults();
  for (uint64_t i = 0; i < pages; ++i) {
    const uint64_t start = NowNs();
    base[i * kPageBytes] = 1;
    ns[i] = NowNs() - start;
  }
  TouchTimes times = {};
  times.pages = pages;
  times.faults = MinorFaults() - faults_before;
  std::sort(ns.begin(), ns.end());
  times.p50_ns = ns[pages / 2];
  times.p99_ns = ns[pages * 99 / 100];
  times.mean_ns = std::accumulate(ns.begin(), ns.end(), uint64_t{0}) / pages;
  return times;
}

std::string ToJson(const TouchTimes& times) {
  return "{\"step\":\"timed\",\"pages\":" + std::to_string(times.pages) +
         ",\"faults\":" + std::to_string(times.faults) +
         ",\"p50_ns\":" + std::to_string(times.p50_ns) +
         ",\"p99_ns\":" + std::to_string(times.p99_ns) +
         ",\"mean_ns\":" + std::to_string(times.mean_ns) + "}";
}

}  // namespace hostmm::benchmarks
