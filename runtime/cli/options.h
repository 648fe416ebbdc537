// The command line of `hostmm`, taken apart: strings in, one struct per subcommand out. Pure; no
// system call.
//
// Form:   hostmm SUBCOMMAND [--option=VALUE | --option VALUE | --flag]... [-- command args...]
//         The first word that is no option starts the command of `run`, so "--" is needed only
//         before a command that begins with a dash. Options of `snapshot` and `image` may stand
//         behind their words too. The last of several equal options counts.
// Units:  sizes in bytes, with k, m, g for powers of 1024.
// Errors: a Failure of kUsage, kPathTooLong; the text names the option and the page of `hostmm
// help`.
#ifndef HOSTMM_RUNTIME_CLI_OPTIONS_H_
#define HOSTMM_RUNTIME_CLI_OPTIONS_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/cli/failure.h"
#include "runtime/cli/pager_options.h"

namespace hostmm {

enum class Strictness { kFailOpen, kStrict };
enum class Verbosity { kNormal, kQuiet };
enum class Launch { kReal, kDryRun };
enum class OutputFormat { kText, kJson };
enum class Question { kStats, kDump, kCheck };

struct RunOptions {
  std::string pager_socket;  // empty: a pager of its own
  std::string only;          // "exe1:exe2", empty: every program of the tree
  FramesChoice frames = FramesChoice::kAuto;
  uint64_t pt_budget_bytes = 0;
  uint64_t snapshot_memory_bytes = 0;
  Strictness strictness = Strictness::kFailOpen;
  Verbosity verbosity = Verbosity::kNormal;
  Launch launch = Launch::kReal;
  std::vector<std::string> command;  // not empty
};

struct ServiceOptions {  // hostmm pager
  std::string socket_path;
  mode_t socket_mode = 0660;  // owner and group, as for other services' sockets
  FramesChoice frames = FramesChoice::kAuto;
  uint64_t pt_budget_bytes = 0;
  uint64_t snapshot_memory_bytes = 0;
  Strictness strictness = Strictness::kFailOpen;
  PagerOptions::Lifetime lifetime = PagerOptions::Lifetime::kService;
  int ready_fd = -1;  // not -1: in the background
};

struct DoctorOptions {
  OutputFormat format = OutputFormat::kText;
};

struct InspectOptions {  // hostmm stats, dump, check
  Question question = Question::kStats;
  OutputFormat format = OutputFormat::kText;
  std::string socket_path;
};

struct SnapshotOptions {
  std::string socket_path;
  std::string region;   // a name, "#N", or "@NAME" of a kept snapshot; empty with `drop`
  std::string file;     // "-": standard output
  std::string earlier;  // name of the kept snapshot that an incremental image is based on, or empty
  std::string keep;     // name under which the snapshot lives on, or empty
  std::string drop;     // name of the kept snapshot that is to go, or empty
  enum class Begin { kAnew, kResume } begin = Begin::kAnew;
  Verbosity verbosity = Verbosity::kNormal;
};

struct ImageOptions {
  std::vector<std::string> files;  // not empty; "-": standard input
  std::string raw;                 // the file to be made of them, or empty
};

struct HelpOptions {
  std::string topic;  // empty: the overview
};

struct VersionOptions {};

using CommandLine = std::variant<RunOptions, ServiceOptions, DoctorOptions, InspectOptions,
                                 SnapshotOptions, ImageOptions, HelpOptions, VersionOptions>;

// `args` without the program's name. `environment_socket` is $HOSTMM_SOCKET, empty when unset: the
// pager that stats, dump, check and snapshot ask when --pager is not given.
OrFailure<CommandLine> ParseCommandLine(std::span<const std::string> args,
                                        std::string_view environment_socket);

// "512", "64k", "1g" -> bytes. nullopt: no number, zero, or more than 64 bits.
std::optional<uint64_t> ParseSize(std::string_view text);

// "auto", "huge", "hugetlb", "base".
std::string_view FramesName(FramesChoice frames);

// A socket path that fits a sockaddr_un, its NUL included. RETURNS kPathTooLong or nullopt.
std::optional<Failure> CheckSocketPathLength(std::string_view path);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_OPTIONS_H_
