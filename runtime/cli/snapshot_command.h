// `hostmm snapshot`: has the pager take a snapshot of a region and write it to a file.
//
// Flow:    connect, kSnapshotOf   -> the handle of the snapshot
//          kKeep                  -> it outlives this command
//          kExport + file, progress pipe, handle of the base -> an answer when all is written
//          The pager writes the file; this process shows the progress, and syncs it.
// Ending:  killed at any time, the pager sees the reply socket close and stops. A snapshot that is
//          kept can then be gone on with.
#ifndef HOSTMM_RUNTIME_CLI_SNAPSHOT_COMMAND_H_
#define HOSTMM_RUNTIME_CLI_SNAPSHOT_COMMAND_H_

#include "runtime/cli/options.h"

namespace hostmm {

// RETURNS an ExitStatus.
int RunSnapshot(const SnapshotOptions& options);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_SNAPSHOT_COMMAND_H_
