// Every case of opt-in sharing, under a pager with frames of one kind: all that it wants is so, and
// it leaves no trace in the pager.
//
// Usage: opt_in_test HOSTMM LIBRARY GUEST WAY FRAMES KINDS
//        WAY: preload (under the preload library) or linked (the guest has the library itself)
//        FRAMES: of the pager; KINDS: the kinds of memory, with commas
#include <algorithm>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"
#include "tests/testing/sysctl_guard.h"

namespace hostmm::test {
namespace {

// Pages of 2 MiB that the cases need at most at one time, with room for what the pager makes ahead.
constexpr int64_t kHugetlbPages = 64;

struct Terms {
  std::string way;
  std::string frames;
  std::string kinds;
};
Terms g_terms;

std::vector<std::string> Cases() {
  std::vector<std::string> wanted;
  std::istringstream lines(RunToEnd({Built::guest, "--list"}).out);
  for (std::string line; std::getline(lines, line);) {
    const size_t kind = line.rfind('_');
    // A case without a kind has nothing to do with one.
    const std::string list = "," + g_terms.kinds + ",";
    if (kind == std::string::npos ||
        list.find("," + line.substr(kind + 1) + ",") != std::string::npos) {
      wanted.push_back(line);
    }
  }
  return wanted;
}

class OptInTest : public testing::TestWithParam<std::string> {
 protected:
  static void SetUpTestSuite() {
    if (g_terms.frames == "hugetlb") {
      pool_ = std::make_unique<SysctlGuard>("/proc/sys/vm/nr_overcommit_hugepages", kHugetlbPages);
    }
    StartPager();
  }
  static void TearDownTestSuite() {
    pager_.reset();
    pool_.reset();
  }
  static void StartPager() {
    pager_ = std::make_unique<ServicePager>(std::vector<std::string>{"--frames", g_terms.frames});
  }

  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    if (pool_ != nullptr && !pool_->ok()) {
      GTEST_SKIP() << "vm.nr_overcommit_hugepages cannot be raised: needs root";
    }
    if (pool_ == nullptr) why_not_huge_ = WhyNoHugeTmpfs();
  }

  Environment GuestEnvironment() const {
    Environment environment = {{"HOSTMM_TEST_PROGRAM", Built::hostmm},
                               {"HOSTMM_TEST_FRAMES", g_terms.frames},
                               {"HOSTMM_TEST_WHY_NOT_HUGE", why_not_huge_}};
    if (g_terms.way == "preload") {
      for (const auto& variable : pager_->GuestEnvironment()) environment.push_back(variable);
    } else {
      environment.emplace_back("HOSTMM_TEST_SOCKET", pager_->socket());
    }
    return environment;
  }

  static inline std::unique_ptr<SysctlGuard> pool_;
  static inline std::unique_ptr<ServicePager> pager_;
  // Why the pager's memory may not become huge now; for the cases that wait for that.
  std::string why_not_huge_;
};

TEST_P(OptInTest, DoesWhatTheTableSays) {
  const Ended ended = RunToEnd({Built::guest, GetParam()}, GuestEnvironment());
  EXPECT_EQ(ended.status, 0);
  EXPECT_EQ(ended.out.find("#BAD"), std::string::npos);
  if (const size_t at = ended.out.find("skipped: "); at != std::string::npos && !HasFailure()) {
    GTEST_SKIP() << ended.out.substr(at + 9);
  }
  EXPECT_NE(ended.out.find("#ok"), std::string::npos) << "nothing was wanted";
  if (HasFailure()) {
    ADD_FAILURE() << "its output:\n" << ended.out << ended.err;
    // What it has left behind is not the next one's trouble.
    StartPager();
    return;
  }
  pager_->ExpectNoTrace();
}

// Without hostmm the same cases must complain: they look at what hostmm does, not at what Linux
// does anyway.
TEST(OptInCasesTest, FailOnPlainLinux) {
  if (g_terms.way != "preload") GTEST_SKIP() << "a linked program starts a pager of its own";
  for (const char* name : {"ProtectChangesAll", "ProtectSmallPart", "ProtectStopsSystemCalls",
                           "NewGuestsGetTheNewProtection", "PagesLeaveWhenAllHaveVoted",
                           "PageOutIsForAll", "ChildWithout"}) {
    const Ended ended = RunToEnd({Built::guest, std::string(name) + "_anonymous"});
    EXPECT_NE(ended.out.find("#BAD"), std::string::npos) << name << ":\n" << ended.out;
  }
}

INSTANTIATE_TEST_SUITE_P(Case, OptInTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] != '-') words.emplace_back(argv[i]);
  }
  if (words.size() != 6) {
    fprintf(stderr, "usage: opt_in_test HOSTMM LIBRARY GUEST WAY FRAMES KINDS\n");
    return 64;
  }
  hostmm::test::g_terms = {words[3], words[4], words[5]};
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
