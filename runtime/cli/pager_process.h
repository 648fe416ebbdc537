// clang-format off
// The pager of one `hostmm run`: a forked process of its own session that outlives the command if
// guests do.
//
// Flow:      run                                    pager process
//            socket, pipes, fork               ->   closes everything but its descriptors;
//                                                   /dev/null; RunPager()
//            WaitReady()                       <-   "mode=... frames=... why=...\n"
//            (starts the command)
//            ReleaseTree(), TreeIsGone()            life pipe at its end, and no guests:
//            TakeReport()                      <-   the end lines, end of file
//                                                   removes the private directory, exits
// Life pipe: its write end is inherited by every process of the command's tree (not O_CLOEXEC,
//            moved to a high number); nobody ever writes. Its end of file means that all of them
//            are gone, or have closed what they inherited.
// Owner:     single-threaded `run`. Destroying the object leaves the pager running; Kill() ends it.
// Errors:    Failure with the pager's own exit status and reason.
// clang-format on
#ifndef HOSTMM_RUNTIME_CLI_PAGER_PROCESS_H_
#define HOSTMM_RUNTIME_CLI_PAGER_PROCESS_H_

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "runtime/cli/control_socket.h"
#include "runtime/cli/failure.h"
#include "runtime/cli/forwarded_signals.h"
#include "runtime/cli/pager_options.h"
#include "runtime/cli/runtime_dir.h"
#include "runtime/unique_fd.h"

namespace hostmm {

// RunPager(), as a parameter: the tests of the command line bring their own.
using PagerFunction = std::function<int(const PagerOptions&)>;

// Text that a person reads, from the pager's "mode=uffd frames=huge why=TEXT": the same, with
// "(TEXT)" at the end, or without it if there is no TEXT.
std::string FormatReadyLine(std::string_view line);

// Makes the calling process, of one thread, one in the background: its own session, no terminal,
// standard files on /dev/null, nothing open but `keep`, signals as a pager has them.
void EnterBackground(const std::vector<int>& keep);

class PagerProcess {
 public:
  struct Settings {
    FramesChoice frames = FramesChoice::kAuto;
    uint64_t pt_budget_bytes = 0;
    uint64_t snapshot_memory_bytes = 0;
    bool strict = false;
  };
  struct Interrupted {
    int signal;
  };
  using Ready = std::variant<std::string, Failure, Interrupted>;  // string: FormatReadyLine()

  // Makes the socket in `directory` (world-connectable: the command's processes may change user,
  // and a guest sees its own regions only) and forks the pager.
  static OrFailure<PagerProcess> Start(const PagerFunction& pager, const Settings& settings,
                                       const RuntimeDir& directory);

  pid_t pid() const { return pid_; }
  int pidfd() const { return pidfd_.get(); }

  // Waits until the pager serves. A failure, a signal or the deadline ends the pager before this
  // returns.
  Ready WaitReady(const ForwardedSignals& signals, std::chrono::milliseconds deadline);

  // Closes our own write end of the life pipe: from now on only the tree keeps the pager alive.
  void ReleaseTree() { life_write_.reset(); }
  // Whether no process of the tree holds the life pipe any more, waiting for that up to `patience`.
  bool TreeIsGone(std::chrono::milliseconds patience) const;

  // The pager's end lines, waiting up to `deadline` for it to end. nullopt: it has not ended.
  std::optional<std::vector<std::string>> TakeReport(std::chrono::milliseconds deadline);

  // How the pager ended, as text such as "signal 9"; call when pidfd() is readable. Reaps it.
  std::string DescribeEnd();

  void Kill();

 private:
  PagerProcess() = default;
  void Reap();

  pid_t pid_ = -1;
  std::optional<int> wait_status_;
  UniqueFd pidfd_;
  UniqueFd ready_;
  UniqueFd report_;
  UniqueFd life_read_;
  UniqueFd life_write_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_PAGER_PROCESS_H_
