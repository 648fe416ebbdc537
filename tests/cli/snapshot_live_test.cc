// `hostmm snapshot` and `hostmm image` with the real pager and a guest that writes all the time:
// every image is of one moment. Process tier; skips where the doctor says that hostmm cannot run.
//
// Usage: snapshot_live_test HOSTMM LIBRARY PAIR_WRITER FRAMES
//        FRAMES: of the pager; hugetlb raises a sysctl of the machine

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/exit_status.h"
#include "tests/cli/installed_hostmm.h"
#include "tests/cli/pairs.h"
#include "tests/cli/process.h"
#include "tests/testing/sysctl_guard.h"

namespace hostmm::test {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// Pages of 2 MiB that a case needs at most: the region, and what three snapshots have copied.
constexpr int64_t kHugetlbPages = 64;

std::string pair_writer;
std::string frames;

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// After which write of pair_writer the memory was so; nullopt: after none of them.
std::optional<uint64_t> MomentOf(const std::string& memory) {
  if (memory.size() != kPairsBytes) return std::nullopt;
  const auto value_at = [&](size_t page) {
    uint64_t value;
    std::memcpy(&value, memory.data() + page * kPairsPage, sizeof(value));
    return value;
  };
  uint64_t last = 0;
  for (size_t pair = 0; pair < kPairs; ++pair) last = std::max(last, value_at(pair));
  if (last < kPairs) return std::nullopt;
  for (size_t pair = 0; pair < kPairs; ++pair) {
    const uint64_t expected = last - (last - pair) % kPairs;
    if (value_at(pair) != expected) return std::nullopt;
    // The last write may be half done.
    const uint64_t other = value_at(kPairs + pair);
    if (other != expected && !(expected == last && other == last - kPairs)) return std::nullopt;
  }
  return last;
}

class SnapshotLiveTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (frames != "hugetlb") return;
    pool_ = std::make_unique<SysctlGuard>("/proc/sys/vm/nr_overcommit_hugepages", kHugetlbPages);
  }
  static void TearDownTestSuite() { pool_.reset(); }

  void SetUp() override {
    if (pool_ != nullptr && !pool_->ok()) {
      GTEST_SKIP() << "vm.nr_overcommit_hugepages cannot be raised: needs root";
    }
    const Outcome doctor = hostmm_.Run({"doctor"});
    if (doctor.status != ToInt(ExitStatus::kOk) ||
        doctor.out.find("ok    snapshots") == std::string::npos) {
      GTEST_SKIP() << "there are no snapshots here:\n" << doctor.out;
    }
    service_ = std::make_unique<Process>(
        hostmm_.Command({"pager", "--socket", Path("s"), "--frames", frames}));
    ASSERT_TRUE(service_->AwaitErr("serving " + Path("s") + " mode="));
    writer_ = std::make_unique<Process>(
        Launch{.command = {pair_writer}, .environment = {{"HOSTMM_SOCKET", Path("s")}}});
    ASSERT_TRUE(writer_->AwaitOut("up\n")) << writer_->err();
  }

  std::string Path(const std::string& name) const { return hostmm_.dir().Under(name); }

  Outcome Hostmm(std::vector<std::string> words) const {
    Launch launch = hostmm_.Command(std::move(words));
    launch.environment.back() = {"HOSTMM_SOCKET", Path("s")};
    return RunToEnd(launch);
  }
  void Must(const std::vector<std::string>& words) const {
    const Outcome outcome = Hostmm(words);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
  }
  std::string MemoryOf(std::vector<std::string> images) const {
    fs::remove(Path("raw"));
    images.insert(images.begin(), {"image", "--to", Path("raw")});
    Must(images);
    return Read(Path("raw"));
  }

  // By a snapshot that is gone when this returns.
  std::optional<uint64_t> MomentNow() const {
    fs::remove(Path("image"));
    Must({"snapshot", "pairs", Path("image"), "--quiet"});
    const std::optional<uint64_t> moment = MomentOf(MemoryOf({Path("image")}));
    EXPECT_TRUE(moment.has_value());
    return moment;
  }

  static inline std::unique_ptr<SysctlGuard> pool_;
  InstalledHostmm hostmm_;
  std::unique_ptr<Process> service_;
  std::unique_ptr<Process> writer_;
};

