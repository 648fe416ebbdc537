#include "runtime/cli/guest_environment.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>

namespace hostmm {
namespace {

constexpr auto kOurNames = std::to_array<std::string_view>(
    {"HOSTMM_SOCKET", "HOSTMM_ONLY", "HOSTMM_QUIET", "HOSTMM_STRICT"});

std::string_view NameOf(std::string_view variable) {
  return variable.substr(0, variable.find('='));
}

}  // namespace

std::vector<std::string> GuestVariables(const GuestSettings& settings,
                                        std::string_view old_preload) {
  std::string preload = settings.library_path;
  const std::string_view first = old_preload.substr(0, old_preload.find_first_of(" :"));
  if (first == settings.library_path) {
    preload = old_preload;  // a nested `hostmm run`: once is enough
  } else if (!old_preload.empty()) {
    preload.append(":").append(old_preload);
  }
  std::vector<std::string> variables = {"LD_PRELOAD=" + preload,
                                        "HOSTMM_SOCKET=" + settings.socket_path};
  if (!settings.only.empty()) variables.push_back("HOSTMM_ONLY=" + settings.only);
  if (settings.verbosity == Verbosity::kQuiet) variables.push_back("HOSTMM_QUIET=1");
  if (settings.strictness == Strictness::kStrict) variables.push_back("HOSTMM_STRICT=1");
  return variables;
}

std::vector<std::string> MergeEnvironment(std::span<const std::string> base,
                                          std::span<const std::string> changes) {
  std::vector<std::string> merged;
  for (const std::string& variable : base) {
    const std::string_view name = NameOf(variable);
    const bool ours = std::ranges::find(kOurNames, name) != kOurNames.end();
    const bool changed = std::ranges::any_of(
        changes, [&](const std::string& change) { return NameOf(change) == name; });
    if (!ours && !changed) merged.push_back(variable);
  }
  merged.insert(merged.end(), changes.begin(), changes.end());
  return merged;
}

std::vector<std::string> ProcessEnvironment() {
  std::vector<std::string> variables;
  for (char** variable = environ; variable != nullptr && *variable != nullptr; ++variable) {
    variables.emplace_back(*variable);
  }
  return variables;
}

std::string ShellQuoted(std::string_view word) {
  constexpr std::string_view kPlain = "_-./:=,+@%";
  const bool plain = !word.empty() && std::ranges::all_of(word, [&](unsigned char c) {
    return std::isalnum(c) != 0 || kPlain.find(static_cast<char>(c)) != std::string_view::npos;
  });
  if (plain) return std::string(word);
  std::string quoted = "'";
  for (const char c : word) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

}  // namespace hostmm
