#include "runtime/cli/run_command.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "runtime/cli/command_process.h"
#include "runtime/cli/control_socket.h"
#include "runtime/cli/guest_environment.h"
#include "runtime/cli/preload_library.h"
#include "runtime/cli/runtime_dir.h"

namespace hostmm {
namespace {

// A pager formats its tables and makes its frame store in milliseconds; this is for a machine that
// swaps.
constexpr auto kReadyDeadline = std::chrono::seconds(30);

// Processes of the tree that end because the command has ended need a moment. Who is there after it
// is a daemon.
constexpr auto kTreePatience = std::chrono::milliseconds(500);

// The pager ends once its last guest has; giving back many GiB of frames takes seconds.
constexpr auto kReportDeadline = std::chrono::seconds(10);

// What is settled before anything starts.
struct Plan {
  std::string file;  // of the command
  PreloadLibrary library;
};

std::string EnvironmentValue(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::optional<Failure> RefuseIfNotPreloadable(const RunOptions& options, const std::string& file) {
  const std::string why = WhyNotPreloadable(file);
  if (why.empty()) return std::nullopt;
  if (options.strictness == Strictness::kStrict) {
    return MakeFailure(ExitStatus::kStrictRefused, options.command.front(),
                       why + ", so that the preload library cannot enter it",
                       "run it without hostmm, or without --strict");
  }
  if (options.verbosity == Verbosity::kNormal) {
    PrintLine(options.command.front() + ": " + why + ": it runs unmanaged; what it starts may not");
  }
  return std::nullopt;
}

OrFailure<Plan> MakePlan(const RunOptions& options) {
  Plan plan;
  OrFailure<std::string> file = FindCommand(options.command.front(), EnvironmentValue("PATH"));
  if (const Failure* failure = FailureOf(file)) return *failure;
  plan.file = std::get<std::string>(std::move(file));
  OrFailure<PreloadLibrary> library = FindPreloadLibrary();
  if (const Failure* failure = FailureOf(library)) return *failure;
  plan.library = std::get<PreloadLibrary>(std::move(library));
  if (auto failure = CheckPreloadVersion(plan.library)) return *std::move(failure);
  if (auto failure = RefuseIfNotPreloadable(options, plan.file)) return *std::move(failure);
  return plan;
}

std::vector<std::string> Bases() {
  return RuntimeDirBases(
      geteuid(), {EnvironmentValue("HOSTMM_RUNTIME_DIR"), EnvironmentValue("XDG_RUNTIME_DIR")});
}

// Guests have other working directories.
std::string Absolute(const std::string& path) {
  if (path.starts_with("/")) return path;
  char* folder = getcwd(nullptr, 0);
  if (folder == nullptr) return path;
  std::string absolute = std::string(folder) + "/" + path;
  std::free(folder);
  return absolute;
}

std::vector<std::string> VariablesFor(const RunOptions& options, const std::string& library_path,
                                      const std::string& socket_path) {
  GuestSettings settings;
  settings.library_path = library_path;
  settings.socket_path = socket_path;
  settings.only = options.only;
  settings.verbosity = options.verbosity;
  settings.strictness = options.strictness;
  return GuestVariables(settings, EnvironmentValue("LD_PRELOAD"));
}

// Only root's command can become another user, who needs a library that is open to everybody.
bool NeedsLibraryCopy(const PreloadLibrary& library) {
  return geteuid() == 0 && library.reach == Reach::kOwnerOnly;
}

int PrintDryRun(const RunOptions& options, const Plan& plan) {
  std::string library = plan.library.path;
  std::string socket = Absolute(options.pager_socket);
  if (options.pager_socket.empty()) {
    const std::string directory = Bases().front() + "/hostmm-RANDOM";
    socket = directory + "/pager";
    if (NeedsLibraryCopy(plan.library)) library = directory + "/" + kPreloadFileName;
  }
  std::string text = "pager: ";
  if (options.pager_socket.empty()) {
    text.append("its own, --frames=").append(FramesName(options.frames));
  } else {
    text.append("the one at ").append(socket);
  }
  text.append("\n");
  for (const std::string& variable : VariablesFor(options, library, socket)) {
    const size_t equals = variable.find('=');
    text.append(variable, 0, equals + 1).append(ShellQuoted(variable.substr(equals + 1)));
    text.append("\n");
  }
  text.append("command:");
  for (const std::string& word : options.command) text.append(" ").append(ShellQuoted(word));
  std::printf("%s\n", text.c_str());
  return ToInt(ExitStatus::kOk);
}

// A pager of our own and the directory that it lives in.
struct OwnPager {
  RuntimeDir directory;
  PagerProcess process;
  std::string library_path;
  std::string ready_line;
};

using StartedPager = std::variant<OwnPager, Failure, PagerProcess::Interrupted>;

StartedPager StartOwnPager(const RunOptions& options, const Plan& plan, const PagerFunction& pager,
                           const ForwardedSignals& signals) {
  const bool copy = NeedsLibraryCopy(plan.library);
  OrFailure<RuntimeDir> made =
      RuntimeDir::Create(Bases(), copy ? Holds::kSocketAndLibrary : Holds::kSocket);
  if (const Failure* failure = FailureOf(made)) return *failure;
  const RuntimeDir& directory = std::get<RuntimeDir>(made);
  const auto give_up = [&](auto reason) -> StartedPager {
    directory.Remove();
    return reason;
  };
  if (copy) {
    if (auto failure = directory.CopyLibrary(plan.library.path)) return give_up(*failure);
  }
  PagerProcess::Settings settings;
  settings.frames = options.frames;
  settings.pt_budget_bytes = options.pt_budget_bytes;
  settings.snapshot_memory_bytes = options.snapshot_memory_bytes;
  settings.strict = options.strictness == Strictness::kStrict;
  OrFailure<PagerProcess> started = PagerProcess::Start(pager, settings, directory);
  if (const Failure* failure = FailureOf(started)) return give_up(*failure);
  PagerProcess& process = std::get<PagerProcess>(started);
  PagerProcess::Ready ready = process.WaitReady(signals, kReadyDeadline);
  if (const auto* failure = std::get_if<Failure>(&ready)) return give_up(*failure);
  if (const auto* cut = std::get_if<PagerProcess::Interrupted>(&ready)) return give_up(*cut);
  return OwnPager{directory, std::move(process), copy ? directory.LibraryPath() : plan.library.path,
                  std::get<std::string>(ready)};
}

void PassOn(const ForwardedSignals& signals, const RunningCommand& command) {
  while (const auto signal = signals.Take()) {
    // The terminal has sent it to the command as well; what the command sends us is not meant for
    // itself.
    if (signal->source == SignalSource::kTerminal || signal->sender == command.pid) continue;
    kill(command.pid, signal->number);
  }
}

// Waits for the command, passing signals on. RETURNS its wait status. Says once when the pager ends
// before it.
int WaitForCommand(const RunningCommand& command, const ForwardedSignals& signals,
                   PagerProcess* pager) {
  for (;;) {
    pollfd waits[] = {{command.pidfd.get(), POLLIN, 0},
                      {signals.fd(), POLLIN, 0},
                      {pager == nullptr ? -1 : pager->pidfd(), POLLIN, 0}};
    if (poll(waits, 3, -1) < 0 && errno != EINTR) break;
    if (waits[1].revents != 0) PassOn(signals, command);
    if (waits[0].revents != 0) break;
    if (waits[2].revents != 0) {
      PrintLine("the pager has ended (" + pager->DescribeEnd() +
                "): the command goes on, the kernel alone fills its holes");
      pager = nullptr;
    }
  }
  int status = 0;
  while (waitpid(command.pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

// After the command: either the pager ends now, or it stays for the guests that are left.
void FinishOwnPager(OwnPager* own, Verbosity verbosity) {
  own->process.ReleaseTree();
  std::optional<std::vector<std::string>> report;
  if (own->process.TreeIsGone(kTreePatience)) report = own->process.TakeReport(kReportDeadline);
  if (!report.has_value()) {
    if (verbosity == Verbosity::kNormal) {
      PrintLine("processes of the command go on; pager " + std::to_string(own->process.pid()) +
                " serves them until the last one ends: hostmm stats --pager " +
                own->directory.SocketPath());
    }
    return;
  }
  if (verbosity == Verbosity::kNormal) {
    for (const std::string& line : *report) PrintLine(line);
  }
  own->directory.Remove();
}

int RunUnmanaged(const RunOptions& options, const Plan& plan, const ForwardedSignals& signals) {
  const std::vector<std::string> environment = ProcessEnvironment();
  OrFailure<RunningCommand> started =
      StartCommand(plan.file, options.command, environment, signals);
  if (const Failure* failure = FailureOf(started)) return Report(*failure);
  return ShellStatus(WaitForCommand(std::get<RunningCommand>(started), signals, nullptr));
}

int RunUnderOwnPager(const RunOptions& options, const Plan& plan, OwnPager own,
                     const ForwardedSignals& signals) {
  if (options.verbosity == Verbosity::kNormal) PrintLine(own.ready_line);
  const std::vector<std::string> environment = MergeEnvironment(
      ProcessEnvironment(), VariablesFor(options, own.library_path, own.directory.SocketPath()));
  OrFailure<RunningCommand> started =
      StartCommand(plan.file, options.command, environment, signals);
  if (const Failure* failure = FailureOf(started)) {
    own.process.Kill();
    own.directory.Remove();
    return Report(*failure);
  }
  const int status = WaitForCommand(std::get<RunningCommand>(started), signals, &own.process);
  FinishOwnPager(&own, options.verbosity);
  return ShellStatus(status);
}

int RunUnderPagerAt(const RunOptions& options, const Plan& plan, const ForwardedSignals& signals) {
  OrFailure<UniqueFd> probe = ConnectToPager(options.pager_socket);
  if (const Failure* failure = FailureOf(probe)) return Report(*failure);
  std::get<UniqueFd>(probe).reset();
  const std::string socket = Absolute(options.pager_socket);
  if (options.verbosity == Verbosity::kNormal) PrintLine("pager " + socket);
  if (NeedsLibraryCopy(plan.library) && options.verbosity == Verbosity::kNormal) {
    PrintLine(plan.library.path +
              ": other users cannot read it: processes that change their user run unmanaged; "
              "install hostmm in a folder that everybody can read");
  }
  const std::vector<std::string> environment =
      MergeEnvironment(ProcessEnvironment(), VariablesFor(options, plan.library.path, socket));
  OrFailure<RunningCommand> started =
      StartCommand(plan.file, options.command, environment, signals);
  if (const Failure* failure = FailureOf(started)) return Report(*failure);
  return ShellStatus(WaitForCommand(std::get<RunningCommand>(started), signals, nullptr));
}

}  // namespace

int RunCommand(const RunOptions& options, const PagerFunction& pager) {
  OrFailure<Plan> planned = MakePlan(options);
  if (const Failure* failure = FailureOf(planned)) return Report(*failure);
  const Plan& plan = std::get<Plan>(planned);
  if (options.launch == Launch::kDryRun) return PrintDryRun(options, plan);

  const ForwardedSignals signals;
  if (!options.pager_socket.empty()) return RunUnderPagerAt(options, plan, signals);
  StartedPager started = StartOwnPager(options, plan, pager, signals);
  if (auto* own = std::get_if<OwnPager>(&started)) {
    return RunUnderOwnPager(options, plan, std::move(*own), signals);
  }
  if (const auto* cut = std::get_if<PagerProcess::Interrupted>(&started)) {
    return kSignalStatusBase + cut->signal;
  }
  const Failure& failure = std::get<Failure>(started);
  if (options.strictness == Strictness::kStrict) return Report(failure);
  PrintLine(failure.text + "; the command runs unmanaged");
  return RunUnmanaged(options, plan, signals);
}

}  // namespace hostmm