TEST_F(SnapshotLiveTest, ImagesAreOfOneMoment) {
  std::optional<uint64_t> first;
  std::optional<uint64_t> before = 0;
  for (int round = 0; round < 20; ++round) {
    const std::optional<uint64_t> moment = MomentNow();
    ASSERT_TRUE(moment.has_value()) << "round " << round;
    // On a busy machine a round can pass in which the writer gets no processor.
    EXPECT_GE(*moment, *before) << "round " << round;
    before = moment;
    if (!first.has_value()) first = moment;
  }
  EXPECT_GT(*before, *first) << "the writer went on";
  EXPECT_EQ(Hostmm({"check"}).status, 0);
}

TEST_F(SnapshotLiveTest, AnIncrementalImageAndItsBaseAreTheLaterMoment) {
  Must({"snapshot", "pairs", Path("full"), "--keep=mon"});
  const std::optional<uint64_t> first = MomentOf(MemoryOf({Path("full")}));
  ASSERT_TRUE(first.has_value());
  Must({"snapshot", "pairs", Path("tue"), "--keep=tue", "--incremental-from=mon"});
  ASSERT_TRUE(Eventually([&] { return MomentNow() > first; })) << "the writer went on";
  Must({"snapshot", "pairs", Path("wed"), "--keep=wed", "--incremental-from=tue"});
  Must({"snapshot", "@wed", Path("wed_full")});
  const std::string chained = MemoryOf({Path("full"), Path("tue"), Path("wed")});
  EXPECT_TRUE(chained == MemoryOf({Path("wed_full")}));
  const std::optional<uint64_t> later = MomentOf(chained);
  ASSERT_TRUE(later.has_value());
  EXPECT_GT(*later, *first);
  EXPECT_EQ(Hostmm({"image", Path("tue"), "--to", Path("no")}).status,
            ToInt(ExitStatus::kBadImage));
}

TEST_F(SnapshotLiveTest, AnImageThatWasCutOffIsGoneOnWith) {
  Must({"snapshot", "pairs", Path("full"), "--keep=mon"});
  const std::string whole = Read(Path("full"));
  for (const size_t bytes : {size_t{100}, whole.size() / 3, whole.size() - 5000}) {
    std::ofstream(Path("cut"), std::ios::binary) << whole.substr(0, bytes) << "torn";
    // What was torn is no part of any image.
    fs::resize_file(Path("cut"), bytes == 100 ? bytes : bytes + 4);
    Must({"snapshot", "@mon", Path("cut"), "--resume"});
    EXPECT_TRUE(Read(Path("cut")) == whole) << bytes;
  }
  // Another snapshot's image is left alone.
  Must({"snapshot", "pairs", Path("other"), "--keep=tue"});
  const Outcome refused = Hostmm({"snapshot", "@mon", Path("other"), "--resume"});
  EXPECT_EQ(refused.status, ToInt(ExitStatus::kBadImage)) << refused.err;
  EXPECT_THAT(refused.err, HasSubstr("no image of this snapshot"));
}

TEST_F(SnapshotLiveTest, APipeGetsTheSameBytes) {
  Must({"snapshot", "pairs", Path("full"), "--keep=mon"});
  const Outcome piped = Hostmm({"snapshot", "@mon", "-", "--quiet"});
  EXPECT_EQ(piped.status, 0) << piped.err;
  EXPECT_TRUE(piped.out == Read(Path("full")));
}

TEST_F(SnapshotLiveTest, KeptSnapshotsLiveUntilTheyAreDropped) {
  Must({"snapshot", "pairs", Path("a"), "--keep=mon"});
  EXPECT_EQ(Hostmm({"snapshot", "pairs", Path("b"), "--keep=mon"}).status,
            ToInt(ExitStatus::kUsage));
  Must({"snapshot", "@mon", Path("b")});
  EXPECT_TRUE(Read(Path("a")) == Read(Path("b")));
  Must({"snapshot", "--drop=mon"});
  EXPECT_EQ(Hostmm({"snapshot", "@mon", Path("c")}).status, ToInt(ExitStatus::kNoSuchRegion));
  EXPECT_EQ(Hostmm({"snapshot", "--drop=mon"}).status, ToInt(ExitStatus::kNoSuchRegion));
  EXPECT_EQ(Hostmm({"snapshot", "no such", Path("c")}).status, ToInt(ExitStatus::kNoSuchRegion));
  EXPECT_FALSE(fs::exists(Path("c")));
}

