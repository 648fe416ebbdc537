// tests/pager/pager_child.h
//
// A real pager in a forked child, and what can be seen of it from outside: its descriptors, and its
// segment through kInspect.
//
// Owner:    the destructor ends the pager (SIGTERM, after a deadline SIGKILL) and removes its
// socket.
// Threads:  make it before any thread. Processes: it inherits the descriptors of the test, so make
// it before the guests.
// Errors:   ok() is false and error() says why; waits have deadlines.

#ifndef HOSTMM_TESTS_PAGER_PAGER_CHILD_H_
#define HOSTMM_TESTS_PAGER_PAGER_CHILD_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cli/pager_options.h"
#include "tests/testing/child.h"

namespace hostmm::test {

// What the pager's segment holds at one moment.
struct Census {
  uint32_t guests = 0;
  uint32_t mms = 0;
  uint32_t regions = 0;
  uint64_t in_flight = 0;
  uint64_t faults = 0;
  std::vector<std::string> problems;  // of CheckLive

  bool empty() const { return guests == 0 && mms == 0 && regions == 0 && in_flight == 0; }
};

class PagerChild {
 public:
  struct Setup {
    FramesChoice frames = FramesChoice::kHuge;
    uint64_t pt_budget_bytes = 0;
    Identity identity = Identity::kSame;
    PagerOptions::Lifetime lifetime = PagerOptions::Lifetime::kService;
    int life_fd = -1;    // see PagerOptions
    int report_fd = -1;  // see PagerOptions
    int max_fds = 0;     // RLIMIT_NOFILE of the pager; 0: ours
  };

  explicit PagerChild(const Setup& setup);
  ~PagerChild();
  PagerChild(const PagerChild&) = delete;
  PagerChild& operator=(const PagerChild&) = delete;

  bool ok() const { return ready_.starts_with("mode="); }
  // The line that the pager said when it was ready, or why it is not.
  const std::string& ready() const { return ready_; }
  const std::string& socket_path() const { return socket_path_; }
  pid_t pid() const { return child_->pid(); }

  // Entries of /proc/PID/fd.
  int OpenDescriptors() const;
  // Nothing if the pager does not answer in time.
  std::optional<Census> Take() const;
  // True once nobody and nothing is left in the segment, it is sound, and the pager has no more
  // descriptors than `descriptors`.
  bool BecomesEmpty(int descriptors) const;
  // Exit status, -1 if it does not end in time.
  int Terminate();

 private:
  std::string directory_;
  std::string socket_path_;
  std::string ready_;
  std::unique_ptr<Child> child_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_PAGER_PAGER_CHILD_H_
