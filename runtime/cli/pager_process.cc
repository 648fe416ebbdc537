#include "runtime/cli/pager_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <utility>

#include "runtime/cli/command_process.h"

namespace hostmm {
namespace {

using Clock = std::chrono::steady_clock;

// Programs count on low numbers for themselves (shells use single digits and 255); half of a small
// limit otherwise.
constexpr int kHighDescriptor = 700;

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;
};

OrFailure<Pipe> MakePipe() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    return MakeFailure(ExitStatus::kLimitTooLow, "pipe", ErrnoText(errno), "raise 'ulimit -n'");
  }
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// Moves the write end to a high number and makes it inheritable.
UniqueFd MakeInheritable(UniqueFd fd) {
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const int half = static_cast<int>(std::min<rlim_t>(limit.rlim_cur / 2, INT_MAX));
  const int moved = fcntl(fd.get(), F_DUPFD, std::min(kHighDescriptor, half));
  if (moved >= 0) return UniqueFd(moved);
  fcntl(fd.get(), F_SETFD, 0);
  return fd;
}

int PollTimeout(Clock::time_point until) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
  return static_cast<int>(std::clamp<decltype(left)>(left, 0, INT_MAX));
}

// Reads what is there into `text`. RETURNS false at end of file.
bool ReadSome(const UniqueFd& fd, std::string* text) {
  std::array<char, 4096> buffer;  // arbitrary: the lines are short
  const ssize_t got = read(fd.get(), buffer.data(), buffer.size());
  if (got <= 0) return got < 0 && (errno == EAGAIN || errno == EINTR);
  text->append(buffer.data(), static_cast<size_t>(got));
  return true;
}

std::vector<std::string> SplitLines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// Closes all descriptors above standard error but `keep`. The pager must not hold what its user's
// shell had open: a lock would stay locked, the reader of a pipe would wait for ever.
void CloseAllBut(std::vector<int> keep) {
  std::ranges::sort(keep);
  unsigned first = STDERR_FILENO + 1;
  for (const int fd : keep) {
    const unsigned number = static_cast<unsigned>(fd);
    if (fd < 0 || number < first) continue;
    if (number > first) close_range(first, number - 1, 0);
    first = number + 1;
  }
  close_range(first, UINT_MAX, 0);
}

void RedirectStandardFiles() {
  const int null = open("/dev/null", O_RDWR);
  int log = -1;
  // A pager of `run` has no terminal; whoever wants to see what it says names a file.
  if (const char* path = std::getenv("HOSTMM_PAGER_LOG"); path != nullptr && *path != '\0') {
    log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
  }
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  dup2(log >= 0 ? log : null, STDERR_FILENO);
}

void SetPagerSignals() {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  // The user's terminal and shell do not end it (its guests do), nor does `run` when it leaves the
  // report unread.
  for (const int number : {SIGINT, SIGQUIT, SIGHUP, SIGTSTP, SIGTTIN, SIGTTOU, SIGPIPE}) {
    sigaction(number, &ignore, nullptr);
  }
  struct sigaction standard = {};
  standard.sa_handler = SIG_DFL;
  for (const int number : {SIGTERM, SIGCHLD, SIGUSR1, SIGUSR2}) {
    sigaction(number, &standard, nullptr);
  }
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

[[noreturn]] void BecomePager(const PagerFunction& pager, const PagerOptions& options,
                              const RuntimeDir& directory) {
  EnterBackground({options.listen_fd, options.life_fd, options.ready_fd, options.report_fd});
  const int status = pager(options);
  directory.Remove();
  _exit(status);
}

}  // namespace

void EnterBackground(const std::vector<int>& keep) {
  SetPagerSignals();
  setsid();
  RedirectStandardFiles();
  CloseAllBut(keep);
  // Not the working directory of a user who may want to unmount it.
  [[maybe_unused]] const int changed = chdir("/");
  prctl(PR_SET_NAME, "hostmm-pager");
}

std::string FormatReadyLine(std::string_view line) {
  constexpr std::string_view kWhy = " why=";
  const size_t why = line.find(kWhy);
  if (why == std::string_view::npos) return std::string(line);
  const std::string_view reason = line.substr(why + kWhy.size());
  std::string text(line.substr(0, why));
  if (!reason.empty()) text.append(" (").append(reason).append(")");
  return text;
}

