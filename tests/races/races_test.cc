// The seven races, under a pager with frames of one kind: each storm is judged while it rages, a
// reader asks the pager all the time, and in the end the tables are sound and nothing is left.
//
// Usage: races_test HOSTMM LIBRARY RACE_GUEST FRAMES
// HOSTMM_RACE_SECONDS: how long each case lasts (2).
#include <atomic>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

std::string g_frames;

std::vector<std::string> Cases() {
  std::vector<std::string> cases;
  std::istringstream lines(RunToEnd({Built::guest, "--list"}).out);
  for (std::string line; std::getline(lines, line);) cases.push_back(line);
  return cases;
}

Environment With(Environment environment, const std::string& name) {
  const char* value = getenv(name.c_str());
  if (value != nullptr) environment.emplace_back(name, value);
  return environment;
}

class RacesTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    pager_ = std::make_unique<ServicePager>(std::vector<std::string>{"--frames", g_frames});
  }

  Ended Judge(const std::vector<std::string>& words) const {
    std::vector<std::string> command = {Built::guest, "--peer", "violation"};
    command.insert(command.end(), words.begin(), words.end());
    return RunToEnd(command, pager_->GuestEnvironment());
  }
  void ExpectNoViolation(const std::vector<std::string>& words) const {
    const Ended ended = Judge(words);
    EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
    EXPECT_EQ(ended.err, "");
    EXPECT_GT(pager_->Stat("operations"), 0) << "nobody asked the pager";
    EXPECT_EQ(pager_->Stat("timed_out"), 0) << "somebody was waited for in vain";
    pager_->ExpectNoTrace();
  }

  std::unique_ptr<ServicePager> pager_;
};

class RaceTest : public RacesTest, public testing::WithParamInterface<std::string> {};

// Asks all that can be asked, again and again: a reader of tables that change under it. Tables that
// never hold still long enough, and a pager that has too much to do, are none that break an
// invariant; but when the storm is over each question must be answered.
void AskUntil(const ServicePager& pager, const std::atomic<bool>& over) {
  for (bool last = false; !last;) {
    last = over;
    for (const char* question : {"dump", "stats", "check"}) {
      const Ended ended = pager.Ask(question);
      const bool busy =
          ended.err.find("changed its tables during every attempt") != std::string::npos ||
          ended.err.find("the pager does not answer") != std::string::npos;
      if (busy && !last) continue;
      EXPECT_EQ(ended.status, 0) << question << ":\n" << ended.out << ended.err;
    }
  }
}

TEST_P(RaceTest, EndsWell) {
  std::atomic<bool> over = false;
  Program program({Built::guest, GetParam()},
                  With(pager_->GuestEnvironment(), "HOSTMM_RACE_SECONDS"));
  std::thread reader([&] { AskUntil(*pager_, over); });
  const Ended ended = program.Finish();
  over = true;
  reader.join();
  EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
  EXPECT_EQ(ended.err, "");
  EXPECT_EQ(ended.out.find("#BAD"), std::string::npos) << ended.out;
  const size_t skip = ended.out.find("#skip ");
  if (skip != std::string::npos && !HasFailure()) GTEST_SKIP() << ended.out.substr(skip + 6);
  EXPECT_NE(ended.out.find("#ok"), std::string::npos) << "nothing was judged:\n" << ended.out;
  pager_->ExpectNoTrace();
}

TEST_F(RacesTest, NobodyWritesWhatIsForbidden) {
  ExpectNoViolation({"touches=200000", "source=memfd"});
}

TEST_F(RacesTest, NobodyWritesWhatIsForbiddenInMemoryOfThePager) {
  ExpectNoViolation({"touches=100000", "source=named"});
  ExpectNoViolation({"touches=100000", "source=anonymous"});
}

TEST_F(RacesTest, NobodyWritesWhatIsForbiddenWhileOthersAreKilled) {
  ExpectNoViolation({"touches=100000", "source=memfd", "kill=probers"});
  ExpectNoViolation({"touches=100000", "source=named", "kill=probers", "seed=2"});
}

// The pager dies somewhere in an operation. Who waits for it comes back, touches go on, and the
// next pager serves newcomers.
TEST_F(RacesTest, PagerIsKilledInAnOperation) {
  for (const char* source : {"source=memfd", "source=anonymous"}) {
    Program program({Built::guest, "--peer", "violation", "until=violation", "seconds=30", source},
                    pager_->GuestEnvironment());
    ASSERT_TRUE(Eventually([&] { return pager_->Stat("operations") > 100; }));
    pager_->Kill();
    const Ended ended = program.Finish();
    // From then on mprotect changes the caller only, as in plain Linux, which the judge sees.
    EXPECT_EQ(ended.status, 1) << ended.out << ended.err;
    EXPECT_EQ(ended.out.find("#BAD"), std::string::npos) << ended.out;
    EXPECT_NE(ended.err.find("the pager is gone"), std::string::npos) << ended.err;
    pager_->Start();
  }
  ExpectNoViolation({"touches=20000"});
}

// The judge can find something: calls that change the caller only, calls that have not returned.
TEST_F(RacesTest, TheJudgeFindsWhatIsWrong) {
  for (const char* wrong : {"wrong=own", "wrong=early"}) {
    const Ended ended = Judge({"touches=50000", wrong});
    EXPECT_EQ(ended.status, 1) << wrong << ":\n" << ended.out << ended.err;
    EXPECT_NE(ended.out.find("violation: "), std::string::npos);
  }
  pager_->ExpectNoTrace();
}

INSTANTIATE_TEST_SUITE_P(Case, RaceTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  for (int i = 1, paths = 0; i < argc; ++i) {
    if (argv[i][0] != '-' && ++paths == 4) hostmm::test::g_frames = argv[i];
  }
  if (hostmm::test::g_frames.empty()) {
    fprintf(stderr, "usage: races_test HOSTMM LIBRARY RACE_GUEST FRAMES\n");
    return 64;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
