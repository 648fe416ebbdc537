#include "runtime/cli/failure.h"

#include <set>

#include "gtest/gtest.h"
#include "runtime/cli/exit_status.h"
#include "runtime/cli/help.h"

namespace hostmm {
namespace {

TEST(FailureTest, IsWhatWhyRemedyOnOneLine) {
  const Failure failure = MakeFailure(ExitStatus::kUsage, "a\nb", "is\twrong", "do\x1b[31m this");
  EXPECT_EQ(failure.text, "a?b: is?wrong; do?[31m this");
  EXPECT_EQ(MakeFailure(ExitStatus::kUsage, "x", "y", "").text, "x: y");
}

TEST(FailureTest, LineOfAnotherLanguageStaysAsItIs) {
  EXPECT_EQ(OneLine("gr\xc3\xbc\xc3\x9f"), "gr\xc3\xbc\xc3\x9f");
}

TEST(ExitStatusTest, NumbersAreDistinctAscendingAndClearOfShells) {
  int last = -1;
  for (const ExitStatusMeaning& row : ExitStatusMeanings()) {
    EXPECT_GT(ToInt(row.status), last);
    last = ToInt(row.status);
    EXPECT_LT(last, kSignalStatusBase);
  }
}

TEST(ExitStatusTest, CodesOfAPagerAreReadBack) {
  EXPECT_EQ(ExitStatusFromCode(ToInt(ExitStatus::kStrictRefused)), ExitStatus::kStrictRefused);
  EXPECT_EQ(ExitStatusFromCode(99), ExitStatus::kInternal);
}

TEST(HelpTest, HasAPageForEverySubcommandAndNoOther) {
  for (const char* topic :
       {"", "run", "pager", "doctor", "stats", "dump", "check", "snapshot", "image", "status"}) {
    ASSERT_TRUE(HelpText(topic).has_value()) << topic;
    EXPECT_EQ(HelpText(topic)->back(), '\n');
  }
  EXPECT_FALSE(HelpText("frobnicate").has_value());
}

TEST(HelpTest, StatusPageListsEveryStatus) {
  const std::string page = HelpText("status").value();
  for (const ExitStatusMeaning& row : ExitStatusMeanings()) {
    EXPECT_NE(page.find(" " + std::to_string(ToInt(row.status)) + "  " + row.meaning),
              std::string::npos);
  }
}

}  // namespace
}  // namespace hostmm