OrFailure<PagerProcess> PagerProcess::Start(const PagerFunction& pager, const Settings& settings,
                                            const RuntimeDir& directory) {
  OrFailure<ListeningSocket> listening = ListenAt(directory.SocketPath(), 0666);
  if (const Failure* failure = FailureOf(listening)) return *failure;
  std::array<Pipe, 3> pipes;  // life, ready, report
  for (Pipe& pipe : pipes) {
    OrFailure<Pipe> made = MakePipe();
    if (const Failure* failure = FailureOf(made)) return *failure;
    pipe = std::get<Pipe>(std::move(made));
  }
  auto& [life, ready, report] = pipes;

  PagerOptions options;
  options.socket_path = directory.SocketPath();
  options.frames = settings.frames;
  options.pt_budget_bytes = settings.pt_budget_bytes;
  options.snapshot_memory_bytes = settings.snapshot_memory_bytes;
  options.lifetime = PagerOptions::Lifetime::kUntilLastGuest;
  options.strict = settings.strict;
  options.listen_fd = std::get<ListeningSocket>(listening).fd.get();
  options.life_fd = life.read_end.get();
  options.ready_fd = ready.write_end.get();
  options.report_fd = report.write_end.get();

  const pid_t pid = fork();
  if (pid < 0) {
    return MakeFailure(ExitStatus::kLimitTooLow, "pager", "fork: " + ErrnoText(errno),
                       "raise 'ulimit -u'");
  }
  if (pid == 0) BecomePager(pager, options, directory);

  PagerProcess process;
  process.pid_ = pid;
  process.pidfd_ = OpenPidfd(pid);
  process.ready_ = std::move(ready.read_end);
  process.report_ = std::move(report.read_end);
  process.life_read_ = std::move(life.read_end);
  process.life_write_ = MakeInheritable(std::move(life.write_end));
  return process;
}

PagerProcess::Ready PagerProcess::WaitReady(const ForwardedSignals& signals,
                                            std::chrono::milliseconds deadline) {
  const Clock::time_point until = Clock::now() + deadline;
  std::string text;
  while (text.find('\n') == std::string::npos) {
    pollfd waits[] = {{ready_.get(), POLLIN, 0}, {signals.fd(), POLLIN, 0}};
    const int ready = poll(waits, 2, PollTimeout(until));
    if (ready < 0 && errno != EINTR) break;
    if (waits[1].revents != 0) {
      if (const auto signal = signals.Take()) {
        Kill();
        return Interrupted{signal->number};
      }
    }
    if (ready == 0) {
      Kill();
      return MakeFailure(ExitStatus::kInternal, "pager",
                         "did not get ready in " + std::to_string(deadline.count()) + " ms",
                         "see what it says: set HOSTMM_PAGER_LOG to a file");
    }
    if (waits[0].revents != 0 && !ReadSome(ready_, &text)) break;
  }
  ready_.reset();
  const std::vector<std::string> lines = SplitLines(text);
  constexpr std::string_view kError = "error=";
  if (!lines.empty() && !lines.front().starts_with(kError)) return FormatReadyLine(lines.front());
  pollfd ended = {pidfd_.get(), POLLIN, 0};
  if (poll(&ended, 1, PollTimeout(until)) != 1) Kill();
  const std::string end = DescribeEnd();
  const ExitStatus status = WIFEXITED(*wait_status_) && WEXITSTATUS(*wait_status_) != 0
                                ? ExitStatusFromCode(WEXITSTATUS(*wait_status_))
                                : ExitStatus::kInternal;
  if (lines.empty()) {
    return MakeFailure(status, "pager", "ended before it was ready: " + end,
                       "see what it says: set HOSTMM_PAGER_LOG to a file");
  }
  return MakeFailure(status, "pager", std::string_view(lines.front()).substr(kError.size()), "");
}

bool PagerProcess::TreeIsGone(std::chrono::milliseconds patience) const {
  // POLLHUP comes without being asked for.
  pollfd wait = {life_read_.get(), 0, 0};
  return poll(&wait, 1, static_cast<int>(patience.count())) == 1;
}

std::optional<std::vector<std::string>> PagerProcess::TakeReport(
    std::chrono::milliseconds deadline) {
  const Clock::time_point until = Clock::now() + deadline;
  std::string text;
  for (;;) {
    pollfd wait = {report_.get(), POLLIN, 0};
    const int ready = poll(&wait, 1, PollTimeout(until));
    if (ready == 0) return std::nullopt;
    if (ready > 0 && !ReadSome(report_, &text)) break;
  }
  pollfd end = {pidfd_.get(), POLLIN, 0};
  if (poll(&end, 1, PollTimeout(until)) == 1) Reap();
  return SplitLines(text);
}

std::string PagerProcess::DescribeEnd() {
  Reap();
  if (WIFSIGNALED(*wait_status_)) return "signal " + std::to_string(WTERMSIG(*wait_status_));
  return "exit status " + std::to_string(WEXITSTATUS(*wait_status_));
}

void PagerProcess::Reap() {
  if (wait_status_.has_value()) return;
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  wait_status_ = status;
}

void PagerProcess::Kill() {
  if (wait_status_.has_value()) return;
  kill(pid_, SIGKILL);
  Reap();
}

}  // namespace hostmm
