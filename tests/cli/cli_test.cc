// The command line as a person and a script meet it, with a pager that manages no memory: every
// error line and exit status, and the life of `run` and its pager. Process tier; no kernel feature.

#include <poll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/exit_status.h"
#include "runtime/cli/version.h"
#include "tests/cli/installed_hostmm.h"
#include "tests/cli/process.h"

namespace hostmm::test {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;
namespace fs = std::filesystem;

using Words = std::vector<std::string>;

constexpr uid_t kNobody = 65534;

int LineCount(const std::string& text) {
  return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
}

// One line "hostmm: ... `text` ...", nothing on standard output, that status.
void ExpectRefusal(const Outcome& outcome, ExitStatus status, const std::string& text) {
  EXPECT_EQ(outcome.status, ToInt(status)) << outcome.err;
  EXPECT_THAT(outcome.err, StartsWith("hostmm: "));
  EXPECT_THAT(outcome.err, HasSubstr(text));
  EXPECT_EQ(LineCount(outcome.err), 1) << outcome.err;
  EXPECT_EQ(outcome.out, "");
}

class CliTest : public ::testing::Test {
 protected:
  // Every test but those of daemons ends with an empty directory.
  void TearDown() override {
    EXPECT_TRUE(Eventually([&] { return hostmm_.NothingLeft(); })) << "a directory was left behind";
  }

  Outcome RunWith(const std::string& behaviour, const Words& words) {
    Launch launch = hostmm_.Command(words);
    launch.environment.emplace_back("HOSTMM_FAKE_PAGER", behaviour);
    return RunToEnd(launch);
  }

