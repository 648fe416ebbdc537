// That an oracle is worth something: plain Linux agrees with itself, a side that lies is found out
// and the program that shows it is short, and programs are what their seed says.
#include <string>

#include "gtest/gtest.h"
#include "tests/oracle/campaign.h"
#include "tests/oracle/compare.h"
#include "tests/oracle/program.h"
#include "tests/oracle/sides.h"

namespace hostmm::oracle {
namespace {

std::string g_guest;

class OracleTest : public testing::Test {
 protected:
  Sides sides_{{g_guest, "", ""}};
  const Side plain_ = [this](const Program& program) { return sides_.Plain(program); };
  Side Lying(const std::string& wrong) {
    return [this, wrong](const Program& program) { return sides_.Lying(program, wrong); };
  }
};

TEST_F(OracleTest, PlainLinuxAgreesWithItself) {
  const Campaign campaign = {.seeds = 6, .operations = 1500};
  const Tally tally =
      RunCampaign(campaign, plain_, plain_, [](const std::string& text) { ADD_FAILURE() << text; });
  EXPECT_EQ(tally.differences, 0u);
  EXPECT_EQ(tally.operations, campaign.seeds * campaign.operations);
  EXPECT_LT(tally.skipped, tally.operations / 10);
}

// A program says what it does in every way in which an operation can end.
TEST_F(OracleTest, ProgramsReachEveryOutcome) {
  const Program program = GenerateProgram(1, 4000);
  const Transcript transcript = sides_.Plain(program);
  ASSERT_EQ(transcript.trouble, "");
  int count[4] = {};
  int good_stamps = 0;
  for (const Observation& seen : transcript.seen) {
    ASSERT_LT(seen.outcome, Outcome::kDied) << ToText(seen);
    ++count[static_cast<int>(seen.outcome)];
    if (seen.stamp == StampState::kGood) ++good_stamps;
  }
  EXPECT_GT(count[static_cast<int>(Outcome::kOk)], 1000);
  EXPECT_GT(count[static_cast<int>(Outcome::kErrno)], 200);
  EXPECT_GT(count[static_cast<int>(Outcome::kSignal)], 200);
  EXPECT_GT(good_stamps, 100);
}

// A whole campaign against a side whose mprotect does nothing: found, shortened to a few
// operations with an mprotect among them, and printed as C++.
TEST_F(OracleTest, FindsAnMprotectThatDoesNothing) {
  std::string report;
  const Campaign campaign = {.seeds = 1, .operations = 1500, .shrink = std::chrono::seconds(20)};
  const Tally tally = RunCampaign(campaign, plain_, Lying("protect"),
                                  [&report](const std::string& text) { report += text; });
  EXPECT_EQ(tally.differences, 1u);
  const size_t shortened = report.find("Shortened:\nconst Program kProgram = {");
  ASSERT_NE(shortened, std::string::npos) << report;
  EXPECT_NE(report.find("ProtectOp{", shortened), std::string::npos) << report;
}

TEST_F(OracleTest, ShortensToWhatIsNeeded) {
  const Program program = {
      .actors = 3,
      .objects = {{kMemfd, 8u << 20}, {kShm, 1u << 20}},
      .operations = {MapOp{0, 0, 0, 2048, 0, kAnonymousShared, kFixed, 3, 0, 0},
                     MapOp{1, 1, 0, 2048, 0, kFirstObject, kFixed, 3, 0, 0}, WriteOp{0, 0, 7, 0},
                     WriteOp{1, 1, 9, 0}, ForkOp{0, kFork},
                     AdviseOp{0, 0, 0, 512, 9 /* MADV_REMOVE */, kStraight}, ReadOp{1, 1, 9, 0},
                     ReadOp{0, 0, 7, 0}, ReadOp{1, 1, 9, 0}}};
  ASSERT_FALSE(Compare(program, sides_.Plain(program), sides_.Plain(program)).has_value());
  const auto difference = Compare(program, sides_.Plain(program), sides_.Lying(program, "remove"));
  ASSERT_TRUE(difference.has_value());
  EXPECT_EQ(difference->operation, 7u) << difference->text;
  const Program shortest = Shrink(program, plain_, Lying("remove"), std::chrono::seconds(20));
  // Map, write, remove, read.
  EXPECT_EQ(shortest.operations.size(), 4u) << ToCpp(shortest);
  EXPECT_EQ(shortest.actors, 1u);
  EXPECT_TRUE(shortest.objects.empty());
}

TEST(Program, IsWhatItsSeedSays) {
  EXPECT_EQ(ToCpp(GenerateProgram(7, 300)), ToCpp(GenerateProgram(7, 300)));
  EXPECT_NE(ToCpp(GenerateProgram(7, 300)), ToCpp(GenerateProgram(8, 300)));
}

TEST(Program, IsStoredWhole) {
  const Program program = GenerateProgram(3, 300);
  const std::string path = testing::TempDir() + "/program";
  ASSERT_TRUE(SaveProgram(program, path));
  EXPECT_EQ(ToCpp(LoadProgram(path)), ToCpp(program));
  EXPECT_EQ(LoadProgram(path + ".none").actors, 0u);
}

TEST(Compare, TellsTheFirstDifference) {
  const Program program = {.operations = {ReadOp{0, 1, 2, 3}, ReadOp{0, 0, 0, 0}, ExitOp{0}}};
  const Transcript one = {.seen = {{}, {.value = 1}, {}}};
  Transcript other = one;
  EXPECT_FALSE(Compare(program, one, other).has_value());
  other.seen[1].value = 2;
  EXPECT_EQ(Compare(program, one, other)->operation, 1u);
  other = one;
  other.seen.pop_back();
  EXPECT_EQ(Compare(program, one, other)->operation, 2u);
  other = one;
  other.trouble = "it said something";
  EXPECT_EQ(Compare(program, one, other)->operation, 3u);
}

}  // namespace
}  // namespace hostmm::oracle

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc > 1) hostmm::oracle::g_guest = argv[1];
  return RUN_ALL_TESTS();
}
