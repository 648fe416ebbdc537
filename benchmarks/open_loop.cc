#include "benchmarks/open_loop.h"

#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "benchmarks/own_counters.h"

namespace hostmm::benchmarks {

void SleepUntil(uint64_t due_ns) {
  const timespec due = {static_cast<time_t>(due_ns / 1'000'000'000),
                        static_cast<long>(due_ns % 1'000'000'000)};
  while (NowNs() < due_ns) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, nullptr);
}

void SleepExactly() { prctl(PR_SET_TIMERSLACK, 1); }

Arrivals::Arrivals(uint64_t seed, uint64_t first_ns, double mean_gap_ns)
    : random_(seed), due_ns_(static_cast<double>(first_ns)), mean_gap_ns_(mean_gap_ns) {}

uint64_t Arrivals::Next() {
  // In (0, 1]: its logarithm is finite.
  const double uniform = (static_cast<double>(random_.Next() >> 11) + 1) / 9007199254740992.0;
  due_ns_ -= mean_gap_ns_ * std::log(uniform);
  return static_cast<uint64_t>(due_ns_);
}

Latencies LatenciesOf(std::span<Log* const> logs, uint64_t from_ns, uint64_t to_ns) {
  std::vector<uint64_t> all;
  for (const Log* log : logs) {
    const uint64_t count = log->count.load(std::memory_order_acquire);
    for (const Request& each : std::span(log->requests, count)) {
      if (each.due_ns >= from_ns && each.due_ns < to_ns) all.push_back(each.latency_ns);
    }
  }
  if (all.empty()) return {};
  std::sort(all.begin(), all.end());
  const auto at = [&](double share) {
    return all[std::min(all.size() - 1,
                        static_cast<size_t>(share * static_cast<double>(all.size())))];
  };
  return {all.size(), at(0.5), at(0.99), at(0.999), all.back()};
}

std::string ToJson(const std::string& prefix, const Latencies& latencies) {
  const auto member = [&](const char* name, uint64_t value) {
    return "\"" + prefix + name + "\":" + std::to_string(value);
  };
  return member("count", latencies.count) + "," + member("p50_ns", latencies.p50_ns) + "," +
         member("p99_ns", latencies.p99_ns) + "," + member("p999_ns", latencies.p999_ns) + "," +
         member("max_ns", latencies.max_ns);
}

}  // namespace hostmm::benchmarks
