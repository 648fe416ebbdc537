#include "runtime/cli/cli_main.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/cli/doctor.h"
#include "runtime/cli/help.h"
#include "runtime/cli/image_command.h"
#include "runtime/cli/inspect_command.h"
#include "runtime/cli/options.h"
#include "runtime/cli/preload_library.h"
#include "runtime/cli/run_command.h"
#include "runtime/cli/service_command.h"
#include "runtime/cli/snapshot_command.h"
#include "runtime/cli/version.h"

namespace hostmm {
namespace {

int PrintHelp(const HelpOptions& options) {
  const std::optional<std::string> text = HelpText(options.topic);
  if (!text.has_value()) {
    return Report(
        MakeFailure(ExitStatus::kUsage, options.topic, "no such subcommand", "see 'hostmm help'"));
  }
  std::fputs(text->c_str(), stdout);
  return ToInt(ExitStatus::kOk);
}

int PrintVersion() {
  std::puts("hostmm " HOSTMM_VERSION);
  return ToInt(ExitStatus::kOk);
}

// A descriptor 0, 1 or 2 that is closed would be given to a socket or the segment, and then be
// written to by mistake.
void OpenStandardFiles() {
  int fd = open("/dev/null", O_RDWR);
  while (fd >= 0 && fd <= 2) fd = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (fd > 2) close(fd);
}

// `preload` without our library, as LD_PRELOAD has it: names parted by blanks or colons. nullopt:
// it is not in it.
std::optional<std::string> WithoutOurLibrary(std::string_view preload) {
  std::optional<std::string> found;
  std::string rest;
  while (!preload.empty()) {
    const std::string_view name = preload.substr(0, preload.find_first_of(" :"));
    if (name.substr(name.rfind('/') + 1) == kPreloadFileName) {
      found.emplace();
    } else if (!name.empty()) {
      rest.append(rest.empty() ? "" : ":").append(name);
    }
    preload.remove_prefix(std::min(name.size() + 1, preload.size()));
  }
  if (found.has_value()) found = rest;
  return found;
}

// A `hostmm` inside the tree of another one would have its own segments managed by the outer pager.
// The loader is past by now, so it starts itself again without the library. Goes on as it is if
// that fails.
void LeaveOuterHostmm(char** argv) {
  const char* preload = std::getenv("LD_PRELOAD");
  if (preload == nullptr) return;
  const std::optional<std::string> rest = WithoutOurLibrary(preload);
  if (!rest.has_value()) return;
  if (setenv("LD_PRELOAD", rest->c_str(), 1) == 0) execv("/proc/self/exe", argv);
}

class Dispatcher {
 public:
  explicit Dispatcher(const PagerFunction& pager) : pager_(pager) {}

  int operator()(const RunOptions& options) const { return RunCommand(options, pager_); }
  int operator()(const ServiceOptions& options) const { return RunService(options, pager_); }
  int operator()(const DoctorOptions& options) const { return RunDoctor(options); }
  int operator()(const InspectOptions& options) const { return RunInspect(options); }
  int operator()(const SnapshotOptions& options) const { return RunSnapshot(options); }
  int operator()(const ImageOptions& options) const { return RunImage(options); }
  int operator()(const HelpOptions& options) const { return PrintHelp(options); }
  int operator()(const VersionOptions&) const { return PrintVersion(); }

 private:
  const PagerFunction& pager_;
};

}  // namespace

int CliMain(int argc, char** argv, const PagerFunction& pager) {
  OpenStandardFiles();
  LeaveOuterHostmm(argv);
  std::vector<std::string> args;
  for (int i = 1; i < argc; ++i) args.emplace_back(argv[i]);
  const char* socket = std::getenv("HOSTMM_SOCKET");
  const OrFailure<CommandLine> parsed = ParseCommandLine(args, socket == nullptr ? "" : socket);
  if (const Failure* failure = FailureOf(parsed)) return Report(*failure);
  const int status = std::visit(Dispatcher(pager), std::get<CommandLine>(parsed));
  if (std::fflush(stdout) != 0 && status == ToInt(ExitStatus::kOk)) {
    return Report(MakeFailure(ExitStatus::kInternal, "standard output", "cannot be written", ""));
  }
  return status;
}

}  // namespace hostmm
