// Pagers and sessions for the tests of the C++ API.
//
// Owner:    TestPager ends the pager that it started, by pid, and removes its folder.
// Errors:   gtest failures; every wait has a deadline.
#ifndef HOSTMM_TESTS_API_CPP_SESSION_H_
#define HOSTMM_TESTS_API_CPP_SESSION_H_

#include <sys/types.h>

#include <string>

#include "gtest/gtest.h"
#include "runtime/hostmm.h"

namespace hostmm::test {

// With a pager of this process's own. Closed, with a failure, if there is none.
Session OpenSession();

// `hostmm pager` on a socket that every user may connect to.
class TestPager {
 public:
  TestPager();
  ~TestPager();
  TestPager(const TestPager&) = delete;
  TestPager& operator=(const TestPager&) = delete;

  const std::string& socket() const { return socket_; }
  // Kills it, and waits until it has gone.
  void Kill();

 private:
  pid_t pid_ = -1;
  std::string folder_;
  std::string socket_;
};

// Whether `status` is that of `error`, and names the function.
testing::AssertionResult Refused(const absl::Status& status, int error, const std::string& name);

// The lines of /proc/self/maps that are shared mappings: what a refused call must not change. (An
// allocator may map private memory at any time.) Without the one of the agent, which maps it when
// it comes to it.
std::string SharedMappings();

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_API_CPP_SESSION_H_
