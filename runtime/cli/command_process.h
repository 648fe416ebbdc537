// The command of `hostmm run`: found as a shell finds it, started, waited for.
//
// Errors: kNotFound (127) and kNotExecutable (126), as a shell has them; kInternal when fork fails
//         for lack of memory, kLimitTooLow when it fails for `ulimit -u`.
#ifndef HOSTMM_RUNTIME_CLI_COMMAND_PROCESS_H_
#define HOSTMM_RUNTIME_CLI_COMMAND_PROCESS_H_

#include <sys/types.h>

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "runtime/cli/failure.h"
#include "runtime/cli/forwarded_signals.h"
#include "runtime/unique_fd.h"

namespace hostmm {

// The file that `name` means: itself when it has a slash, else the first executable one on
// `path_variable`.
OrFailure<std::string> FindCommand(const std::string& name, std::string_view path_variable);

// Why the preload library will not be loaded into `file`, which the loader itself would not say:
// statically linked, of another word size, or set-uid. Empty: nothing speaks against it (a script
// counts as such).
std::string WhyNotPreloadable(const std::string& file);

struct RunningCommand {
  pid_t pid = -1;
  UniqueFd pidfd;
};

// Starts `file` with `arguments` (arguments[0] is what it sees as its name) and `environment`. The
// signal mask is that from before `signals`. Returns once the exec has happened or failed.
OrFailure<RunningCommand> StartCommand(const std::string& file,
                                       std::span<const std::string> arguments,
                                       std::span<const std::string> environment,
                                       const ForwardedSignals& signals);

// An exit status as a shell gives it, from a wait status.
int ShellStatus(int wait_status);

// A descriptor that is readable when `pid`, a child of ours, has ended.
UniqueFd OpenPidfd(pid_t pid);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_COMMAND_PROCESS_H_
