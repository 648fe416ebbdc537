// `hostmm run`: starts a pager, starts the command under it, passes signals on, ends with the
// command's status.
//
// Flow:   find the command and the library -> pager ready -> command -> its end -> the pager's end
//         lines
// Fails:  what the user named and cannot be had (the command, a --pager, a library of another
//         version) ends `run` with its status before anything starts. A pager of its own that
//         cannot be had is told in one line, and the command runs without it; with --strict it does
//         not run.
// Leaves: nothing. If guests outlive the command (a daemon), their pager stays until the last of
//         them ends, and removes its directory itself; one line says so.
#ifndef HOSTMM_RUNTIME_CLI_RUN_COMMAND_H_
#define HOSTMM_RUNTIME_CLI_RUN_COMMAND_H_

#include "runtime/cli/options.h"
#include "runtime/cli/pager_process.h"

namespace hostmm {

// RETURNS what the process should exit with: an ExitStatus, or the status of the command (128 + N
// for signal N).
int RunCommand(const RunOptions& options, const PagerFunction& pager);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_RUN_COMMAND_H_
