// The command line with the real pager and the real preload library: what stats, dump and check say
// of a guest that lives, and of one that has died. Process tier; skips where the doctor says that
// hostmm cannot run.

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <regex>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/exit_status.h"
#include "tests/cli/installed_hostmm.h"
#include "tests/cli/process.h"

namespace hostmm::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

std::string toucher;

class LiveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const Outcome doctor = hostmm_.Run({"doctor"});
    if (doctor.status == ToInt(ExitStatus::kCannotRun)) {
      GTEST_SKIP() << "hostmm cannot run here:\n" << doctor.out;
    }
  }
  void TearDown() override {
    EXPECT_TRUE(Eventually([&] { return hostmm_.NothingLeft(); })) << "a directory was left behind";
  }

  std::string Socket() const { return hostmm_.dir().Under("s"); }

  InstalledHostmm hostmm_;
};

TEST_F(LiveTest, GuestIsSeenWhileItLivesAndLeavesNoTrace) {
  Process service(hostmm_.Command({"pager", "--socket", Socket()}));
  ASSERT_TRUE(service.AwaitErr("serving " + Socket() + " mode="));
  Process run(hostmm_.Command({"run", "--pager", Socket(), toucher}));
  ASSERT_TRUE(run.AwaitOut(" up\n")) << run.err();
  const std::string address = run.out().substr(0, run.out().find(' '));

  const std::string dump = hostmm_.Run({"dump", "--pager", Socket()}).out;
  EXPECT_THAT(dump, HasSubstr("guest "));
  EXPECT_THAT(dump, HasSubstr("\n" + address + "-")) << "the region is where the guest has it";
  EXPECT_THAT(dump, HasSubstr(" rw-- 00000000 "));
  EXPECT_THAT(dump, HasSubstr(" page-tables "));
  // A thread goes on before the pager has entered what it has been given.
  std::string stats;
  EXPECT_TRUE(Eventually([&] {
    stats = hostmm_.Run({"stats", "--json", "--pager", Socket()}).out;
    return stats.find("\"outstanding_faults\":0") != std::string::npos;
  }));
  std::smatch populated;
  ASSERT_TRUE(std::regex_search(stats, populated, std::regex("\"populated_bytes\":([0-9]+)")))
      << stats;
  EXPECT_GE(std::stoull(populated[1]), uint64_t{8} << 20) << stats;
  EXPECT_THAT(stats, HasSubstr("\"unaccounted\":0"));
  const Outcome check = hostmm_.Run({"check", "--pager", Socket()});
  EXPECT_EQ(check.status, 0) << check.out << check.err;

  run.Signal(SIGUSR1);
  const Outcome outcome = run.Finish();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("done"));
  EXPECT_TRUE(Eventually([&] { return hostmm_.Run({"dump", "--pager", Socket()}).out.empty(); }));
  EXPECT_EQ(hostmm_.Run({"check", "--pager", Socket()}).status, 0);
  service.Signal(SIGTERM);
  EXPECT_EQ(service.Finish().status, 0);
  EXPECT_FALSE(fs::exists(Socket()));
}

TEST_F(LiveTest, RunReportsWhatItManaged) {
  Process run(hostmm_.Command({"run", toucher}));
  ASSERT_TRUE(run.AwaitOut(" up\n")) << run.err();
  EXPECT_THAT(run.err(), HasSubstr("hostmm: mode="));
  run.Signal(SIGUSR1);
  const Outcome outcome = run.Finish();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.err, HasSubstr("managed"));
  EXPECT_THAT(outcome.err, Not(HasSubstr("managed nothing")));
}

TEST_F(LiveTest, OnlyTheNamedProgramsAreManaged) {
  Process run(hostmm_.Command({"run", "--only=another", toucher}));
  ASSERT_TRUE(run.AwaitOut(" up\n")) << run.err();
  run.Signal(SIGUSR1);
  const Outcome outcome = run.Finish();
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.err, HasSubstr("managed nothing"));
}

TEST_F(LiveTest, HostmmInsideTheTreeIsNoGuest) {
  const std::string script =
      hostmm_.binary() + " stats; " + hostmm_.binary() +
      " run --quiet sh -c 'echo inner=$(echo $LD_PRELOAD | tr : \"\\n\" | wc -l)'";
  const Outcome outcome = hostmm_.Run({"run", "sh", "-c", script});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.out, HasSubstr("managed      0 guests, 0 regions, 0 files"));
  EXPECT_THAT(outcome.out, HasSubstr("inner=1\n")) << "once, for the inner one";
  EXPECT_THAT(outcome.err, HasSubstr("managed nothing"));
}

TEST_F(LiveTest, DataSurvivesTheDeathOfThePager) {
  Process run(hostmm_.Command({"run", toucher}));
  ASSERT_TRUE(run.AwaitOut(" up\n")) << run.err();
  const std::vector<pid_t> pagers = ChildrenNamed(run.pid(), "hostmm-pager");
  ASSERT_EQ(pagers.size(), 1u);
  kill(pagers.front(), SIGKILL);
  ASSERT_TRUE(run.AwaitErr("the pager has ended (signal 9)"));
  run.Signal(SIGUSR1);
  const Outcome outcome = run.Finish();
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("done"));
}

TEST_F(LiveTest, StrictRefusesAWeakerRungThanTheOneThatWasAskedFor) {
  std::ifstream meminfo("/proc/meminfo");
  const std::string text((std::istreambuf_iterator<char>(meminfo)),
                         std::istreambuf_iterator<char>());
  int overcommit = -1;
  std::ifstream("/proc/sys/vm/nr_overcommit_hugepages") >> overcommit;
  if (overcommit != 0 || !std::regex_search(text, std::regex("HugePages_Free: +0\n"))) {
    GTEST_SKIP() << "this host has hugetlb pages";
  }
  const Outcome strict = hostmm_.Run({"run", "--strict", "--frames=hugetlb", "echo", "hello"});
  EXPECT_EQ(strict.status, ToInt(ExitStatus::kStrictRefused)) << strict.err;
  EXPECT_EQ(strict.out, "");
  EXPECT_THAT(strict.err, HasSubstr("hugetlb"));
  const Outcome open = hostmm_.Run({"run", "--frames=hugetlb", "echo", "hello"});
  EXPECT_EQ(open.status, 0);
  EXPECT_EQ(open.out, "hello\n");
  EXPECT_THAT(open.err, HasSubstr("no hugetlb frames")) << "the reason of a fallback is told";
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 4) {
    fprintf(stderr, "usage: live_test HOSTMM LIBRARY TOUCHER\n");
    return 2;
  }
  hostmm::test::Sources::binary = argv[1];
  hostmm::test::Sources::library = argv[2];
  hostmm::test::toucher = std::filesystem::absolute(argv[3]);
  return RUN_ALL_TESTS();
}
