// A failure as the user sees it: one line "hostmm: WHAT: WHY; REMEDY" and one exit status.
//
// Errors of the command line travel as std::optional<Failure> (nullopt = done) or std::variant<T,
// Failure>. They are not absl::Status because the exit status is part of the interface and is
// chosen where the failure is understood.
#ifndef HOSTMM_RUNTIME_CLI_FAILURE_H_
#define HOSTMM_RUNTIME_CLI_FAILURE_H_

#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "runtime/cli/exit_status.h"

namespace hostmm {

struct Failure {
  ExitStatus status;
  std::string text;  // "WHAT: WHY; REMEDY", without "hostmm: " and without a newline
};

template <class T>
using OrFailure = std::variant<T, Failure>;

// The failure in `result`, nullptr if there is none.
template <class T>
const Failure* FailureOf(const OrFailure<T>& result) {
  return std::get_if<Failure>(&result);
}

// `what` names the thing (a path, an option), `why` what is wrong with it, `remedy` what to do (may
// be empty).
Failure MakeFailure(ExitStatus status, std::string_view what, std::string_view why,
                    std::string_view remedy);

// `text` with every control character replaced by '?': what a user typed stays on one line, and a
// terminal unharmed.
std::string OneLine(std::string_view text);

// strerror(error), as a string of its own.
std::string ErrnoText(int error);

// Writes "hostmm: TEXT\n" to standard error with one write, so that lines of several processes do
// not mix.
void PrintLine(std::string_view text);

// Prints the failure; RETURNS its exit status, for `return Report(...)` in commands.
int Report(const Failure& failure);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_FAILURE_H_
