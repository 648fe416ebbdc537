// tests/races/race_time.h
//
// How long a case goes on: HOSTMM_RACE_SECONDS, by default as long as a test run can spare for
// each.
//
// Units:    seconds. Threads: any; a value. Errors: none.
#ifndef HOSTMM_TESTS_RACES_RACE_TIME_H_
#define HOSTMM_TESTS_RACES_RACE_TIME_H_

#include <chrono>
#include <cstdint>
#include <cstdlib>

namespace hostmm::test {

inline uint32_t RaceSeconds() {
  const char* seconds = getenv("HOSTMM_RACE_SECONDS");
  return seconds == nullptr ? 2 : static_cast<uint32_t>(strtoul(seconds, nullptr, 10));
}

class RaceTime {
 public:
  bool over() const { return std::chrono::steady_clock::now() > end_; }

 private:
  const std::chrono::steady_clock::time_point end_ =
      std::chrono::steady_clock::now() + std::chrono::seconds(RaceSeconds());
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_RACES_RACE_TIME_H_
