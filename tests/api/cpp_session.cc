#include "tests/api/cpp_session.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <system_error>

#include "gtest/gtest.h"
#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"

namespace hostmm::test {
namespace {

bool Serves(const std::string& path) {
  const ScopedFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

}  // namespace

Session OpenSession() {
  absl::StatusOr<Session> session = Session::Open();
  if (session.ok()) return *std::move(session);
  ADD_FAILURE() << session.status();
  return Session();
}

TestPager::TestPager() {
  // Not below the test's own folder: those that have given up root must reach it too.
  char folder[] = "/tmp/hostmm-api.XXXXXX";
  const char* program = getenv("HOSTMM_PROGRAM");
  if (program == nullptr || mkdtemp(folder) == nullptr || chmod(folder, 0711) != 0) {
    ADD_FAILURE() << "HOSTMM_PROGRAM or " << folder << ": " << strerror(errno);
    return;
  }
  folder_ = folder;
  socket_ = folder_ + "/socket";
  const std::string log = folder_ + "/log";
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // a test that crashes leaves none behind
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    execl(program, program, "pager", "--socket", socket_.c_str(), "--mode", "0666", nullptr);
    _exit(127);
  }
  EXPECT_TRUE(PollUntil(Deadline(kStepDeadline), [this] { return Serves(socket_); }))
      << "the pager does not serve";
}

TestPager::~TestPager() {
  Kill();
  if (testing::Test::HasFailure()) {
    std::ifstream log(folder_ + "/log");
    std::cerr << "the pager said:\n" << log.rdbuf() << "\n";
  }
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

void TestPager::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

testing::AssertionResult Refused(const absl::Status& status, int error, const std::string& name) {
  if (ErrnoOf(status) != error) {
    return testing::AssertionFailure() << "not " << strerror(error) << ": " << status;
  }
  if (status.message().find(name + "(") == absl::string_view::npos) {
    return testing::AssertionFailure() << "does not name " << name << ": " << status;
  }
  return testing::AssertionSuccess();
}

std::string SharedMappings() {
  std::ifstream maps("/proc/self/maps");
  std::string shared;
  for (std::string line; std::getline(maps, line);) {
    const size_t rights = line.find(' ');
    const bool is_shared = rights != std::string::npos && line[rights + 4] == 's';
    if (is_shared && line.find("/memfd:hostmm-acks") == std::string::npos) shared += line + "\n";
  }
  return shared;
}

}  // namespace hostmm::test
