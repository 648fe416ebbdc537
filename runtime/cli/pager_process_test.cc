#include "runtime/cli/pager_process.h"

#include "gtest/gtest.h"

namespace hostmm {
namespace {

TEST(FormatReadyLineTest, PutsTheReasonInParentheses) {
  EXPECT_EQ(FormatReadyLine("mode=uffd frames=huge why=hugetlb was not asked for"),
            "mode=uffd frames=huge (hugetlb was not asked for)");
  EXPECT_EQ(FormatReadyLine("mode=uffd frames=hugetlb why="), "mode=uffd frames=hugetlb");
  EXPECT_EQ(FormatReadyLine("mode=native frames=base"), "mode=native frames=base");
}

}  // namespace
}  // namespace hostmm
