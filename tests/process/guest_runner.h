// tests/process/guest_runner.h
//
// The test's side: a pager of its own, programs started plain or under it, with deadlines.
//
// Owner:    a destructor ends what it started (by pid). The test process adopts orphans of its
//           programs (PR_SET_CHILD_SUBREAPER), so that daemons are found and ended too.
// Threads:  one.
// Errors:   gtest failures; nothing hangs.
#ifndef HOSTMM_TESTS_PROCESS_GUEST_RUNNER_H_
#define HOSTMM_TESTS_PROCESS_GUEST_RUNNER_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "tests/testing/scoped_fd.h"

namespace hostmm::test {

// What was built, from the command line of the test: hostmm, the library, a guest program.
struct Built {
  static inline std::string hostmm;
  static inline std::string library;
  static inline std::string guest;
  // Takes the three paths out of `argv`, makes them absolute.
  static void TakeFrom(int argc, char** argv);
};

using Environment = std::vector<std::pair<std::string, std::string>>;

struct Ended {
  int status = -1;  // exit code, 128 + signal, -1 at the deadline
  std::string out;
  std::string err;
};

// A program whose output is collected.
class Program {
 public:
  Program(const std::vector<std::string>& command, const Environment& environment);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int number) const;
  // Reads until the output holds `text`.
  bool AwaitOut(const std::string& text);
  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }
  // To the end of the output of it and of all its children.
  Ended Finish();

 private:
  bool ReadMore(int timeout_ms);

  pid_t pid_ = -1;
  ScopedFd out_fd_;
  ScopedFd err_fd_;
  std::string out_;
  std::string err_;
};

Ended RunToEnd(const std::vector<std::string>& command, const Environment& environment = {});

// `hostmm pager` on a socket in a directory that every user may reach.
class ServicePager {
 public:
  // `options`: more of its command line.
  explicit ServicePager(std::vector<std::string> options = {});
  ~ServicePager();
  ServicePager(const ServicePager&) = delete;
  ServicePager& operator=(const ServicePager&) = delete;

  const std::string& socket() const { return socket_; }
  pid_t pid() const { return pager_; }
  Environment GuestEnvironment() const;
  // Starts it (again, at the same socket), and waits until it serves.
  void Start();
  void Signal(int number) const;
  // kill -9, and reaps.
  void Kill();

  // The output of `hostmm QUESTION --pager SOCKET`.
  Ended Ask(const std::string& question, const std::vector<std::string>& more = {}) const;
  // A number of `hostmm stats --json`; -1 if it is not there.
  int64_t Stat(const std::string& key) const;
  // Waits until no guest and no file is left, and checks the invariants.
  void ExpectNoTrace() const;

 private:
  std::vector<std::string> options_;
  std::string folder_;
  std::string socket_;
  pid_t pager_ = -1;
};

bool Eventually(const std::function<bool()>& condition);

// Ends every process that this one started or adopted, but the pager.
void EndAllChildren();

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_PROCESS_GUEST_RUNNER_H_
