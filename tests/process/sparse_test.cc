// What scattered touches may cost: a bound, because blocks become huge only for those who use them.
#include <string>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

constexpr int64_t kNoNumber = -1;

int64_t GrownKib(const Ended& ended) {
  constexpr char kLabel[] = "grown by KiB: ";
  const size_t at = ended.out.find(kLabel);
  EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
  EXPECT_EQ(ended.out.find("#BAD"), std::string::npos) << ended.out << ended.err;
  return at == std::string::npos ? kNoNumber
                                 : std::stoll(ended.out.substr(at + sizeof(kLabel) - 1));
}

class SparseTest : public testing::TestWithParam<std::string> {};

TEST_P(SparseTest, CostsAFewTimesWhatPlainLinuxDoes) {
  HOSTMM_SKIP_IF(WhyNoUserfaultfd());
  HOSTMM_SKIP_IF(WhyNoMemory(2));
  const int64_t plain = GrownKib(RunToEnd({Built::guest, GetParam()}));
  // Four pages of 4 KiB in each of 512 blocks; less, and it is not that which is measured.
  ASSERT_GE(plain, 7 * 1024);
  ServicePager pager;
  const int64_t managed = GrownKib(RunToEnd({Built::guest, GetParam()}, pager.GuestEnvironment()));
  EXPECT_NE(managed, kNoNumber);
  EXPECT_LE(managed, 3 * plain + 64 * 1024) << "plain: " << plain;
}

INSTANTIATE_TEST_SUITE_P(Case, SparseTest,
                         testing::Values("BlockByBlock", "OneTouchOfEachBlockAfterAnother"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
