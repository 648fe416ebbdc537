// tests/testing/deadline.h
//
// A deadline for conditions: tests poll what they wait for and never sleep for a guessed time.
//
// Units:    std::chrono, steady clock. Threads: any; a value.
// Errors:   PollUntil returns false when the time is over.

#ifndef HOSTMM_TESTS_TESTING_DEADLINE_H_
#define HOSTMM_TESTS_TESTING_DEADLINE_H_

#include <algorithm>
#include <chrono>
#include <thread>

namespace hostmm::test {

class Deadline {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Deadline(Clock::duration from_now) : end_(Clock::now() + from_now) {}

  bool expired() const { return Clock::now() >= end_; }

  // For poll(2): never negative, rounded up so that the last wait does not become a busy loop.
  int remaining_ms() const {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end_ - Clock::now()).count();
    return static_cast<int>(std::max<std::chrono::milliseconds::rep>(left, 0));
  }

 private:
  Clock::time_point end_;
};

// A wake that is missing shows after this. It takes microseconds; but a thread may be kept from a
// processor for a second now and then. Not for a wake that is to be missing.
inline constexpr std::chrono::milliseconds kWakeDeadline(10000);

// For steps that must come but may wait for a loaded machine (fork, exit of a child): several of
// the above.
inline constexpr std::chrono::milliseconds kStepDeadline(30000);

// For events that must NOT come: long enough for a queued event to show, no longer.
inline constexpr std::chrono::milliseconds kQuietTime(50);

template <class Condition>
bool PollUntil(const Deadline& deadline, Condition condition) {
  while (!condition()) {
    if (deadline.expired()) return condition();
    // Arbitrary: short against every deadline above, long against the cost of asking.
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_DEADLINE_H_
