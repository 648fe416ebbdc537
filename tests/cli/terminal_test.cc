// Ctrl-C: `hostmm run` on a terminal of its own. The terminal signals the whole foreground group,
// so the command must get SIGINT exactly once, and nothing may be left behind. Process tier; no
// kernel feature.

#include <poll.h>
#include <pty.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cli/installed_hostmm.h"
#include "tests/cli/process.h"

namespace hostmm::test {
namespace {

// Reads from the terminal until `text` has come. RETURNS whether it did.
bool AwaitText(int terminal, const std::string& text, std::string* seen) {
  return Eventually([&] {
    pollfd wait = {terminal, POLLIN, 0};
    char buffer[512];
    if (poll(&wait, 1, 10) == 1) {
      const ssize_t got = read(terminal, buffer, sizeof(buffer));
      if (got > 0) seen->append(buffer, static_cast<size_t>(got));
    }
    return seen->find(text) != std::string::npos;
  });
}

TEST(TerminalTest, CtrlCReachesTheCommandOnceAndLeavesNothing) {
  const InstalledHostmm hostmm;
  // Goes on for a while after the first signal, so that a second one would be counted.
  const std::string script =
      "n=0; trap 'n=$((n+1)); echo got=$n' INT; echo up; "
      "while [ $n -eq 0 ]; do sleep 0.02; done; sleep 0.1; sleep 0.1; exit 6";
  const Launch launch = hostmm.Command({"run", "--quiet", "sh", "-c", script});
  int terminal = -1;
  const pid_t pid = forkpty(&terminal, nullptr, nullptr, nullptr);
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    for (const auto& [name, value] : launch.environment) setenv(name.c_str(), value.c_str(), 1);
    std::vector<char*> argv;
    for (const std::string& word : launch.command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    execv(argv[0], argv.data());
    _exit(200);
  }
  std::string seen;
  EXPECT_TRUE(AwaitText(terminal, "up", &seen)) << seen;
  EXPECT_EQ(write(terminal, "\x03", 1), 1);
  int status = 0;
  bool ended = false;
  AwaitText(terminal, "got=1", &seen);
  EXPECT_TRUE(Eventually([&] {
    ended = ended || waitpid(pid, &status, WNOHANG) == pid;
    return ended;
  }));
  if (!ended) {
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
  }
  AwaitText(terminal, "got=1", &seen);
  close(terminal);
  EXPECT_THAT(seen, ::testing::HasSubstr("got=1"));
  EXPECT_THAT(seen, ::testing::Not(::testing::HasSubstr("got=2")));
  EXPECT_EQ(WEXITSTATUS(status), 6);
  EXPECT_TRUE(Eventually([&] { return hostmm.NothingLeft(); }));
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    fprintf(stderr, "usage: terminal_test HOSTMM LIBRARY\n");
    return 2;
  }
  hostmm::test::Sources::binary = argv[1];
  hostmm::test::Sources::library = argv[2];
  return RUN_ALL_TESTS();
}
