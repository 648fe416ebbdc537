// A bounded number of random programs, and every program that has ever shown a difference, plain
// and under hostmm: every value read, every errno and every signal agrees. The long run is
// transparent.cc.
#include <chrono>
#include <iostream>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "tests/oracle/campaign.h"
#include "tests/oracle/compare.h"
#include "tests/oracle/past_programs.h"
#include "tests/oracle/sides.h"
#include "tests/testing/skip.h"

namespace hostmm::oracle {
namespace {

Built g_built;

class TransparentTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(test::WhyNoUserfaultfd());
    sides_ = std::make_unique<Sides>(g_built);
  }
  std::unique_ptr<Sides> sides_;
  const Side plain_ = [this](const Program& program) { return sides_->Plain(program); };
  const Side managed_ = [this](const Program& program) { return sides_->Managed(program); };
};

TEST_F(TransparentTest, RandomProgramsSeeWhatTheySeeOnPlainLinux) {
  // As many as the time allows: 100 seeds would be the long run.
  const Campaign campaign = {.seeds = 100,
                             .operations = 2000,
                             .time = std::chrono::seconds(15),
                             .most_reports = 1,
                             .shrink = std::chrono::seconds(30)};
  const Tally tally = RunCampaign(campaign, plain_, managed_,
                                  [](const std::string& text) { ADD_FAILURE() << text; });
  EXPECT_EQ(tally.differences, 0u);
  EXPECT_GT(tally.operations, 0u);
  EXPECT_GT(sides_->FaultsServed(), 0) << "nothing was managed";
  std::cout << tally.operations << " operations of " << tally.programs << " programs, "
            << sides_->FaultsServed() << " faults\n";
}

TEST_F(TransparentTest, PastProgramsSeeWhatTheySeeOnPlainLinux) {
  for (const PastProgram& past : PastPrograms()) {
    if (past.verdict != Verdict::kAgrees) continue;
    const Transcript plain = sides_->Plain(past.program);
    const Transcript managed = sides_->Managed(past.program);
    const auto difference = Compare(past.program, plain, managed);
    if (!difference.has_value()) continue;
    ADD_FAILURE() << past.what << ": " << difference->text << Explain(past.program, plain, managed);
  }
}

// So that what is not known to differ any more is not left out for ever.
TEST_F(TransparentTest, KnownDifferencesAreStillThere) {
  for (const PastProgram& past : PastPrograms()) {
    if (past.verdict != Verdict::kDiffers) continue;
    const Transcript plain = sides_->Plain(past.program);
    const Transcript managed = sides_->Managed(past.program);
    EXPECT_TRUE(Compare(past.program, plain, managed).has_value())
        << past.what << ": agrees now; take it out of known_differences.h";
  }
}

}  // namespace
}  // namespace hostmm::oracle

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc < 4) return 64;
  hostmm::oracle::g_built = {argv[1], argv[2], argv[3]};
  return RUN_ALL_TESTS();
}
