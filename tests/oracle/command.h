// tests/oracle/command.h
//
// Programs that are started, waited for with a deadline, and ended.
//
// Owner:    a Command ends what it has started (by pid).
// Threads:  one.
// Errors:   status -1: it did not end in time, or could not be started.
#ifndef HOSTMM_TESTS_ORACLE_COMMAND_H_
#define HOSTMM_TESTS_ORACLE_COMMAND_H_

#include <sys/types.h>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "tests/testing/scoped_fd.h"

namespace hostmm::oracle {

using Environment = std::vector<std::pair<std::string, std::string>>;

class Command {
 public:
  Command() = default;
  // Its output goes to the files. Without LD_PRELOAD and HOSTMM_SOCKET, but for `environment`.
  Command(const std::vector<std::string>& words, const Environment& environment,
          const std::string& out_path, const std::string& err_path);
  ~Command();
  Command(Command&& other) noexcept;
  Command& operator=(Command&& other) noexcept;

  bool Runs() const;
  void Signal(int number) const;
  // The exit status, 128 + signal, or -1 when it had to be killed.
  int Finish(std::chrono::milliseconds patience);

 private:
  pid_t pid_ = -1;
  test::ScopedFd pidfd_;
};

std::string ReadText(const std::string& path);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_COMMAND_H_
