// Images through the C++ API: written to files and pipes while the region is written, gone on with,
// based on an earlier snapshot, and loaded again. The format itself is tested in runtime/image.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/hostmm.h"
#include "tests/api/cpp_session.h"
#include "tests/testing/child.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kBytes = 16 * kMiB;
constexpr size_t kPageBytes = 4096;

void Write(std::byte* at, int value) {
  *const_cast<volatile std::byte*>(at) = static_cast<std::byte>(value);
}

ScopedFd MakeFile() { return ScopedFd(memfd_create("cpp_export", MFD_CLOEXEC)); }

off_t SizeOf(const ScopedFd& file) {
  struct stat info = {};
  return fstat(file.get(), &info) == 0 ? info.st_size : -1;
}

class ExportTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    session_ = OpenSession();
    ASSERT_TRUE(session_.is_open());
    region_ = Map();
    ASSERT_FALSE(region_.empty());
    Fill(1);
  }

  Region Map() {
    absl::StatusOr<Region> region = session_.MapAnonymous(kBytes);
    if (region.ok()) return *std::move(region);
    ADD_FAILURE() << region.status();
    return Region();
  }
  // Every page of the first half has a number of its own, which `round` changes.
  void Fill(uint64_t round) {
    for (size_t at = 0; at < kBytes / 2; at += kPageBytes) {
      const uint64_t number = at * 1000 + round;
      std::memcpy(region_.data() + at + 8, &number, sizeof(number));
    }
  }
  Snapshot Take() {
    absl::StatusOr<Snapshot> snapshot = region_.Snapshot();
    if (snapshot.ok()) return *std::move(snapshot);
    ADD_FAILURE() << snapshot.status();
    return Snapshot();
  }
  // What the image at the descriptor's position holds, loaded over `into`.
  static void ExpectLoads(const ScopedFd& file, const Region& into, const Snapshot& snapshot) {
    ASSERT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
    const absl::Status loaded = LoadImage(file.get(), into);
    ASSERT_TRUE(loaded.ok()) << loaded;
    EXPECT_EQ(lseek(file.get(), 0, SEEK_CUR), SizeOf(file));
    absl::StatusOr<SnapshotView> view = snapshot.Map();
    ASSERT_TRUE(view.ok()) << view.status();
    EXPECT_EQ(std::memcmp(into.data(), view->data(), kBytes), 0);
  }

  Session session_;
  Region region_;
};

TEST_F(ExportTest, IsTheSnapshotWhileTheRegionIsWritten) {
  const Snapshot snapshot = Take();
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (uint64_t round = 2; !stop; ++round) Fill(round);
  });
  const ScopedFd file = MakeFile();
  size_t calls = 0;
  size_t last_done = 0;
  size_t last_total = 0;
  ExportOptions options;
  options.progress = [&](size_t done, size_t total) {
    EXPECT_GE(done, last_done);
    ++calls;
    last_done = done;
    last_total = total;
  };
  const absl::Status exported = snapshot.ExportTo(file.get(), options);
  stop = true;
  writer.join();
  ASSERT_TRUE(exported.ok()) << exported;
  EXPECT_GE(calls, 1u);
  EXPECT_EQ(last_done, kBytes);
  EXPECT_EQ(last_total, kBytes);
  EXPECT_EQ(lseek(file.get(), 0, SEEK_CUR), SizeOf(file));
  // Half of it is nothing.
  EXPECT_LT(SizeOf(file), static_cast<off_t>(kBytes / 2 + kMiB));
  Region into = Map();
  // What the image leaves out becomes zero.
  std::memset(into.data(), 7, kBytes);
  ExpectLoads(file, into, snapshot);
}

TEST_F(ExportTest, ThroughAPipe) {
  const Snapshot snapshot = Take();
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  ScopedFd out(ends[0]);
  ScopedFd in(ends[1]);
  absl::Status exported;
  std::thread exporter([&] {
    exported = snapshot.ExportTo(in.get());
    in = ScopedFd();
  });
  const Region into = Map();
  const absl::Status loaded = LoadImage(out.get(), into);
  exporter.join();
  EXPECT_TRUE(exported.ok()) << exported;
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_EQ(std::memcmp(into.data(), region_.data(), kBytes), 0);
}

