#include "runtime/cli/options.h"

#include <sys/un.h>

#include <array>
#include <charconv>
#include <functional>
#include <utility>

namespace hostmm {
namespace {

struct NamedFrames {
  std::string_view name;
  FramesChoice frames;
};
constexpr auto kFramesNames = std::to_array<NamedFrames>({
    {"auto", FramesChoice::kAuto},
    {"huge", FramesChoice::kHuge},
    {"hugetlb", FramesChoice::kHugetlb},
    {"base", FramesChoice::kBase},
});

Failure Usage(std::string_view what, std::string_view why, std::string_view topic) {
  std::string remedy = "see 'hostmm help";
  if (!topic.empty()) remedy.append(" ").append(topic);
  remedy.append("'");
  return MakeFailure(ExitStatus::kUsage, what, why, remedy);
}

// One option that a subcommand knows. `apply` gets the value ("" for a flag) and RETURNS why it is
// wrong, "" if not.
struct OptionRule {
  enum class Takes { kNothing, kValue };
  std::string_view name;
  Takes takes;
  std::function<std::string(std::string_view value)> apply;
};

struct ParsedWords {
  std::vector<std::string> rest;  // from the first word that is no option
  bool help = false;
  std::optional<Failure> failure;
};

const OptionRule* FindRule(std::span<const OptionRule> rules, std::string_view name) {
  for (const OptionRule& rule : rules) {
    if (rule.name == name) return &rule;
  }
  return nullptr;
}

ParsedWords ApplyRules(std::span<const std::string> args, std::span<const OptionRule> rules,
                       std::string_view subcommand) {
  ParsedWords parsed;
  const auto fail = [&](std::string_view what, std::string_view why) {
    parsed.failure = Usage(what, why, subcommand);
    return parsed;
  };
  size_t i = 0;
  for (; i < args.size(); ++i) {
    const std::string& word = args[i];
    if (word == "--") {
      ++i;
      break;
    }
    if (word.size() < 2 || word[0] != '-') break;
    if (word == "--help" || word == "-h") {
      parsed.help = true;
      return parsed;
    }
    const size_t equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const OptionRule* rule = FindRule(rules, name);
    if (rule == nullptr) return fail(name, "unknown option");
    std::string value;
    if (rule->takes == OptionRule::Takes::kNothing) {
      if (equals != std::string::npos) return fail(name, "takes no value");
    } else if (equals != std::string::npos) {
      value = word.substr(equals + 1);
    } else if (i + 1 < args.size()) {
      value = args[++i];
    } else {
      return fail(name, "needs a value");
    }
    if (const std::string wrong = rule->apply(value); !wrong.empty()) return fail(name, wrong);
  }
  parsed.rest.assign(args.begin() + static_cast<ptrdiff_t>(i), args.end());
  return parsed;
}

std::string Quoted(std::string_view value) { return "'" + std::string(value) + "'"; }

OptionRule FramesRule(FramesChoice* frames) {
  return {"--frames", OptionRule::Takes::kValue, [frames](std::string_view value) -> std::string {
            for (const NamedFrames& row : kFramesNames) {
              if (row.name != value) continue;
              *frames = row.frames;
              return "";
            }
            return Quoted(value) + " is none of auto, huge, hugetlb, base";
          }};
}

OptionRule BudgetRule(uint64_t* bytes) {
  return {"--pt-budget", OptionRule::Takes::kValue, [bytes](std::string_view value) -> std::string {
            const std::optional<uint64_t> size = ParseSize(value);
            if (!size.has_value()) return Quoted(value) + " is no size such as 512k, 64m or 1g";
            *bytes = *size;
            return "";
          }};
}

OptionRule TextRule(std::string_view name, std::string* text) {
  return {name, OptionRule::Takes::kValue, [text](std::string_view value) -> std::string {
            if (value.empty()) return "needs a value that is not empty";
            *text = value;
            return "";
          }};
}

template <class Enum>
OptionRule FlagRule(std::string_view name, Enum* field, Enum value) {
  return {name, OptionRule::Takes::kNothing, [field, value](std::string_view) -> std::string {
            *field = value;
            return "";
          }};
}

// Names of programs, joined by ':'; the preload library compares them with the last part of the
// executable's path.
std::string CheckOnly(std::string_view only) {
  if (only.find('/') != std::string_view::npos) return "names programs, without their folders";
  if (only.front() == ':' || only.back() == ':' || only.find("::") != std::string_view::npos) {
    return Quoted(only) + " has an empty name in it";
  }
  return "";
}

OptionRule OnlyRule(std::string* only) {
  return {"--only", OptionRule::Takes::kValue, [only](std::string_view value) -> std::string {
            if (value.empty()) return "needs a value that is not empty";
            std::string wrong = CheckOnly(value);
            if (wrong.empty()) *only = value;
            return wrong;
          }};
}

OptionRule ModeRule(mode_t* mode) {
  return {"--mode", OptionRule::Takes::kValue, [mode](std::string_view value) -> std::string {
            unsigned bits = 0;
            const char* end = value.data() + value.size();
            const auto [stop, error] = std::from_chars(value.data(), end, bits, 8);
            if (error != std::errc() || stop != end || bits > 0777) {
              return Quoted(value) + " is no octal mode such as 0660";
            }
            *mode = bits;
            return "";
          }};
}

OptionRule DescriptorRule(std::string_view name, int* fd) {
  return {name, OptionRule::Takes::kValue, [fd](std::string_view value) -> std::string {
            const char* end = value.data() + value.size();
            const auto [stop, error] = std::from_chars(value.data(), end, *fd);
            if (error != std::errc() || stop != end || *fd <= 2) {
              return Quoted(value) + " is no descriptor above standard error";
            }
            return "";
          }};
}

std::optional<Failure> CheckBudgetNeedsBase(uint64_t budget, FramesChoice frames,
                                            std::string_view topic) {
  if (budget == 0 || frames == FramesChoice::kBase) return std::nullopt;
  return Usage("--pt-budget",
               "is for --frames=base only: the tables of 2 MiB frames need no budget", topic);
}

using Result = OrFailure<CommandLine>;

Result ParseRun(std::span<const std::string> args) {
  RunOptions run;
  const OptionRule rules[] = {
      TextRule("--pager", &run.pager_socket),
      OnlyRule(&run.only),
      FramesRule(&run.frames),
      BudgetRule(&run.pt_budget_bytes),
      FlagRule("--strict", &run.strictness, Strictness::kStrict),
      FlagRule("--quiet", &run.verbosity, Verbosity::kQuiet),
      FlagRule("--dry-run", &run.launch, Launch::kDryRun),
  };
  ParsedWords words = ApplyRules(args, rules, "run");
  if (words.failure.has_value()) return *words.failure;
  if (words.help) return CommandLine(HelpOptions{"run"});
  if (words.rest.empty()) return Usage("run", "no command was given", "run");
  if (words.rest.front().empty()) return Usage("run", "the name of the command is empty", "run");
  run.command = std::move(words.rest);
  if (!run.pager_socket.empty()) {
    if (auto failure = CheckSocketPathLength(run.pager_socket)) return *failure;
    if (run.frames != FramesChoice::kAuto || run.pt_budget_bytes != 0) {
      return Usage("--pager",
                   "the running pager has chosen its frames; leave --frames and --pt-budget out",
                   "run");
    }
  }
  if (auto failure = CheckBudgetNeedsBase(run.pt_budget_bytes, run.frames, "run")) return *failure;
  return CommandLine(std::move(run));
}

// For the subcommands that take options and nothing else.
std::optional<Result> RejectRest(const ParsedWords& words, std::string_view subcommand) {
  if (words.failure.has_value()) return *words.failure;
  if (words.help) return CommandLine(HelpOptions{std::string(subcommand)});
  if (!words.rest.empty()) return Usage(words.rest.front(), "unexpected word", subcommand);
  return std::nullopt;
}

Result ParseService(std::span<const std::string> args) {
  ServiceOptions service;
  const OptionRule rules[] = {
      TextRule("--socket", &service.socket_path),
      ModeRule(&service.socket_mode),
      FramesRule(&service.frames),
      BudgetRule(&service.pt_budget_bytes),
      FlagRule("--strict", &service.strictness, Strictness::kStrict),
      FlagRule("--until-last-guest", &service.lifetime, PagerOptions::Lifetime::kUntilLastGuest),
      DescriptorRule("--ready-fd", &service.ready_fd),
  };
  const ParsedWords words = ApplyRules(args, rules, "pager");
  if (auto result = RejectRest(words, "pager")) return *result;
  if (service.socket_path.empty()) return Usage("pager", "--socket PATH is missing", "pager");
  if (auto failure = CheckSocketPathLength(service.socket_path)) return *failure;
  if (service.ready_fd >= 0 && service.socket_path.front() != '/') {
    return Usage("--ready-fd", "wants a --socket with an absolute path", "pager");
  }
  if (auto failure = CheckBudgetNeedsBase(service.pt_budget_bytes, service.frames, "pager")) {
    return *failure;
  }
  return CommandLine(std::move(service));
}

Result ParseDoctor(std::span<const std::string> args) {
  DoctorOptions doctor;
  const OptionRule rules[] = {FlagRule("--json", &doctor.format, OutputFormat::kJson)};
  const ParsedWords words = ApplyRules(args, rules, "doctor");
  if (auto result = RejectRest(words, "doctor")) return *result;
  return CommandLine(doctor);
}

Result ParseInspect(std::span<const std::string> args, std::string_view subcommand,
                    Question question, std::string_view environment_socket) {
  InspectOptions inspect;
  inspect.question = question;
  std::vector<OptionRule> rules = {TextRule("--pager", &inspect.socket_path)};
  if (question == Question::kStats) {
    rules.push_back(FlagRule("--json", &inspect.format, OutputFormat::kJson));
  }
  const ParsedWords words = ApplyRules(args, rules, subcommand);
  if (auto result = RejectRest(words, subcommand)) return *result;
  if (inspect.socket_path.empty()) inspect.socket_path = environment_socket;
  if (inspect.socket_path.empty()) {
    return Usage(subcommand, "which pager? give --pager SOCKET or set HOSTMM_SOCKET", subcommand);
  }
  if (auto failure = CheckSocketPathLength(inspect.socket_path)) return *failure;
  return CommandLine(std::move(inspect));
}

Result ParseHelp(std::span<const std::string> args) {
  if (args.size() > 1) return Usage(args[1], "unexpected word", "");
  return CommandLine(HelpOptions{args.empty() ? "" : args.front()});
}

}  // namespace

OrFailure<CommandLine> ParseCommandLine(std::span<const std::string> args,
                                        std::string_view environment_socket) {
  if (args.empty()) return Usage("hostmm", "no subcommand was given", "");
  const std::string& subcommand = args.front();
  const std::span<const std::string> rest = args.subspan(1);
  if (subcommand == "run") return ParseRun(rest);
  if (subcommand == "pager") return ParseService(rest);
  if (subcommand == "doctor") return ParseDoctor(rest);
  if (subcommand == "stats") {
    return ParseInspect(rest, subcommand, Question::kStats, environment_socket);
  }
  if (subcommand == "dump") {
    return ParseInspect(rest, subcommand, Question::kDump, environment_socket);
  }
  if (subcommand == "check") {
    return ParseInspect(rest, subcommand, Question::kCheck, environment_socket);
  }
  if (subcommand == "help" || subcommand == "--help" || subcommand == "-h") return ParseHelp(rest);
  if (subcommand == "version" || subcommand == "--version") {
    if (!rest.empty()) return Usage(rest.front(), "unexpected word", "");
    return CommandLine(VersionOptions{});
  }
  if (subcommand.starts_with("-")) return Usage(subcommand, "unknown option", "");
  return Usage(subcommand, "unknown subcommand", "");
}

std::optional<uint64_t> ParseSize(std::string_view text) {
  uint64_t number = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  if (error != std::errc() || number == 0) return std::nullopt;
  const std::string_view suffix(stop, static_cast<size_t>(end - stop));
  unsigned shift = 0;
  if (suffix == "k" || suffix == "K") {
    shift = 10;
  } else if (suffix == "m" || suffix == "M") {
    shift = 20;
  } else if (suffix == "g" || suffix == "G") {
    shift = 30;
  } else if (!suffix.empty()) {
    return std::nullopt;
  }
  if (number > (UINT64_MAX >> shift)) return std::nullopt;
  return number << shift;
}

std::string_view FramesName(FramesChoice frames) {
  for (const NamedFrames& row : kFramesNames) {
    if (row.frames == frames) return row.name;
  }
  return "unknown";
}

std::optional<Failure> CheckSocketPathLength(std::string_view path) {
  constexpr size_t kMax = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() <= kMax) return std::nullopt;
  return MakeFailure(ExitStatus::kPathTooLong, path,
                     "the path has " + std::to_string(path.size()) +
                         " bytes, a unix socket takes at most " + std::to_string(kMax),
                     "choose a shorter one, such as /run/hostmm.sock");
}

}  // namespace hostmm
