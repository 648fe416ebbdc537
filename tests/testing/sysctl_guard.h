// tests/testing/sysctl_guard.h
//
// Sets a sysctl for the life of the object and puts the old value back, also when an assertion left
// the test early.
//
// Units:    whatever the file holds.
// Owner:    machine-wide state. Tests that use it carry the Bazel tag "exclusive". A SIGKILL in
//           between leaves the new value behind: raise only what is harmless when left (limits),
//           never lower.
// Errors:   ok() is false and the value untouched when the file cannot be read or written (not
//           root).

#ifndef HOSTMM_TESTS_TESTING_SYSCTL_GUARD_H_
#define HOSTMM_TESTS_TESTING_SYSCTL_GUARD_H_

#include <cstdint>
#include <string>

namespace hostmm::test {

// Reads a whole-number sysctl, for example "/proc/sys/vm/nr_hugepages"; -1 if it cannot.
int64_t ReadSysctl(const std::string& path);

class SysctlGuard {
 public:
  // Raises the value to at least `at_least`; a larger value is kept.
  SysctlGuard(std::string path, int64_t at_least);
  ~SysctlGuard();
  SysctlGuard(const SysctlGuard&) = delete;
  SysctlGuard& operator=(const SysctlGuard&) = delete;

  bool ok() const { return ok_; }

 private:
  std::string path_;
  int64_t old_value_ = -1;
  bool changed_ = false;
  bool ok_ = false;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_SYSCTL_GUARD_H_