TEST_F(ExportTest, AReaderThatGoes) {
  signal(SIGPIPE, SIG_IGN);
  const Snapshot snapshot = Take();
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  ScopedFd out(ends[0]);
  const ScopedFd in(ends[1]);
  out = ScopedFd();
  EXPECT_TRUE(Refused(snapshot.ExportTo(in.get()), EPIPE, "ExportTo"));
  EXPECT_TRUE(snapshot.Check().ok());
}

TEST_F(ExportTest, GoesOnWhereItWasInterrupted) {
  const Snapshot snapshot = Take();
  const ScopedFd whole = MakeFile();
  ASSERT_TRUE(snapshot.ExportTo(whole.get()).ok());
  const off_t bytes = SizeOf(whole);
  Fill(2);
  ExportOptions resume;
  resume.resume = true;
  for (const off_t left : {off_t{0}, off_t{5000}, bytes / 2 + 100, bytes - 1, bytes}) {
    const ScopedFd file = MakeFile();
    std::vector<char> content(static_cast<size_t>(bytes));
    ASSERT_EQ(pread(whole.get(), content.data(), content.size(), 0), bytes);
    ASSERT_EQ(pwrite(file.get(), content.data(), static_cast<size_t>(left), 0), left);
    // What an interrupted writer has left may also be longer.
    if (left == bytes / 2 + 100) {
      ASSERT_EQ(ftruncate(file.get(), bytes + 123'456), 0);
    }
    const absl::Status exported = snapshot.ExportTo(file.get(), resume);
    ASSERT_TRUE(exported.ok()) << exported << " after " << left;
    EXPECT_EQ(SizeOf(file), bytes) << left;
    ExpectLoads(file, Map(), snapshot);
  }
  // Of another snapshot.
  const Snapshot other = Take();
  ASSERT_EQ(lseek(whole.get(), 0, SEEK_SET), 0);
  EXPECT_TRUE(Refused(other.ExportTo(whole.get(), resume), EINVAL, "ExportTo"));
}

TEST_F(ExportTest, OnlyWhatHasChangedSince) {
  const Snapshot first = Take();
  const ScopedFd base = MakeFile();
  ASSERT_TRUE(first.ExportTo(base.get()).ok());
  Write(region_.data() + 5 * kPageBytes, 9);
  ASSERT_TRUE(region_.Advise(2 * kMiB, 2 * kMiB, Advice::kRemove).ok());
  const Snapshot second = Take();
  Fill(3);
  const ScopedFd increment = MakeFile();
  ExportOptions options;
  options.earlier = &first;
  const absl::Status exported = second.ExportTo(increment.get(), options);
  ASSERT_TRUE(exported.ok()) << exported;
  EXPECT_LT(SizeOf(increment), static_cast<off_t>(kMiB));
  const Region into = Map();
  ExpectLoads(base, into, first);
  ExpectLoads(increment, into, second);
  // Not the other way round, and not of another region.
  options.earlier = &second;
  EXPECT_TRUE(Refused(first.ExportTo(increment.get(), options), EINVAL, "ExportTo"));
  const Region elsewhere = Map();
  absl::StatusOr<Snapshot> foreign = elsewhere.Snapshot();
  ASSERT_TRUE(foreign.ok()) << foreign.status();
  options.earlier = &*foreign;
  EXPECT_TRUE(Refused(second.ExportTo(increment.get(), options), EINVAL, "ExportTo"));
}

TEST_F(ExportTest, ImagesThatAreNotWhole) {
  const Snapshot snapshot = Take();
  const ScopedFd file = MakeFile();
  ASSERT_TRUE(snapshot.ExportTo(file.get()).ok());
  const off_t bytes = SizeOf(file);
  absl::StatusOr<Region> small = session_.MapAnonymous(kBytes / 2);
  ASSERT_TRUE(small.ok()) << small.status();
  ASSERT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
  EXPECT_TRUE(Refused(LoadImage(file.get(), *small), EFBIG, "LoadImage"));
  EXPECT_TRUE(Refused(LoadImage(file.get(), Region()), ERANGE, "LoadImage"));
  ASSERT_EQ(ftruncate(file.get(), bytes - 1), 0);
  ASSERT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
  EXPECT_TRUE(Refused(LoadImage(file.get(), region_), EILSEQ, "LoadImage"));
}

}  // namespace
}  // namespace hostmm::test
