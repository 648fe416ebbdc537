// Opt-in programs without hostmm, and with a pager that dies: see absent_cases.cc.
//
// Usage: absent_test HOSTMM LIBRARY GUEST WAY      WAY: as in opt_in_test
#include <signal.h>

#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

std::string g_way;

std::vector<std::string> CasesOf(const std::string& name) {
  std::vector<std::string> cases;
  std::istringstream lines(RunToEnd({Built::guest, "--list"}).out);
  for (std::string line; std::getline(lines, line);) {
    if (line.rfind(name + "_", 0) == 0) cases.push_back(line);
  }
  return cases;
}

void ExpectAllWell(const Ended& ended) {
  EXPECT_EQ(ended.status, 0);
  EXPECT_EQ(ended.out.find("#BAD"), std::string::npos);
  if (ended.out.find("skipped: ") == std::string::npos) {
    EXPECT_NE(ended.out.find("#ok"), std::string::npos) << "nothing was wanted";
  }
  if (testing::Test::HasFailure()) ADD_FAILURE() << "its output:\n" << ended.out << ended.err;
}

// The environments in which there is no hostmm, whatever the program asks for.
TEST(AbsentTest, TheBitIsIgnored) {
  if (g_way != "preload") GTEST_SKIP() << "a linked program starts a pager of its own";
  const std::vector<Environment> without = {
      {},
      {{"LD_PRELOAD", Built::library}},
      {{"LD_PRELOAD", Built::library}, {"HOSTMM_SOCKET", "/nowhere/socket"}}};
  const std::vector<std::string> cases = CasesOf("Absent");
  ASSERT_FALSE(cases.empty());
  for (const Environment& environment : without) {
    for (const std::string& one : cases) {
      SCOPED_TRACE(one + " with " + std::to_string(environment.size()) + " variables");
      ExpectAllWell(RunToEnd({Built::guest, one}, environment));
    }
  }
}

TEST(AbsentTest, PagerDies) {
  HOSTMM_SKIP_IF(WhyNoUserfaultfd());
  const std::vector<std::string> cases = CasesOf("PagerDies");
  ASSERT_FALSE(cases.empty());
  for (const std::string& one : cases) {
    SCOPED_TRACE(one);
    ServicePager pager;
    const Environment environment = g_way == "preload"
                                        ? pager.GuestEnvironment()
                                        : Environment{{"HOSTMM_TEST_SOCKET", pager.socket()}};
    Program program({Built::guest, one}, environment);
    if (program.AwaitOut("ready")) {
      pager.Kill();
      program.Signal(SIGUSR1);
    }
    ExpectAllWell(program.Finish());
  }
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] != '-') hostmm::test::g_way = argv[i];
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
