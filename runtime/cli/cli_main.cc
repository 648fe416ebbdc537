#include "runtime/cli/cli_main.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <variant>
#include <vector>

#include "runtime/cli/doctor.h"
#include "runtime/cli/help.h"
#include "runtime/cli/inspect_command.h"
#include "runtime/cli/options.h"
#include "runtime/cli/run_command.h"
#include "runtime/cli/service_command.h"
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

class Dispatcher {
 public:
  explicit Dispatcher(const PagerFunction& pager) : pager_(pager) {}

  int operator()(const RunOptions& options) const { return RunCommand(options, pager_); }
  int operator()(const ServiceOptions& options) const { return RunService(options, pager_); }
  int operator()(const DoctorOptions& options) const { return RunDoctor(options); }
  int operator()(const InspectOptions& options) const { return RunInspect(options); }
  int operator()(const HelpOptions& options) const { return PrintHelp(options); }
  int operator()(const VersionOptions&) const { return PrintVersion(); }

 private:
  const PagerFunction& pager_;
};

}  // namespace

int CliMain(int argc, char** argv, const PagerFunction& pager) {
  OpenStandardFiles();
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
