#include "runtime/cli/exit_status.h"

#include <algorithm>
#include <array>

namespace hostmm {
namespace {

constexpr auto kMeanings = std::to_array<ExitStatusMeaning>({
    {ExitStatus::kOk, "done; doctor: the default rung works; check: all invariants hold"},
    {ExitStatus::kDegraded,
     "doctor: works, but in native mode or on base frames; check: an invariant is broken"},
    {ExitStatus::kCannotRun, "doctor: hostmm cannot run here"},
    {ExitStatus::kUsage,
     "unknown option, missing argument, no command; snapshot: a name that is taken, a base that is "
     "not an earlier snapshot of the same region"},
    {ExitStatus::kPathTooLong, "the path of the socket is too long for a unix socket"},
    {ExitStatus::kSocketTaken,
     "another program serves that socket, or another file is in its place"},
    {ExitStatus::kNoPermission, "a permission is missing"},
    {ExitStatus::kKernelLacks, "the kernel lacks a feature that was asked for"},
    {ExitStatus::kNoFrames, "no frames: out of memory, or of space in the frame store"},
    {ExitStatus::kInternal, "a failure that should not happen; please report its line"},
    {ExitStatus::kLimitTooLow, "a resource limit (ulimit) is too low"},
    {ExitStatus::kVersionMismatch,
     "preload library, pager and command line are of different versions"},
    {ExitStatus::kNoPager, "no pager answers at that socket"},
    {ExitStatus::kStrictRefused,
     "--strict: would have had to run unmanaged, native or on a weaker rung"},
    {ExitStatus::kNoPreload, "the preload library was not found, or cannot be preloaded"},
    {ExitStatus::kBadSegment, "the pager's segment cannot be read: damaged, or of another layout"},
    {ExitStatus::kNoSuchDirectory, "the directory of the socket does not exist or cannot be used"},
    {ExitStatus::kSegmentBusy,
     "check: the pager changed its tables during every attempt to read them"},
    {ExitStatus::kNoSuchRegion, "snapshot: the pager has no region or kept snapshot of that name"},
    {ExitStatus::kSnapshotFailed,
     "snapshot: it could not be taken, or was lost while it was written"},
    {ExitStatus::kImageNotWritten, "snapshot, image: the file could not be written"},
    {ExitStatus::kBadImage,
     "image, snapshot: a file is no image, damaged, not whole, or does not fit"},
    {ExitStatus::kNotExecutable, "run: the command was found but cannot be executed"},
    {ExitStatus::kNotFound, "run: the command was not found"},
});

}  // namespace

std::span<const ExitStatusMeaning> ExitStatusMeanings() { return kMeanings; }

ExitStatus ExitStatusFromCode(int code) {
  const bool known = std::ranges::any_of(
      kMeanings, [code](const ExitStatusMeaning& row) { return ToInt(row.status) == code; });
  return known ? static_cast<ExitStatus>(code) : ExitStatus::kInternal;
}

}  // namespace hostmm
