// Every case of a guest program, run plain and under hostmm: the two transcripts are equal, and
// under hostmm the memory really was managed.
#include <algorithm>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

std::vector<std::string> Cases() { return Lines(RunToEnd({Built::guest, "--list"}).out); }

// What the program saw, without what it found out about hostmm.
std::string Transcript(const std::string& out) {
  std::string kept;
  for (const std::string& line : Lines(out)) {
    if (line[0] != '#') kept += line + "\n";
  }
  return kept;
}

class TransparentTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(WhyNoUserfaultfd()); }
  static void SetUpTestSuite() { pager_ = new ServicePager(); }
  static void TearDownTestSuite() {
    delete pager_;
    pager_ = nullptr;
  }
  static inline ServicePager* pager_ = nullptr;
};

TEST_P(TransparentTest, SameAsPlainLinux) {
  const Ended plain = RunToEnd({Built::guest, GetParam()});
  ASSERT_EQ(plain.status, 0) << plain.out << plain.err;
  ASSERT_EQ(plain.out.find("#BAD"), std::string::npos) << plain.out;
  ASSERT_NE(plain.out.find_first_not_of("\n"), std::string::npos) << "an empty transcript";

  // What a case cannot do here at all, with its reason.
  if (const size_t at = plain.out.find("skipped: "); at != std::string::npos) {
    GTEST_SKIP() << plain.out.substr(at + 9);
  }

  const Ended managed = RunToEnd({Built::guest, GetParam()}, pager_->GuestEnvironment());
  EXPECT_EQ(managed.status, 0);
  EXPECT_EQ(Transcript(managed.out), Transcript(plain.out));
  EXPECT_EQ(managed.out.find("#BAD"), std::string::npos) << managed.out;
  EXPECT_NE(managed.out.find("#ok"), std::string::npos) << "nothing shows that it was managed";
  if (HasFailure()) ADD_FAILURE() << "its output:\n" << managed.out << managed.err;
  pager_->ExpectNoTrace();
}

INSTANTIATE_TEST_SUITE_P(Case, TransparentTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
