#include "tests/process/guest_runner.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <thread>
#include <utility>

#include "gtest/gtest.h"

namespace hostmm::test {
namespace {

using Clock = std::chrono::steady_clock;

// For every wait; longer than the patience of the guest programs, which name what they waited for.
// Both only find hangs.
constexpr auto kDeadline = std::chrono::seconds(120);

// Survives EndAllChildren: the pager serves the next case too.
pid_t g_spared = -1;

int MillisecondsUntil(Clock::time_point until) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

pid_t Start(const std::vector<std::string>& command, const Environment& environment, int out,
            int err) {
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  const int null = open("/dev/null", O_RDWR);
  dup2(null, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  close_range(3, ~0u, 0);
  unsetenv("LD_PRELOAD");
  unsetenv("HOSTMM_SOCKET");
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  execvp(argv[0], argv.data());
  _exit(200);
}

void Drain(ScopedFd* fd, std::string* text) {
  char buffer[4096];
  const ssize_t got = read(fd->get(), buffer, sizeof(buffer));
  if (got <= 0) {
    *fd = ScopedFd();
  } else {
    text->append(buffer, static_cast<size_t>(got));
  }
}

bool Answers(const std::string& path) {
  const ScopedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

}  // namespace

void Built::TakeFrom(int argc, char** argv) {
  std::vector<std::string*> wanted = {&hostmm, &library, &guest};
  size_t taken = 0;
  for (int i = 1; i < argc && taken < wanted.size(); ++i) {
    if (argv[i][0] != '-') *wanted[taken++] = std::filesystem::canonical(argv[i]);
  }
  prctl(PR_SET_CHILD_SUBREAPER, 1);
}

Program::Program(const std::vector<std::string>& command, const Environment& environment) {
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "pipe2: " << strerror(errno);
    return;
  }
  out_fd_ = ScopedFd(out[0]);
  err_fd_ = ScopedFd(err[0]);
  pid_ = Start(command, environment, out[1], err[1]);
  close(out[1]);
  close(err[1]);
}

Program::~Program() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Program::Signal(int number) const { kill(pid_, number); }

bool Program::ReadMore(int timeout_ms) {
  pollfd waits[] = {{out_fd_.get(), POLLIN, 0}, {err_fd_.get(), POLLIN, 0}};
  if (out_fd_.get() < 0 && err_fd_.get() < 0) return false;
  if (poll(waits, 2, timeout_ms) <= 0) return false;
  if (waits[0].revents != 0) Drain(&out_fd_, &out_);
  if (waits[1].revents != 0) Drain(&err_fd_, &err_);
  return true;
}

bool Program::AwaitOut(const std::string& text) {
  const Clock::time_point until = Clock::now() + kDeadline;
  while (out_.find(text) == std::string::npos) {
    if (!ReadMore(MillisecondsUntil(until))) return false;
  }
  return true;
}

Ended Program::Finish() {
  const Clock::time_point until = Clock::now() + kDeadline;
  while (ReadMore(MillisecondsUntil(until))) {
  }
  Ended ended;
  int status = 0;
  const bool open = out_fd_.get() >= 0 || err_fd_.get() >= 0;
  if (!open && Eventually([&] { return waitpid(pid_, &status, WNOHANG) == pid_; })) {
    pid_ = -1;
    ended.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  } else {
    ADD_FAILURE() << "it, or a child of it, did not end; so far:\n" << out_ << err_;
    EndAllChildren();
    pid_ = -1;
  }
  ended.out = out_;
  ended.err = err_;
  return ended;
}

Ended RunToEnd(const std::vector<std::string>& command, const Environment& environment) {
  return Program(command, environment).Finish();
}

ServicePager::ServicePager(std::vector<std::string> options) : options_(std::move(options)) {
  // Not below the test's own temporary folder: guests that have given up root must reach it too.
  char folder[] = "/tmp/hostmm-process.XXXXXX";
  if (mkdtemp(folder) == nullptr || chmod(folder, 0711) != 0) {
    ADD_FAILURE() << folder << ": " << strerror(errno);
    return;
  }
  folder_ = folder;
  socket_ = folder_ + "/socket";
  Start();
}

ServicePager::~ServicePager() {
  Kill();
  if (testing::Test::HasFailure()) {
    std::ifstream log(folder_ + "/log");
    std::cerr << "the pager said:\n" << log.rdbuf() << "\n";
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

void ServicePager::Start() {
  const ScopedFd log(open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600));
  std::vector<std::string> command = {Built::hostmm, "pager",  "--socket",
                                      socket_,       "--mode", "0666"};
  command.insert(command.end(), options_.begin(), options_.end());
  pager_ = hostmm::test::Start(command, {}, log.get(), log.get());
  g_spared = pager_;
  EXPECT_TRUE(Eventually([this] { return Answers(socket_); })) << "the pager does not serve";
}

void ServicePager::Signal(int number) const { kill(pager_, number); }

void ServicePager::Kill() {
  if (pager_ <= 0) return;
  kill(pager_, SIGKILL);
  int status = 0;
  waitpid(pager_, &status, 0);
  // It may have ended itself: by SIGTERM of the test, never by a failed check.
  const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  EXPECT_TRUE(killed || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) << "status " << status;
  // The kernel takes an io_uring apart after the process has gone; until then its polls hold the
  // listening socket, and a new pager would take the old one for alive.
  EXPECT_TRUE(Eventually([this] { return !Answers(socket_); }));
  pager_ = -1;
}

Environment ServicePager::GuestEnvironment() const {
  return {{"LD_PRELOAD", Built::library}, {"HOSTMM_SOCKET", socket_}};
}

Ended ServicePager::Ask(const std::string& question, const std::vector<std::string>& more) const {
  std::vector<std::string> command = {Built::hostmm, question, "--pager", socket_};
  command.insert(command.end(), more.begin(), more.end());
  return RunToEnd(command);
}

int64_t ServicePager::Stat(const std::string& key) const {
  const std::string json = Ask("stats", {"--json"}).out;
  const size_t at = json.find("\"" + key + "\":");
  return at == std::string::npos ? -1 : strtoll(json.c_str() + at + key.size() + 3, nullptr, 10);
}

void ServicePager::ExpectNoTrace() const {
  std::string dump;
  std::string stats;
  const bool gone = Eventually([&] {
    dump = Ask("dump").out;
    stats = Ask("stats", {"--json"}).out;
    return dump.empty() && stats.find("\"files\":[]") != std::string::npos &&
           stats.find("\"outstanding_faults\":0") != std::string::npos;
  });
  EXPECT_TRUE(gone) << "the pager keeps a trace:\n" << dump << stats;
  const Ended check = Ask("check");
  EXPECT_EQ(check.status, 0) << check.out << check.err;
  EXPECT_EQ(Stat("unaccounted"), 0);
}

bool Eventually(const std::function<bool()>& condition) {
  const Clock::time_point until = Clock::now() + kDeadline;
  while (!condition()) {
    if (Clock::now() > until) return condition();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

void EndAllChildren() {
  const std::string list =
      "/proc/self/task/" + std::to_string(static_cast<long>(getpid())) + "/children";
  for (int round = 0; round < 100; ++round) {
    std::ifstream file(list);
    bool any = false;
    for (pid_t child = 0; file >> child;) {
      if (child == g_spared) continue;
      any = true;
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
    if (!any) return;
  }
}

}  // namespace hostmm::test
