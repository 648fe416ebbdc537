// tests/testing/touch.h
//
// One access to memory in a helper thread, with a deadline, so that a missed wake fails a test
// instead of hanging it.
//
// Threads:  one per object, joined by the destructor. Declare it after the userfaultfd that serves
//           it.
// Errors:   a thread that is still asleep when the object dies is freed by closing the userfaultfd
//           (the kernel then fills the page); should that not free it either, the test binary
//           aborts with a line.

#ifndef HOSTMM_TESTS_TESTING_TOUCH_H_
#define HOSTMM_TESTS_TESTING_TOUCH_H_

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>

#include "tests/testing/deadline.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {

class Touch {
 public:
  enum class Kind { kRead, kWrite };

  // `patience`: how long the destructor waits for the access to end by itself.
  Touch(TestUffd* uffd, char* at, Kind kind, std::chrono::milliseconds patience = kWakeDeadline);
  // Any other blocking work, for example a system call that touches the memory.
  Touch(TestUffd* uffd, std::function<void()> work,
        std::chrono::milliseconds patience = kWakeDeadline);
  ~Touch();
  Touch(const Touch&) = delete;
  Touch& operator=(const Touch&) = delete;

  // True once the access is over; waits no longer than the deadline.
  bool Finished(std::chrono::milliseconds within = kWakeDeadline) const;
  bool StillWaiting() const { return !done_.load(std::memory_order_acquire); }

  // Minor faults that the access took; valid after Finished().
  int64_t minor_faults() const { return minor_faults_; }

 private:
  TestUffd* uffd_;
  std::chrono::milliseconds patience_;
  std::atomic<bool> done_ = false;
  int64_t minor_faults_ = 0;
  std::thread thread_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_TOUCH_H_
