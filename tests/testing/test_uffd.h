// tests/testing/test_uffd.h
//
// A userfaultfd with raw ioctls, from both sides: made by the guest, served by whoever holds the
// descriptor.
//
// Units:    bytes, addresses of the process that made the descriptor.
// Owner:    one copy of the descriptor. Closing the last copy anywhere unregisters and wakes all
//           waiters.
// Threads:  ioctls may come from any thread or process; Close only when no other thread uses this
//           object.
// Errors:   calls return 0 or errno; WaitFault returns std::nullopt at the deadline.

#ifndef HOSTMM_TESTS_TESTING_TEST_UFFD_H_
#define HOSTMM_TESTS_TESTING_TEST_UFFD_H_

#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>

#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"

namespace hostmm::test {

struct SeenFault {
  uint64_t address;  // start of the page
  uint64_t flags;    // UFFD_PAGEFAULT_FLAG_*
};

class TestUffd {
 public:
  TestUffd() = default;
  // Takes over a userfaultfd that was made, and had its UFFDIO_API, elsewhere.
  explicit TestUffd(ScopedFd fd) : fd_(std::move(fd)) {}

  // Makes a userfaultfd for the calling process from an open /dev/userfaultfd. Invalid, with errno,
  // if the kernel refuses one of `features`.
  static TestUffd FromDevice(int device_fd, uint64_t features = 0);

  // Opens the device, which needs root or an administrator's permission, and uses it.
  static TestUffd Open(uint64_t features = 0);

  bool valid() const { return fd_.valid(); }
  int fd() const { return fd_.get(); }
  void Close() { fd_.Close(); }

  // `mode`: UFFDIO_REGISTER_MODE_MISSING, _WP, _MINOR.
  int Register(const void* start, size_t bytes, uint64_t mode) const;
  int Unregister(const void* start, size_t bytes) const;
  int Wake(const void* start, size_t bytes) const;
  int WriteProtect(const void* start, size_t bytes, uint64_t mode) const;
  // `done`: bytes that were mapped before the error, or all.
  int Continue(const void* start, size_t bytes, int64_t* done) const;
  int Copy(const void* target, const void* source, size_t bytes) const;

  // The next page fault. Other events end the wait with std::nullopt, too: no test asks for them.
  std::optional<SeenFault> WaitFault(Deadline deadline = Deadline(kWakeDeadline)) const;

  // True if nothing was raised within kQuietTime.
  bool Quiet() const { return !WaitFault(Deadline(kQuietTime)).has_value(); }

 private:
  ScopedFd fd_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_TEST_UFFD_H_
