// A program under test: started with its output captured, signalled, waited for with a deadline.
//
// Owner:   the destructor kills (by pid) and reaps what still runs.
// Threads: one. Errors: a deadline that passes fails the test and ends the program; nothing hangs.
#ifndef HOSTMM_TESTS_CLI_PROCESS_H_
#define HOSTMM_TESTS_CLI_PROCESS_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/unique_fd.h"

namespace hostmm::test {

struct Launch {
  std::vector<std::string> command;                              // command[0] is a path
  std::vector<std::pair<std::string, std::string>> environment;  // added to ours
  // Runs in the child before exec: limits, another user.
  std::function<void()> prepare = [] {};
};

struct Outcome {
  int status = -1;  // exit status, 128 + N for signal N; -1: the deadline passed
  std::string out;
  std::string err;
};

class Process {
 public:
  explicit Process(const Launch& launch);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int number) const;

  // Reads until standard output / error holds `text`. RETURNS whether it came.
  bool AwaitOut(const std::string& text) { return Await(text, &out_); }
  bool AwaitErr(const std::string& text) { return Await(text, &err_); }
  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }

  // Reads to the end of both and reaps.
  Outcome Finish();

 private:
  bool Await(const std::string& text, std::string* from);
  // One poll of both pipes. RETURNS false once both have ended or the time is up.
  bool ReadMore(int timeout_ms);

  pid_t pid_ = -1;
  UniqueFd out_fd_;
  UniqueFd err_fd_;
  std::string out_;
  std::string err_;
};

Outcome RunToEnd(const Launch& launch);

// Polls `condition` until it holds. RETURNS whether it did within the deadline of all waits here.
bool Eventually(const std::function<bool()>& condition);

// Children of `pid` whose /proc/PID/comm is `name`.
std::vector<pid_t> ChildrenNamed(pid_t pid, const std::string& name);

bool IsAlive(pid_t pid);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_CLI_PROCESS_H_
