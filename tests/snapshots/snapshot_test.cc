// Every case of a guest program under a pager of its own: all that the case wants is so, and it
// leaves no trace in the pager.
//
// Usage: snapshot_test HOSTMM LIBRARY GUEST FRAMES KINDS
//        FRAMES: of the pager; KINDS: how regions are mapped, with commas
// A case whose name begins with "Pager" kills the pager. One whose name ends with "OutOfMemory"
// gets a pager with 1 MiB for copies. One that ends with "Huge" is about huge frames.
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"
#include "tests/testing/sysctl_guard.h"

namespace hostmm::test {
namespace {

// Pages of 2 MiB that the cases need at most at one time: regions, and private copies in views.
constexpr int64_t kHugetlbPages = 256;
// Of a case that says so. It takes a machine that stands still for a moment to miss one. Arbitrary.
constexpr int kMostAgain = 4;

std::string g_frames;
std::vector<std::string> g_kinds;

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, separator);) parts.push_back(part);
  return parts;
}

class SnapshotTest : public testing::TestWithParam<std::tuple<std::string, std::string>> {
 protected:
  static void SetUpTestSuite() {
    if (g_frames != "hugetlb") return;
    pool_ = std::make_unique<SysctlGuard>("/proc/sys/vm/nr_overcommit_hugepages", kHugetlbPages);
  }
  static void TearDownTestSuite() { pool_.reset(); }

  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    if (pool_ != nullptr && !pool_->ok()) {
      GTEST_SKIP() << "vm.nr_overcommit_hugepages cannot be raised: needs root";
    }
    if (g_frames == "huge" && name().ends_with("Huge")) HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
    StartPager();
  }
  void TearDown() override { pager_.reset(); }

  void StartPager() {
    std::vector<std::string> options = {"--frames", g_frames};
    if (name().ends_with("OutOfMemory")) {
      options.insert(options.end(), {"--snapshot-memory", "1M"});
    }
    pager_ = std::make_unique<ServicePager>(options);
  }
  Ended RunCase() const { return RunToEnd({Built::guest, name()}, GuestEnvironment()); }

  const std::string& name() const { return std::get<0>(GetParam()); }
  const std::string& kind() const { return std::get<1>(GetParam()); }

  Environment GuestEnvironment() const {
    Environment environment = {{"HOSTMM_TEST_SOCKET", pager_->socket()},
                               {"HOSTMM_TEST_PROGRAM", Built::hostmm},
                               {"HOSTMM_TEST_PAGER", std::to_string(pager_->pid())},
                               {"HOSTMM_TEST_FRAMES", g_frames},
                               {"HOSTMM_TEST_KIND", kind()}};
    // As under `hostmm run`: memory that does not opt in is managed, too.
    if (kind() == "plain") environment.emplace_back("HOSTMM_SOCKET", pager_->socket());
    const char* count = getenv("HOSTMM_SNAPSHOTS");
    if (count != nullptr) environment.emplace_back("HOSTMM_SNAPSHOTS", count);
    return environment;
  }

  static inline std::unique_ptr<SysctlGuard> pool_;
  std::unique_ptr<ServicePager> pager_;
};

TEST_P(SnapshotTest, IsAsWanted) {
  Ended ended = RunCase();
  const auto wants_another = [&ended] {
    return ended.status == 0 && ended.out.find("#again") != std::string::npos &&
           ended.out.find("#BAD") == std::string::npos;
  };
  for (int i = 0; i < kMostAgain && wants_another(); ++i) {
    StartPager();
    ended = RunCase();
  }
  EXPECT_EQ(ended.status, 0);
  EXPECT_EQ(ended.out.find("#again"), std::string::npos);
  EXPECT_EQ(ended.out.find("#BAD"), std::string::npos);
  const size_t skip = ended.out.find("#skip ");
  if (skip != std::string::npos && !HasFailure()) GTEST_SKIP() << ended.out.substr(skip + 6);
  EXPECT_NE(ended.out.find("#ok"), std::string::npos) << "nothing was wanted";
  if (HasFailure()) {
    ADD_FAILURE() << "its output:\n" << ended.out << ended.err;
    EndAllChildren();
    return;
  }
  if (!name().starts_with("Pager")) pager_->ExpectNoTrace();
}

INSTANTIATE_TEST_SUITE_P(
    Case, SnapshotTest,
    testing::Combine(testing::ValuesIn(Split(RunToEnd({Built::guest, "--list"}).out, '\n')),
                     testing::ValuesIn(g_kinds)),
    [](const auto& info) { return std::get<0>(info.param) + "_" + std::get<1>(info.param); });

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  std::vector<std::string> words;
  for (int i = 1; i < argc; ++i) {
    if (argv[i][0] != '-') words.emplace_back(argv[i]);
  }
  if (words.size() != 5) {
    fprintf(stderr, "usage: snapshot_test HOSTMM LIBRARY GUEST FRAMES KINDS\n");
    return 64;
  }
  hostmm::test::g_frames = words[3];
  hostmm::test::g_kinds = hostmm::test::Split(words[4], ',');
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
