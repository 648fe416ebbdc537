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

}  // namespace

int RunService(const ServiceOptions& options, const PagerFunction& pager) {
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

  PagerOptions pager_options;
  pager_options.socket_path = options.socket_path;
  pager_options.listen_fd = listening.fd.release();
  pager_options.frames = options.frames;
  pager_options.pt_budget_bytes = options.pt_budget_bytes;
  pager_options.lifetime = PagerOptions::Lifetime::kService;
  pager_options.ready_fd = ready_write.release();
  pager_options.strict = options.strictness == Strictness::kStrict;
  const int status = pager(pager_options);
  RemoveSocket(listening);
  AwaitAnnouncer(printed);
  return status;
}

}  // namespace hostmm