TEST_F(SnapshotLiveTest, ABaseThatIsNotEarlierIsAMistakeOfTheCommandLine) {
  Must({"snapshot", "pairs", Path("a"), "--keep=mon"});
  Must({"snapshot", "pairs", Path("b"), "--keep=tue"});
  const Outcome later = Hostmm({"snapshot", "@mon", Path("c"), "--incremental-from=tue"});
  EXPECT_EQ(later.status, ToInt(ExitStatus::kUsage));
  EXPECT_THAT(later.err, HasSubstr("hostmm: --incremental-from=tue: the base is not an earlier"));
  EXPECT_FALSE(fs::exists(Path("c")));
  const Outcome resumed =
      Hostmm({"snapshot", "@mon", Path("a"), "--resume", "--incremental-from=tue"});
  EXPECT_EQ(resumed.status, ToInt(ExitStatus::kUsage)) << resumed.err;
}

// The kernel says EIO of every write to an address that a process has not mapped: a disk that
// fails.
TEST_F(SnapshotLiveTest, ADiskThatFailsIsNoLossOfTheSnapshot) {
  const Outcome failed = Hostmm({"snapshot", "pairs", "/proc/self/mem"});
  EXPECT_EQ(failed.status, ToInt(ExitStatus::kImageNotWritten));
  EXPECT_THAT(failed.err, HasSubstr("/proc/self/mem: the image cannot be written: "));
  EXPECT_THAT(failed.err, HasSubstr("; look after the disk, and do it again\n"));
}

// Who wants the image goes: the pager ends the export, its snapshot goes, and everybody goes on.
TEST_F(SnapshotLiveTest, AKilledCommandLeavesThePagerWell) {
  // As `hostmm stats` shows the frames of a file.
  const auto has_snapshot = [&] {
    return Hostmm({"stats"}).out.find(", snapshot, ") != std::string::npos;
  };
  for (int round = 0; round < 5; ++round) {
    Launch launch = hostmm_.Command({"snapshot", "pairs", "-"});
    launch.environment.back() = {"HOSTMM_SOCKET", Path("s")};
    Process command(launch);  // whose pipe nobody reads
    ASSERT_TRUE(Eventually(has_snapshot));
    command.Signal(SIGKILL);
    command.Finish();
    ASSERT_TRUE(Eventually([&] { return !has_snapshot(); }));
  }
  EXPECT_EQ(Hostmm({"check"}).status, 0);
  Must({"snapshot", "pairs", Path("image")});
  EXPECT_TRUE(MomentOf(MemoryOf({Path("image")})).has_value());
}

// The pager dies in the middle of an export: the command says so, and what it has written is found
// not to be whole. The writer goes on.
TEST_F(SnapshotLiveTest, AKilledPagerLeavesNoWholeImage) {
  Launch launch = hostmm_.Command({"snapshot", "pairs", "-"});
  launch.environment.back() = {"HOSTMM_SOCKET", Path("s")};
  Process command(launch);  // whose pipe nobody reads yet
  ASSERT_TRUE(
      Eventually([&] { return Hostmm({"stats"}).out.find(", snapshot, ") != std::string::npos; }));
  service_->Signal(SIGKILL);
  const Outcome outcome = command.Finish();
  EXPECT_EQ(outcome.status, ToInt(ExitStatus::kNoPager)) << outcome.err;
  std::ofstream(Path("half"), std::ios::binary) << outcome.out;
  EXPECT_EQ(hostmm_.Run({"image", Path("half")}).status, ToInt(ExitStatus::kBadImage));
  EXPECT_TRUE(IsAlive(writer_->pid()));
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (argc != 5) {
    fprintf(stderr, "usage: snapshot_live_test HOSTMM LIBRARY PAIR_WRITER FRAMES\n");
    return 2;
  }
  hostmm::test::Sources::binary = argv[1];
  hostmm::test::Sources::library = argv[2];
  hostmm::test::pair_writer = std::filesystem::absolute(argv[3]);
  hostmm::test::frames = argv[4];
  return RUN_ALL_TESTS();
}
