// The exit statuses of `hostmm`, one per failure that a script would treat differently.
//
// `hostmm run` ends with the status of its command, so a command that itself returns one of these
// cannot be told from it by the number alone: the line "hostmm: ..." on standard error can. The
// numbers begin at EX_USAGE of <sysexits.h> and stay below 126, from where shells give numbers
// their own meaning. They are part of the interface: never reuse one.
#ifndef HOSTMM_RUNTIME_CLI_EXIT_STATUS_H_
#define HOSTMM_RUNTIME_CLI_EXIT_STATUS_H_

#include <span>

namespace hostmm {

enum class ExitStatus : int {
  kOk = 0,
  kDegraded = 1,          // doctor: works, but in native mode or on base frames
  kInvariantsBroken = 1,  // check
  kCannotRun = 2,         // doctor
  kUsage = 64,
  kPathTooLong = 65,
  kSocketTaken = 66,
  kNoPermission = 67,
  kKernelLacks = 68,
  kNoFrames = 69,
  kInternal = 70,
  kLimitTooLow = 71,
  kVersionMismatch = 72,
  kNoPager = 73,
  kStrictRefused = 74,
  kNoPreload = 75,
  kBadSegment = 76,
  kNoSuchDirectory = 77,
  kSegmentBusy = 78,
  kNoSuchRegion = 79,
  kSnapshotFailed = 80,
  kImageNotWritten = 81,
  kBadImage = 82,
  kNotExecutable = 126,
  kNotFound = 127,
};

// The status of a command that a signal ended is this plus the signal's number, as in a shell.
inline constexpr int kSignalStatusBase = 128;

constexpr int ToInt(ExitStatus status) { return static_cast<int>(status); }

struct ExitStatusMeaning {
  ExitStatus status;
  const char* meaning;  // one line for a person
};

// All statuses, ascending, for `hostmm help status` and the documents.
std::span<const ExitStatusMeaning> ExitStatusMeanings();

// The status that a pager process ended with, from its exit code; kInternal for a number that is no
// ExitStatus.
ExitStatus ExitStatusFromCode(int code);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_EXIT_STATUS_H_
