// The preload library on disk: where it is, which version it is of, who can load it.
//
// Searched for: beside the running binary, then in ../lib (tools/install) and ../lib/hostmm of it.
// Errors:       kNoPreload, kVersionMismatch; the file is only read, never loaded, here.
#ifndef HOSTMM_RUNTIME_CLI_PRELOAD_LIBRARY_H_
#define HOSTMM_RUNTIME_CLI_PRELOAD_LIBRARY_H_

#include <optional>
#include <string>

#include "runtime/cli/failure.h"

namespace hostmm {

inline constexpr char kPreloadFileName[] = "libhostmm_preload.so";

// Whether a process of another user can load it: all folders above it must be open to everybody. A
// command that root starts and that changes its user (every database server does) needs kEveryone.
enum class Reach { kEveryone, kOwnerOnly };

struct PreloadLibrary {
  std::string path;     // absolute
  std::string version;  // empty: the file has no mark of ours
  Reach reach = Reach::kEveryone;
};

// The library that belongs to this binary. RETURNS kNoPreload when it is absent, unreadable, on a
// filesystem mounted noexec, or has a path that LD_PRELOAD cannot carry (blank or colon).
OrFailure<PreloadLibrary> FindPreloadLibrary();

// As above, from the folder of a binary.
OrFailure<PreloadLibrary> FindPreloadLibraryFrom(const std::string& binary_directory);

// RETURNS kVersionMismatch unless the library is of this build's version.
std::optional<Failure> CheckPreloadVersion(const PreloadLibrary& library);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_PRELOAD_LIBRARY_H_
