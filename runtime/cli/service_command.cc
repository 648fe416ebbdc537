#include "runtime/cli/service_command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/cli/control_socket.h"

namespace hostmm {
namespace {

// It only copies one line; arbitrary.
constexpr int kAnnounceDeadlineMs = 2000;

// The first line, or what there is of it when the writer has gone.
std::string ReadLine(const UniqueFd& fd) {
  std::string text;
  std::array<char, 4096> buffer;  // arbitrary: it is one line
  for (;;) {
    const ssize_t got = read(fd.get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return text;
    text.append(buffer.data(), static_cast<size_t>(got));
    if (const size_t end = text.find('\n'); end != std::string::npos) return text.substr(0, end);
  }
}

// Prints what the pager says about its start, then ends the process. `ready` is the read end of its
// pipe.
[[noreturn]] void AnnounceAndExit(const UniqueFd& ready, const std::string& socket_path) {
  constexpr std::string_view kError = "error=";
  const std::string line = ReadLine(ready);
  if (line.starts_with(kError)) {
    PrintLine("pager: " + line.substr(kError.size()));
  } else if (!line.empty()) {
    PrintLine("serving " + socket_path + " " + FormatReadyLine(line));
  }
  _exit(0);
}

// Starts the announcing process. RETURNS a descriptor whose end of file says that it has printed;
// not ok: nothing is announced, which is no reason not to serve. It is nobody's child (the pager
// would keep it as a zombie), and it ignores the signals that end the pager: a start that fails is
// told even if somebody is ending us already.
UniqueFd StartAnnouncer(UniqueFd ready_read, UniqueFd* ready_write, int listen_fd,
                        const std::string& socket_path) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return UniqueFd();
  UniqueFd printed(ends[0]);
  const UniqueFd printing(ends[1]);
  const pid_t pid = fork();
  if (pid == 0) {
    if (fork() != 0) _exit(0);
    ready_write->reset();
    close(listen_fd);
    for (const int number : {SIGINT, SIGTERM, SIGHUP}) signal(number, SIG_IGN);
    AnnounceAndExit(ready_read, socket_path);
  }
  if (pid > 0) waitpid(pid, nullptr, 0);
  return printed;
}

// Lets it print what the pager said last.
void AwaitAnnouncer(const UniqueFd& printed) {
  pollfd wait = {printed.get(), POLLIN, 0};
  if (printed.ok()) poll(&wait, 1, kAnnounceDeadlineMs);
}

// Who started it waits for the end of file; it must not wait for what the pager starts, if
// anything.
void KeepToOurselves(int fd) { fcntl(fd, F_SETFD, FD_CLOEXEC); }

// The folder that was made for the socket of a pager of somebody's own. Another is not ours to
// remove.
void RemovePrivateFolder(const std::string& socket_path) {
  const std::string folder = socket_path.substr(0, socket_path.rfind('/'));
  if (folder.substr(folder.rfind('/') + 1).starts_with("hostmm-")) rmdir(folder.c_str());
}

// Tells `ready_fd` in the form that pagers use.
int RefuseOn(int ready_fd, const Failure& failure) {
  const std::string line = "error=" + failure.text + "\n";
  [[maybe_unused]] const ssize_t written = write(ready_fd, line.data(), line.size());
  return ToInt(failure.status);
}

PagerOptions PagerOptionsOf(const ServiceOptions& options, int listen_fd, int ready_fd) {
  PagerOptions pager_options;
  pager_options.socket_path = options.socket_path;
  pager_options.listen_fd = listen_fd;
  pager_options.frames = options.frames;
  pager_options.pt_budget_bytes = options.pt_budget_bytes;
  pager_options.snapshot_memory_bytes = options.snapshot_memory_bytes;
  pager_options.lifetime = options.lifetime;
  pager_options.ready_fd = ready_fd;
  pager_options.strict = options.strictness == Strictness::kStrict;
  return pager_options;
}

// A program's own pager (hostmm_open).
int RunInBackground(const ServiceOptions& options, const PagerFunction& pager) {
  KeepToOurselves(options.ready_fd);
  OrFailure<ListeningSocket> listened = ListenAt(options.socket_path, options.socket_mode);
  if (const Failure* failure = FailureOf(listened)) return RefuseOn(options.ready_fd, *failure);
  ListeningSocket& listening = std::get<ListeningSocket>(listened);
  EnterBackground({listening.fd.get(), options.ready_fd});
  const int status = pager(PagerOptionsOf(options, listening.fd.release(), options.ready_fd));
  RemoveSocket(listening);
  if (options.lifetime == PagerOptions::Lifetime::kUntilLastGuest) {
    RemovePrivateFolder(options.socket_path);
  }
  return status;
}

}  // namespace

int RunService(const ServiceOptions& options, const PagerFunction& pager) {
  if (options.ready_fd >= 0) return RunInBackground(options, pager);
  OrFailure<ListeningSocket> listened = ListenAt(options.socket_path, options.socket_mode);
  if (const Failure* failure = FailureOf(listened)) return Report(*failure);
  ListeningSocket& listening = std::get<ListeningSocket>(listened);

  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) {
    const int error = errno;
    RemoveSocket(listening);
    return Report(
        MakeFailure(ExitStatus::kLimitTooLow, "pipe", ErrnoText(error), "raise 'ulimit -n'"));
  }
  UniqueFd ready_write(ends[1]);
  const UniqueFd printed =
      StartAnnouncer(UniqueFd(ends[0]), &ready_write, listening.fd.get(), options.socket_path);

  const int status = pager(PagerOptionsOf(options, listening.fd.release(), ready_write.release()));
  RemoveSocket(listening);
  if (options.lifetime == PagerOptions::Lifetime::kUntilLastGuest) {
    RemovePrivateFolder(options.socket_path);
  }
  AwaitAnnouncer(printed);
  return status;
}

}  // namespace hostmm