  InstalledHostmm hostmm_;
};

TEST_F(CliTest, BadUseIsOneLineAndStatus64) {
  ExpectRefusal(hostmm_.Run({}), ExitStatus::kUsage, "no subcommand");
  ExpectRefusal(hostmm_.Run({"frobnicate"}), ExitStatus::kUsage, "unknown subcommand");
  ExpectRefusal(hostmm_.Run({"run"}), ExitStatus::kUsage, "no command");
  ExpectRefusal(hostmm_.Run({"run", "--loud", "true"}), ExitStatus::kUsage, "unknown option");
  ExpectRefusal(hostmm_.Run({"help", "nothing"}), ExitStatus::kUsage, "no such subcommand");
  ExpectRefusal(hostmm_.Run({"stats"}), ExitStatus::kUsage, "which pager?");
  ExpectRefusal(hostmm_.Run({"run", "--fr\names=1", "true"}), ExitStatus::kUsage, "--fr?ames");
}

TEST_F(CliTest, HelpAndVersion) {
  EXPECT_EQ(hostmm_.Run({"--version"}).out, "hostmm " HOSTMM_VERSION "\n");
  const Outcome help = hostmm_.Run({"help"});
  EXPECT_EQ(help.status, 0);
  EXPECT_THAT(help.out, HasSubstr("hostmm doctor"));
  EXPECT_THAT(hostmm_.Run({"run", "--help"}).out, HasSubstr("--dry-run"));
}

TEST_F(CliTest, VersionThatCannotBeWrittenIsAFailure) {
  Launch launch = hostmm_.Command({"--version"});
  launch.prepare = [] {
    if (freopen("/dev/full", "w", stdout) == nullptr) _exit(201);
  };
  EXPECT_EQ(RunToEnd(launch).status, ToInt(ExitStatus::kInternal));
}

TEST_F(CliTest, CommandNotFoundAndNotExecutable) {
  ExpectRefusal(hostmm_.Run({"run", "no-such-command"}), ExitStatus::kNotFound,
                "no-such-command: command not found");
  ExpectRefusal(hostmm_.Run({"run", "/no/such/file"}), ExitStatus::kNotFound, "not found");
  const std::string plain = hostmm_.dir().Write("plain", "no program");
  ExpectRefusal(hostmm_.Run({"run", plain}), ExitStatus::kNotExecutable, "cannot be executed");
  ExpectRefusal(hostmm_.Run({"run", hostmm_.dir().path()}), ExitStatus::kNotExecutable,
                "cannot be executed");
}

TEST_F(CliTest, FailureOfExecItselfLeavesNothingBehind) {
  const std::string script = hostmm_.dir().Write("script", "#!/no/such/interpreter\n");
  fs::permissions(script, fs::perms::owner_all);
  const Outcome outcome = hostmm_.Run({"run", "--quiet", script});
  ExpectRefusal(outcome, ExitStatus::kNotFound, "interpreter of a script");
}

TEST_F(CliTest, RunEndsWithTheStatusOfItsCommand) {
  EXPECT_EQ(hostmm_.Run({"run", "true"}).status, 0);
  EXPECT_EQ(hostmm_.Run({"run", "--", "sh", "-c", "exit 7"}).status, 7);
  EXPECT_EQ(hostmm_.Run({"run", "sh", "-c", "kill -9 $$"}).status, 128 + SIGKILL);
}

TEST_F(CliTest, RunSaysWhatItDoesAtTheStartAndAtTheEnd) {
  const Outcome outcome = hostmm_.Run({"run", "--frames=base", "sh", "-c", "echo work"});
  EXPECT_EQ(outcome.out, "work\n");
  EXPECT_EQ(outcome.err,
            "hostmm: mode=fake frames=base (this is a test)\n"
            "hostmm: served 0 guests\n"
            "hostmm: saved nothing\n");
}

TEST_F(CliTest, QuietIsQuiet) {
  const Outcome outcome = hostmm_.Run({"run", "--quiet", "sh", "-c", "echo $HOSTMM_QUIET"});
  EXPECT_EQ(outcome.out, "1\n");
  EXPECT_EQ(outcome.err, "");
}

TEST_F(CliTest, CommandSeesTheSocketAndTheLibrary) {
  const Outcome outcome =
      hostmm_.Run({"run", "--only=a:b", "sh", "-c",
                   "test -S $HOSTMM_SOCKET && echo socket; test -r ${LD_PRELOAD%%:*} && echo lib; "
                   "echo only=$HOSTMM_ONLY strict=$HOSTMM_STRICT; dirname $HOSTMM_SOCKET"});
  EXPECT_THAT(outcome.out, StartsWith("socket\nlib\nonly=a:b strict=\n" + hostmm_.sockets()));
}

TEST_F(CliTest, RootsCommandCanLoadTheLibraryAsAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "only root's command can change its user";
  // mkdtemp made the directory for its owner only; the sockets must be reachable, as /run is.
  ASSERT_EQ(chmod(hostmm_.dir().path().c_str(), 0711), 0);
  fs::permissions(hostmm_.library(), fs::perms::owner_read);
  const Outcome outcome = hostmm_.Run(
      {"run", "--quiet", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c",
       "test -r $LD_PRELOAD && echo readable; test -w $HOSTMM_SOCKET && echo connectable"});
  EXPECT_EQ(outcome.out, "readable\nconnectable\n") << outcome.err;
}

TEST_F(CliTest, DryRunStartsNothing) {
  const Outcome outcome =
      hostmm_.Run({"run", "--dry-run", "--only=sh", "--strict", "sh", "-c", "touch it's here"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, HasSubstr("pager: its own, --frames=auto\n"));
  EXPECT_THAT(outcome.out, HasSubstr("\nHOSTMM_ONLY=sh\nHOSTMM_STRICT=1\n"));
  EXPECT_THAT(outcome.out, EndsWith("command: sh -c 'touch it'\\''s here'\n"));
  EXPECT_TRUE(hostmm_.NothingLeft());
}

TEST_F(CliTest, PagerThatRefusesRunsTheCommandUnmanaged) {
  const Outcome outcome =
      RunWith("refuse", {"run", "sh", "-c", "echo preload=$LD_PRELOAD socket=$HOSTMM_SOCKET"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out, "preload= socket=\n");
  EXPECT_EQ(outcome.err,
            "hostmm: pager: the fake kernel lacks everything; install a real one; the command runs "
            "unmanaged\n");
}

TEST_F(CliTest, StrictRefusesInstead) {
  ExpectRefusal(RunWith("refuse", {"run", "--strict", "echo", "hello"}), ExitStatus::kStrictRefused,
                "the fake kernel lacks everything");
}

TEST_F(CliTest, PagerThatDiesAtItsStart) {
  const Outcome outcome = RunWith("die", {"run", "echo", "hello"});
  EXPECT_EQ(outcome.out, "hello\n");
  EXPECT_THAT(outcome.err, HasSubstr("ended before it was ready: exit status 70"));
  ExpectRefusal(RunWith("die", {"run", "--strict", "echo", "hello"}), ExitStatus::kInternal,
                "ended before it was ready");
}

TEST_F(CliTest, SignalWhileThePagerStartsEndsAll) {
  Launch launch = hostmm_.Command({"run", "echo", "hello"});
  launch.environment.emplace_back("HOSTMM_FAKE_PAGER", "mute");
  Process process(launch);
  ASSERT_TRUE(Eventually([&] { return !ChildrenNamed(process.pid(), "hostmm-pager").empty(); }));
  const pid_t pager = ChildrenNamed(process.pid(), "hostmm-pager").front();
  process.Signal(SIGTERM);
  const Outcome outcome = process.Finish();
  EXPECT_EQ(outcome.status, 128 + SIGTERM);
  EXPECT_EQ(outcome.out, "");
  EXPECT_FALSE(IsAlive(pager));
}

TEST_F(CliTest, StrictRefusesProgramsThatTheLibraryCannotEnter) {
  std::string header(64, '\0');
  header.replace(0, 5,
                 "\x7f"
                 "ELF\x02");
  const std::string program = hostmm_.dir().Write("static", header);
  fs::permissions(program, fs::perms::owner_all);
  ExpectRefusal(hostmm_.Run({"run", "--strict", program}), ExitStatus::kStrictRefused,
                "statically linked");
}

TEST_F(CliTest, LibraryThatIsAbsentOrOfAnotherVersion) {
  std::ifstream in(hostmm_.library(), std::ios::binary);
  std::string content((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const size_t mark = content.find(HOSTMM_PRELOAD_MARK);
  ASSERT_NE(mark, std::string::npos) << "the library has no mark";
  content[mark + sizeof(HOSTMM_PRELOAD_MARK_PREFIX) - 1] = '9';
  hostmm_.dir().Write("libhostmm_preload.so", content);
  ExpectRefusal(hostmm_.Run({"run", "true"}), ExitStatus::kVersionMismatch, "is of version 9");
  fs::remove(hostmm_.library());
  ExpectRefusal(hostmm_.Run({"run", "true"}), ExitStatus::kNoPreload, "found neither in");
}

TEST_F(CliTest, LimitOfOpenFilesThatIsTooLow) {
  Launch launch = hostmm_.Command({"run", "--strict", "true"});
  launch.prepare = [] {
    const rlimit limit = {6, 6};
    setrlimit(RLIMIT_NOFILE, &limit);
  };
  ExpectRefusal(RunToEnd(launch), ExitStatus::kLimitTooLow, "ulimit -n");
}

TEST_F(CliTest, SocketPathsThatCannotBe) {
  const std::string too_long = "/tmp/" + std::string(120, 'x');
  ExpectRefusal(hostmm_.Run({"pager", "--socket", too_long}), ExitStatus::kPathTooLong,
                "at most 107");
  ExpectRefusal(hostmm_.Run({"run", "--pager", too_long, "true"}), ExitStatus::kPathTooLong,
                "at most 107");
  ExpectRefusal(hostmm_.Run({"pager", "--socket", hostmm_.dir().Under("none/s")}),
                ExitStatus::kNoSuchDirectory, "directory does not exist");
  hostmm_.dir().Write("file", "precious");
  ExpectRefusal(hostmm_.Run({"pager", "--socket", hostmm_.dir().Under("file")}),
                ExitStatus::kSocketTaken, "no socket is in its place");
}

TEST_F(CliTest, SocketWhereTheUserMayNotMakeOne) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  const std::string folder = hostmm_.dir().Under("locked");
  fs::create_directory(folder);
  for (const std::string& path : {hostmm_.dir().path(), hostmm_.binary(), folder}) {
    ASSERT_EQ(chmod(path.c_str(), 0755), 0);
  }
  Launch launch = hostmm_.Command({"pager", "--socket", folder + "/s"});
  launch.prepare = [] {
    if (setresgid(kNobody, kNobody, kNobody) != 0 || setresuid(kNobody, kNobody, kNobody) != 0) {
      _exit(201);
    }
  };
  ExpectRefusal(RunToEnd(launch), ExitStatus::kNoPermission, "may not make a socket there");
}

TEST_F(CliTest, NoPagerThere) {
  const std::string socket = hostmm_.dir().Under("s");
  for (const Words& words :
       {Words{"stats", "--pager", socket}, Words{"dump", "--pager", socket},
        Words{"check", "--pager", socket}, Words{"run", "--pager", socket, "true"}}) {
    ExpectRefusal(hostmm_.Run(words), ExitStatus::kNoPager, "hostmm pager --socket");
  }
}

TEST_F(CliTest, SignalsArePassedOn) {
  Process process(hostmm_.Command({"run", "--quiet", "sh", "-c",
                                   "trap 'echo usr1' USR1; trap 'echo term; exit 9' TERM; echo up; "
                                   "while :; do sleep 0.02; done"}));
  ASSERT_TRUE(process.AwaitOut("up"));
  process.Signal(SIGUSR1);
  ASSERT_TRUE(process.AwaitOut("usr1"));
  process.Signal(SIGTERM);
  const Outcome outcome = process.Finish();
  EXPECT_EQ(outcome.out, "up\nusr1\nterm\n");
  EXPECT_EQ(outcome.status, 9);
}

TEST_F(CliTest, CommandGoesOnWithoutItsPager) {
  Process process(hostmm_.Command(
      {"run", "sh", "-c", "trap 'exit 4' TERM; echo up; while :; do sleep 0.02; done"}));
  ASSERT_TRUE(process.AwaitOut("up"));
  const std::vector<pid_t> pagers = ChildrenNamed(process.pid(), "hostmm-pager");
  ASSERT_EQ(pagers.size(), 1u);
  kill(pagers.front(), SIGKILL);
  ASSERT_TRUE(process.AwaitErr("the pager has ended (signal 9)"));
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Finish().status, 4);
}

TEST_F(CliTest, PagerStaysForADaemonAndEndsWithIt) {
  const Outcome outcome =
      hostmm_.Run({"run", "sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!; echo $HOSTMM_SOCKET"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.err, HasSubstr("serves them until the last one ends"));
  const pid_t daemon = std::stoi(outcome.out);
  const std::string socket = outcome.out.substr(outcome.out.find('\n') + 1,
                                                outcome.out.size() - outcome.out.find('\n') - 2);
  EXPECT_TRUE(fs::exists(socket)) << socket;
  EXPECT_EQ(hostmm_.Run({"check", "--pager", socket}).status, 0) << "the pager must still serve";
  kill(daemon, SIGKILL);
  EXPECT_TRUE(Eventually([&] { return !fs::exists(socket); }));
}

TEST_F(CliTest, PagerHoldsNothingThatItsUserHadOpen) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);  // inherited
  Launch launch =
      hostmm_.Command({"run", "--quiet", "sh", "-c",
                       "sleep 600 >/dev/null 2>&1 " + std::to_string(ends[1]) + ">&- & echo $!"});
  const Outcome outcome = RunToEnd(launch);
  close(ends[1]);
  // End of file never comes if the pager, which stays for the daemon, has the write end.
  EXPECT_TRUE(Eventually([&] {
    pollfd wait = {ends[0], 0, 0};
    return poll(&wait, 1, 0) == 1 && (wait.revents & POLLHUP) != 0;
  }));
  close(ends[0]);
  kill(std::stoi(outcome.out), SIGKILL);
}

TEST_F(CliTest, ServiceServesIsInspectedAndEnds) {
  const std::string socket = hostmm_.dir().Under("s");
  Process service(hostmm_.Command({"pager", "--socket", socket, "--mode", "0600"}));
  ASSERT_TRUE(service.AwaitErr("serving " + socket + " mode=fake frames=auto (this is a test)\n"));
  struct stat info = {};
  ASSERT_EQ(stat(socket.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_THAT(ChildrenNamed(service.pid(), "hostmm"), IsEmpty()) << "not even a zombie";

  ExpectRefusal(hostmm_.Run({"pager", "--socket", socket}), ExitStatus::kSocketTaken,
                "running process serves");
  EXPECT_THAT(hostmm_.Run({"stats", "--pager", socket}).out, HasSubstr("1 guests, 1 regions"));
  EXPECT_THAT(hostmm_.Run({"stats", "--json", "--pager", socket}).out,
              HasSubstr("\"name\":\"fake file\""));
  EXPECT_THAT(hostmm_.Run({"dump", "--pager", socket}).out,
              HasSubstr("10000000000-10001000000 rw-- 00000000 1.1:huge fake file\n"));
  const Outcome check = hostmm_.Run({"check", "--pager", socket});
  EXPECT_EQ(check.status, 0) << check.out;
  EXPECT_EQ(check.out, "ok: all invariants hold\n");
  const Outcome run =
      hostmm_.Run({"run", "--pager", socket, "sh", "-c", "echo $HOSTMM_SOCKET; exit 3"});
  EXPECT_EQ(run.out, socket + "\n");
  EXPECT_EQ(run.status, 3);

  service.Signal(SIGTERM);
  EXPECT_EQ(service.Finish().status, 0);
  EXPECT_FALSE(fs::exists(socket));
}

TEST_F(CliTest, SocketOfADeadServiceIsReplaced) {
  const std::string socket = hostmm_.dir().Under("s");
  {
    Process first(hostmm_.Command({"pager", "--socket", socket}));
    ASSERT_TRUE(first.AwaitErr("serving"));
    first.Signal(SIGKILL);
    EXPECT_EQ(first.Finish().status, 128 + SIGKILL);
  }
  ASSERT_TRUE(fs::exists(socket));
  Process second(hostmm_.Command({"pager", "--socket", socket}));
  EXPECT_TRUE(second.AwaitErr("serving"));
  second.Signal(SIGINT);
  EXPECT_EQ(second.Finish().status, 0);
}

TEST_F(CliTest, ServiceThatCannotStart) {
  const std::string socket = hostmm_.dir().Under("s");
  ExpectRefusal(RunWith("refuse", {"pager", "--socket", socket}), ExitStatus::kKernelLacks,
                "pager: the fake kernel lacks everything");
  EXPECT_FALSE(fs::exists(socket));
}

TEST_F(CliTest, StatsOfSomethingThatIsNoPager) {
  // A process that takes the connection and says nothing.
  const std::string socket = hostmm_.dir().Under("s");
  const std::string python =
      "import socket,sys\ns=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n"
      "s.bind(sys.argv[1]);s.listen()\nprint('up',flush=True)\n"
      "c=s.accept()[0]\nc.recv(4096)\n";
  if (!fs::exists("/usr/bin/python3")) GTEST_SKIP() << "no /usr/bin/python3";
  Launch launch;
  launch.command = {"/usr/bin/python3", "-c", python, socket};
  Process other(launch);
  ASSERT_TRUE(other.AwaitOut("up"));
  ExpectRefusal(hostmm_.Run({"stats", "--pager", socket}), ExitStatus::kNoPager,
                "without an answer");
}

TEST_F(CliTest, DoctorAgreesWithItself) {
  const Outcome text = hostmm_.Run({"doctor"});
  const Outcome json = hostmm_.Run({"doctor", "--json"});
  EXPECT_EQ(text.err, "");
  EXPECT_LE(text.status, 2) << text.out;
  EXPECT_EQ(json.status, text.status);
  EXPECT_THAT(json.out, HasSubstr("\"status\":" + std::to_string(json.status)));
  EXPECT_THAT(text.out, HasSubstr("granule         2 MiB"));
  EXPECT_THAT(text.out, HasSubstr("ok    preload"));
  EXPECT_THAT(text.out, HasSubstr(" snapshots       "));
  EXPECT_THAT(json.out, HasSubstr("\"thing\":\"snapshots\""));
}

TEST_F(CliTest, DoctorWithoutTheLibraryCannotRun) {
  fs::remove(hostmm_.library());
  const Outcome outcome = hostmm_.Run({"doctor"});
  EXPECT_EQ(outcome.status, ToInt(ExitStatus::kCannotRun));
  EXPECT_THAT(outcome.out, HasSubstr("fail  preload"));
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 3) {
    fprintf(stderr, "usage: cli_test HOSTMM LIBRARY\n");
    return 2;
  }
  hostmm::test::Sources::binary = argv[1];
  hostmm::test::Sources::library = argv[2];
  return RUN_ALL_TESTS();
}
