#include "tests/oracle/command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace hostmm::oracle {
namespace {

[[noreturn]] void Become(const std::vector<char*>& argv, const Environment& environment,
                         const char* out_path, const char* err_path) {
  // A test that is killed, because it took too long, leaves nothing behind.
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  const int in = open("/dev/null", O_RDONLY);
  const int out = open(out_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  const int err = open(err_path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  dup2(in, STDIN_FILENO);
  dup2(out, STDOUT_FILENO);
  dup2(err, STDERR_FILENO);
  close_range(3, ~0u, 0);
  unsetenv("LD_PRELOAD");
  unsetenv("HOSTMM_SOCKET");
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  execv(argv[0], argv.data());
  _exit(127);
}

}  // namespace

Command::Command(const std::vector<std::string>& words, const Environment& environment,
                 const std::string& out_path, const std::string& err_path) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  pid_ = fork();
  if (pid_ == 0) Become(argv, environment, out_path.c_str(), err_path.c_str());
  if (pid_ > 0) pidfd_ = test::ScopedFd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
}

Command::~Command() {
  if (pid_ <= 0) return;
  Signal(SIGKILL);
  waitpid(pid_, nullptr, 0);
}

Command::Command(Command&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)), pidfd_(std::move(other.pidfd_)) {}

Command& Command::operator=(Command&& other) noexcept {
  std::swap(pid_, other.pid_);
  std::swap(pidfd_, other.pidfd_);
  return *this;
}

bool Command::Runs() const {
  pollfd wait = {pidfd_.get(), POLLIN, 0};
  return pid_ > 0 && poll(&wait, 1, 0) == 0;
}

void Command::Signal(int number) const {
  if (pid_ > 0) kill(pid_, number);
}

int Command::Finish(std::chrono::milliseconds patience) {
  if (pid_ <= 0) return -1;
  pollfd wait = {pidfd_.get(), POLLIN, 0};
  const bool ended = poll(&wait, 1, static_cast<int>(patience.count())) == 1;
  if (!ended) Signal(SIGKILL);
  int status = 0;
  waitpid(std::exchange(pid_, -1), &status, 0);
  if (!ended) return -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace hostmm::oracle
