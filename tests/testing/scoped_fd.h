// tests/testing/scoped_fd.h
//
// An owned file descriptor for the kernel-tier tests, which use raw system calls and therefore
// nothing of runtime/.
//
// Owner:    closes on destruction; move-only.
// Threads:  none of its own; one owner at a time. Close() may be called from any thread that owns
//           it.
// Errors:   an invalid descriptor is a negative number; errno of the call that made it is left
//           alone.

#ifndef HOSTMM_TESTS_TESTING_SCOPED_FD_H_
#define HOSTMM_TESTS_TESTING_SCOPED_FD_H_

#include <unistd.h>

#include <utility>

namespace hostmm::test {

class ScopedFd {
 public:
  ScopedFd() = default;
  explicit ScopedFd(int fd) : fd_(fd) {}
  ScopedFd(ScopedFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  ScopedFd& operator=(ScopedFd&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~ScopedFd() { Close(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

  void Close() {
    if (fd_ >= 0) close(std::exchange(fd_, -1));
  }

 private:
  int fd_ = -1;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_SCOPED_FD_H_
