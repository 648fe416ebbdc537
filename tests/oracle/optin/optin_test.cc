// Opt-in memory against the model of it: random programs of several processes, every answer and
// every byte compared. What differs is shortened and printed as C++.
//
// Usage: optin_test HOSTMM LIBRARY OPTIN_GUEST
// HOSTMM_OPTIN_PROGRAMS: how many (60); HOSTMM_OPTIN_SEED: the first one; HOSTMM_OPTIN_KNOWN=1:
// with what hostmm is known to do otherwise (program.h). The long run:
//   HOSTMM_OPTIN_PROGRAMS=5000 tools/bazel run //tests/oracle/optin:optin_test
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/oracle/optin/model.h"
#include "tests/oracle/optin/program.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"

namespace hostmm::oracle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kSteps = 150;
// For shortening; a program takes some tens of milliseconds.
constexpr auto kShortening = std::chrono::seconds(20);

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* value = getenv(name);
  return value == nullptr ? otherwise : strtoull(value, nullptr, 10);
}

Known TheKnown() {
  return getenv("HOSTMM_OPTIN_KNOWN") == nullptr ? Known::kLeftOut : Known::kTaken;
}

// Without what has nothing to do.
Steps Effective(const Steps& steps) {
  Model model(Mistake::kNone);
  Steps left;
  for (const Step& step : steps) {
    if (model.Take(step).kind != Seen::kSkipped) left.push_back(step);
  }
  return left;
}

class OptinOracleTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(test::WhyNoUserfaultfd());
    pager_ = std::make_unique<test::ServicePager>();
    char folder[] = "/tmp/hostmm-optin.XXXXXX";
    ASSERT_NE(mkdtemp(folder), nullptr);
    folder_ = folder;
  }
  void TearDown() override {
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }

  std::vector<Seen> Run(const Steps& steps) {
    const std::string program = folder_ + "/program";
    const std::string answers = folder_ + "/seen";
    std::ofstream(program, std::ios::binary | std::ios::trunc)
        .write(reinterpret_cast<const char*>(steps.data()),
               static_cast<std::streamsize>(steps.size() * sizeof(Step)));
    const test::Ended ended =
        test::RunToEnd({test::Built::guest, program, answers}, pager_->GuestEnvironment());
    trouble_ = ended.err;
    if (ended.status != 0) trouble_ += "exit status " + std::to_string(ended.status);
    std::vector<Seen> seen;
    std::ifstream file(answers, std::ios::binary);
    for (Seen one; file.read(reinterpret_cast<char*>(&one), sizeof(one));) seen.push_back(one);
    return seen;
  }

  // RETURNS where they differ, in words; empty: nowhere. `steps` are effective ones.
  std::string Differ(const Steps& steps, Mistake mistake) {
    Model model(mistake);
    const std::vector<Seen> seen = Run(steps);
    for (size_t i = 0; i < steps.size(); ++i) {
      const Seen wanted = model.Take(steps[i]);
      if (wanted.kind == Seen::kSkipped) return "";  // a mistaken model cannot go on
      const std::string got = i < seen.size() ? ToText(seen[i]) : "no answer; " + trouble_;
      if (i < seen.size() && seen[i] == wanted) continue;
      return "step " + std::to_string(i) + ", " + ToCpp(steps[i]) + ": " + got +
             ", the model says " + ToText(wanted) + "\n";
    }
    return trouble_;
  }

  // Takes ever smaller chunks out for as long as the rest still differs.
  Steps Shorten(Steps steps, Mistake mistake) {
    const Clock::time_point until = Clock::now() + kShortening;
    for (size_t chunk = steps.size(); chunk != 0; chunk /= 2) {
      for (size_t end = steps.size(); end >= chunk && Clock::now() < until;) {
        Steps shorter = steps;
        const auto first = shorter.begin() + static_cast<ptrdiff_t>(end - chunk);
        shorter.erase(first, first + static_cast<ptrdiff_t>(chunk));
        shorter = Effective(shorter);
        if (!shorter.empty() && !Differ(shorter, mistake).empty()) steps = shorter;
        end = std::min(end - chunk, steps.size());
      }
    }
    return steps;
  }

  std::unique_ptr<test::ServicePager> pager_;
  std::string folder_;
  std::string trouble_;
};

TEST_F(OptinOracleTest, ProgramsDoWhatTheModelSays) {
  const uint64_t first = FromEnvironment("HOSTMM_OPTIN_SEED", 1);
  const uint64_t count = FromEnvironment("HOSTMM_OPTIN_PROGRAMS", 60);
  size_t steps_taken = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const Steps steps = Effective(GenerateSteps(seed, kSteps, TheKnown()));
    const std::string difference = Differ(steps, Mistake::kNone);
    steps_taken += steps.size();
    if (difference.empty()) continue;
    const Steps shortest = Shorten(steps, Mistake::kNone);
    FAIL() << "seed " << seed << ": " << difference
           << "shortened: " << Differ(shortest, Mistake::kNone) << ToCpp(shortest);
  }
  std::cout << steps_taken << " steps of " << count << " programs\n";
  EXPECT_GT(steps_taken, count * kSteps / 2) << "most had nothing to do";
  pager_->ExpectNoTrace();
}

// That a difference would be found, and how short its program becomes.
TEST_F(OptinOracleTest, FindsTheMistakesOfAModel) {
  for (const Mistake mistake : {Mistake::kProtectIsTheCallersOwn, Mistake::kVotesLoseData,
                                Mistake::kNewcomersBringTheirOwn}) {
    // More than enough programs.
    Steps found;
    for (uint64_t seed = 1; seed < 30 && found.empty(); ++seed) {
      const Steps steps = Effective(GenerateSteps(seed, kSteps, TheKnown()));
      if (!Differ(steps, mistake).empty()) found = Shorten(steps, mistake);
    }
    ASSERT_FALSE(found.empty()) << static_cast<int>(mistake);
    EXPECT_LE(found.size(), 8u) << ToCpp(found);
    EXPECT_NE(ToCpp(found).find("{Do::kMap"), std::string::npos);
  }
}

}  // namespace
}  // namespace hostmm::oracle

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
