#include "runtime/cli/options.h"

#include <sys/un.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <utility>

namespace hostmm {
namespace {

// protocol::Message::text without its NUL.
constexpr size_t kMaxNameBytes = 63;

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

// As ApplyRules, with options between and behind the words, up to "--".
ParsedWords ApplyRulesAnywhere(std::span<const std::string> args, std::span<const OptionRule> rules,
                               std::string_view subcommand) {
  const auto dashes = std::ranges::find(args, "--");
  std::span<const std::string> left(args.begin(), dashes);
  ParsedWords all;
  for (;;) {
    ParsedWords parsed = ApplyRules(left, rules, subcommand);
    if (parsed.failure.has_value() || parsed.help) return parsed;
    if (parsed.rest.empty()) break;
    left = left.last(parsed.rest.size() - 1);
    all.rest.push_back(std::move(parsed.rest.front()));
  }
  if (dashes != args.end()) all.rest.insert(all.rest.end(), dashes + 1, args.end());
  return all;
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

OptionRule SizeRule(std::string_view name, uint64_t* bytes) {
  return {name, OptionRule::Takes::kValue, [bytes](std::string_view value) -> std::string {
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
      SizeRule("--pt-budget", &run.pt_budget_bytes),
      SizeRule("--snapshot-memory", &run.snapshot_memory_bytes),
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
    if (run.frames != FramesChoice::kAuto || run.pt_budget_bytes != 0 ||
        run.snapshot_memory_bytes != 0) {
      return Usage("--pager",
                   "the running pager has chosen its frames; leave --frames, --pt-budget and "
                   "--snapshot-memory out",
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
      SizeRule("--pt-budget", &service.pt_budget_bytes),
      SizeRule("--snapshot-memory", &service.snapshot_memory_bytes),
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

// A name as the pager keeps it.
std::string CheckName(std::string_view name) {
  if (name.empty()) return "needs a name";
  if (name.size() > kMaxNameBytes) return Quoted(name) + " is longer than 63 bytes";
  if (name.find('/') != std::string_view::npos) return Quoted(name) + " has a '/' in it";
  return "";
}

OptionRule NameRule(std::string_view option, std::string* name) {
  return {option, OptionRule::Takes::kValue, [name](std::string_view value) -> std::string {
            // "@NAME" is how a kept snapshot is written elsewhere.
            if (value.starts_with('@')) value.remove_prefix(1);
            std::string wrong = CheckName(value);
            if (wrong.empty()) *name = value;
            return wrong;
          }};
}

// Why `region` can be no region; "": it can.
std::string CheckRegion(std::string_view region) {
  if (region.starts_with('@')) return CheckName(region.substr(1));
  if (!region.starts_with('#')) return CheckName(region);
  region.remove_prefix(1);
  const bool digits = !region.empty() && region.size() < 10 &&
                      region.find_first_not_of("0123456789") == std::string_view::npos;
  return digits ? "" : "after '#' goes the number before the dot of a file in 'hostmm dump'";
}

std::optional<Failure> CheckSnapshotWords(const std::vector<std::string>& words,
                                          SnapshotOptions* snapshot) {
  constexpr std::string_view kTopic = "snapshot";
  if (!snapshot->drop.empty()) {
    if (!words.empty()) return Usage(words.front(), "unexpected word beside --drop", kTopic);
    return std::nullopt;
  }
  if (words.size() < 2) return Usage(kTopic, "REGION and FILE are wanted", kTopic);
  if (words.size() > 2) return Usage(words[2], "unexpected word", kTopic);
  if (const std::string wrong = CheckRegion(words[0]); !wrong.empty()) {
    return Usage(Quoted(words[0]), wrong, kTopic);
  }
  if (words[1].empty()) return Usage(kTopic, "the name of the file is empty", kTopic);
  snapshot->region = words[0];
  snapshot->file = words[1];
  const bool is_kept = snapshot->region.starts_with('@');
  if (snapshot->begin == SnapshotOptions::Begin::kResume) {
    if (snapshot->file == "-") return Usage("--resume", "takes a file, not '-'", kTopic);
    if (!is_kept) {
      return Usage("--resume", "goes on with a snapshot that was kept: give @NAME as REGION",
                   kTopic);
    }
  }
  if (is_kept && !snapshot->keep.empty()) {
    return Usage("--keep", snapshot->region + " is kept already", kTopic);
  }
  return std::nullopt;
}

Result ParseSnapshot(std::span<const std::string> args, std::string_view environment_socket) {
  SnapshotOptions snapshot;
  const OptionRule rules[] = {
      TextRule("--pager", &snapshot.socket_path),
      NameRule("--incremental-from", &snapshot.earlier),
      NameRule("--keep", &snapshot.keep),
      NameRule("--drop", &snapshot.drop),
      FlagRule("--resume", &snapshot.begin, SnapshotOptions::Begin::kResume),
      FlagRule("--quiet", &snapshot.verbosity, Verbosity::kQuiet),
  };
  const ParsedWords words = ApplyRulesAnywhere(args, rules, "snapshot");
  if (words.failure.has_value()) return *words.failure;
  if (words.help) return CommandLine(HelpOptions{"snapshot"});
  if (auto failure = CheckSnapshotWords(words.rest, &snapshot)) return *failure;
  if (snapshot.socket_path.empty()) snapshot.socket_path = environment_socket;
  if (snapshot.socket_path.empty()) {
    return Usage("snapshot", "which pager? give --pager SOCKET or set HOSTMM_SOCKET", "snapshot");
  }
  if (auto failure = CheckSocketPathLength(snapshot.socket_path)) return *failure;
  return CommandLine(std::move(snapshot));
}

Result ParseImage(std::span<const std::string> args) {
  ImageOptions image;
  const OptionRule rules[] = {TextRule("--to", &image.raw)};
  ParsedWords words = ApplyRulesAnywhere(args, rules, "image");
  if (words.failure.has_value()) return *words.failure;
  if (words.help) return CommandLine(HelpOptions{"image"});
  if (words.rest.empty()) return Usage("image", "no FILE was given", "image");
  for (const std::string& file : words.rest) {
    if (file.empty()) return Usage("image", "the name of a file is empty", "image");
  }
  if (image.raw == "-") return Usage("--to", "takes a file, not '-': it has holes", "image");
  image.files = std::move(words.rest);
  return CommandLine(std::move(image));
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
  if (subcommand == "snapshot") return ParseSnapshot(rest, environment_socket);
  if (subcommand == "image") return ParseImage(rest);
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
