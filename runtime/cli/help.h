// The texts of `hostmm help`, one page per subcommand. Pure.
#ifndef HOSTMM_RUNTIME_CLI_HELP_H_
#define HOSTMM_RUNTIME_CLI_HELP_H_

#include <optional>
#include <string>
#include <string_view>

namespace hostmm {

// The page for `topic`; "" is the overview. nullopt: no such topic.
std::optional<std::string> HelpText(std::string_view topic);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_HELP_H_
