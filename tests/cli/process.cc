#include "tests/cli/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "gtest/gtest.h"

namespace hostmm::test {
namespace {

using Clock = std::chrono::steady_clock;

// For every wait; far more than anything here needs on a loaded machine.
constexpr auto kDeadline = std::chrono::seconds(20);

int MillisecondsUntil(Clock::time_point until) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  return left > 0 ? static_cast<int>(left) : 0;
}

// RETURNS false at end of file.
bool Drain(UniqueFd* fd, std::string* text) {
  char buffer[4096];
  const ssize_t got = read(fd->get(), buffer, sizeof(buffer));
  if (got <= 0) {
    fd->reset();
    return false;
  }
  text->append(buffer, static_cast<size_t>(got));
  return true;
}

}  // namespace

Process::Process(const Launch& launch) {
  int out[2];
  int err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) {
    ADD_FAILURE() << "pipe2";
    return;
  }
  out_fd_.reset(out[0]);
  err_fd_.reset(err[0]);
  pid_ = fork();
  if (pid_ == 0) {
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, STDIN_FILENO);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    for (const auto& [name, value] : launch.environment) setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv;
    for (const std::string& word : launch.command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    launch.prepare();
    execv(argv[0], argv.data());
    _exit(200);
  }
  close(out[1]);
  close(err[1]);
}

Process::~Process() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Process::Signal(int number) const { kill(pid_, number); }

bool Process::ReadMore(int timeout_ms) {
  pollfd waits[] = {{out_fd_.get(), POLLIN, 0}, {err_fd_.get(), POLLIN, 0}};
  if (!out_fd_.ok() && !err_fd_.ok()) return false;
  if (poll(waits, 2, timeout_ms) <= 0) return false;
  if (waits[0].revents != 0) Drain(&out_fd_, &out_);
  if (waits[1].revents != 0) Drain(&err_fd_, &err_);
  return true;
}

bool Process::Await(const std::string& text, std::string* from) {
  const Clock::time_point until = Clock::now() + kDeadline;
  while (from->find(text) == std::string::npos) {
    if (!ReadMore(MillisecondsUntil(until))) return false;
  }
  return true;
}

Outcome Process::Finish() {
  const Clock::time_point until = Clock::now() + kDeadline;
  while (ReadMore(MillisecondsUntil(until))) {
  }
  Outcome outcome;
  int status = 0;
  const bool ended = Eventually([&] { return waitpid(pid_, &status, WNOHANG) == pid_; });
  if (ended) {
    pid_ = -1;
    outcome.status = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  } else {
    ADD_FAILURE() << "did not end; its output so far: " << out_ << err_;
  }
  outcome.out = out_;
  outcome.err = err_;
  return outcome;
}

Outcome RunToEnd(const Launch& launch) { return Process(launch).Finish(); }

bool Eventually(const std::function<bool()>& condition) {
  const Clock::time_point until = Clock::now() + kDeadline;
  while (!condition()) {
    if (Clock::now() > until) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

std::vector<pid_t> ChildrenNamed(pid_t pid, const std::string& name) {
  std::vector<pid_t> found;
  const std::string number = std::to_string(pid);
  std::ifstream list("/proc/" + number + "/task/" + number + "/children");
  for (pid_t child = 0; list >> child;) {
    std::ifstream comm("/proc/" + std::to_string(child) + "/comm");
    std::string comm_name;
    if (std::getline(comm, comm_name) && comm_name == name) found.push_back(child);
  }
  return found;
}

bool IsAlive(pid_t pid) {
  std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(stat, line)) return false;
  const size_t end = line.rfind(')');
  return end != std::string::npos && line.compare(end, 4, ") Z ") != 0;
}

}  // namespace hostmm::test
