// What `hostmm run` changes in the environment of its command: the only road by which the preload
// library learns anything. Pure: vectors of "NAME=VALUE" in, the same out.
//
//   LD_PRELOAD      the library, before what was there
//   HOSTMM_SOCKET   absolute path of the pager's socket
//   HOSTMM_ONLY     names of the programs to manage, joined by ':'; unset = all
//   HOSTMM_QUIET    1 = no lines from inside the guests
//   HOSTMM_STRICT   1 = `run` was strict. Judged at the start; the library ignores it
#ifndef HOSTMM_RUNTIME_CLI_GUEST_ENVIRONMENT_H_
#define HOSTMM_RUNTIME_CLI_GUEST_ENVIRONMENT_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/cli/options.h"

namespace hostmm {

struct GuestSettings {
  std::string library_path;
  std::string socket_path;
  std::string only;
  Verbosity verbosity = Verbosity::kNormal;
  Strictness strictness = Strictness::kFailOpen;
};

// The variables to set, "NAME=VALUE". `old_preload` is LD_PRELOAD as it was, empty when unset.
std::vector<std::string> GuestVariables(const GuestSettings& settings,
                                        std::string_view old_preload);

// `base` without every HOSTMM_* variable that guests read (an outer `hostmm run` may have set some)
// and without those that `changes` sets, then `changes`.
std::vector<std::string> MergeEnvironment(std::span<const std::string> base,
                                          std::span<const std::string> changes);

// The environment of this process.
std::vector<std::string> ProcessEnvironment();

// `word` as a shell reads it back: quoted only where needed.
std::string ShellQuoted(std::string_view word);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_GUEST_ENVIRONMENT_H_
