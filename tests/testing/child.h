// tests/testing/child.h
//
// A forked process with a socket to its parent, optionally under another uid: the other side of a
// two-process test.
//
// Flow:     parent: Child child(Identity::kNobody, body); child.SendFd(...); child.Wait().
//           child:  body(Channel&) runs, its return value becomes the exit code. CHILD_CHECK ends
//                   it with a line.
// Owner:    the destructor kills (by pid) and reaps a child that still runs.
// Threads:  create children before helper threads, or let the body use async-signal-safe calls
//           only.
// Errors:   every wait has a deadline; sends and receives return false or an invalid descriptor.

#ifndef HOSTMM_TESTS_TESTING_CHILD_H_
#define HOSTMM_TESTS_TESTING_CHILD_H_

#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>

#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"

// Ends the child with exit code 1 and a line that names the condition and errno.
#define CHILD_CHECK(condition)                                                          \
  do {                                                                                  \
    if (!(condition)) {                                                                 \
      fprintf(stderr, "%s:%d: child: %s is false (errno %d, %s)\n", __FILE__, __LINE__, \
              #condition, errno, strerror(errno));                                      \
      _exit(1);                                                                         \
    }                                                                                   \
  } while (false)

namespace hostmm::test {

// The traditional uid and gid of "nobody".
inline constexpr uid_t kNobody = 65534;

enum class Identity { kSame, kNobody };

// One end of a socket pair: small values and descriptors, in order.
class Channel {
 public:
  Channel() = default;
  explicit Channel(ScopedFd socket) : socket_(std::move(socket)) {}

  bool SendFd(int fd) const;
  ScopedFd ReceiveFd() const;
  bool SendValue(uint64_t value) const;
  // False at the deadline (kStepDeadline) or when the other side is gone.
  bool ReceiveValue(uint64_t* value) const;

  // A value whose arrival is all that counts.
  bool Signal() const { return SendValue(0); }
  bool Await() const {
    uint64_t ignored = 0;
    return ReceiveValue(&ignored);
  }

 private:
  ScopedFd socket_;
};

class Child {
 public:
  using Body = std::function<int(Channel&)>;

  Child(Identity identity, const Body& body);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  const Channel& channel() const { return channel_; }

  // Exit code; 128 + signal if one ended it; -1 if it was still running at the deadline (it is
  // killed then).
  int Wait(std::chrono::milliseconds within = kStepDeadline);

 private:
  pid_t pid_ = -1;
  Channel channel_;
};

// Gives up root for good. False, with errno, if a step is refused.
bool BecomeNobody();

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_CHILD_H_
