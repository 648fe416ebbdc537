// Huge frames without a system setting: a detached tmpfs with huge=within_size (facts F8, F9,
// F12a, F12b).

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "tests/testing/child.h"
#include "tests/testing/collapse.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

// Enough that a fallback to small pages for a few of them could not pass for huge.
constexpr size_t kBlocks = 16;

// Touches one byte per block of a file and returns how much of it the caller sees at PMD level.
int64_t PmdKibAfterOneTouchPerBlock(const ScopedFd& file) {
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), kBlocks * kBlock);
  if (!mapping.ok()) return -1;
  for (size_t i = 0; i < kBlocks; ++i) WriteByte(mapping.block(i), 1);
  return PmdMappedKib(mapping.data());
}

size_t PagesOfFile(const ScopedMapping& mapping) {
  std::string present(mapping.size() / kPage, '\0');
  if (mincore(mapping.data(), mapping.size(), reinterpret_cast<unsigned char*>(present.data())) !=
      0) {
    return 0;
  }
  size_t count = 0;
  for (const char page : present) count += page & 1;
  return count;
}

class HugeTmpfsTest : public ::testing::Test {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(WhyNoHugeTmpfs()); }
};

// F8: huge on first touch although nothing is mounted anywhere and shmem_enabled is not consulted.
TEST_F(HugeTmpfsTest, FirstTouchGivesHugeFrame) {
  const ScopedFd file = HugeTmpfsFile(kBlocks * kBlock);
  ASSERT_TRUE(file.valid()) << strerror(errno);
  EXPECT_EQ(PmdKibAfterOneTouchPerBlock(file), int64_t{kBlocks * kBlock >> 10});
}

// F8: the frames are seen as huge by another process, which needs one fault per block.
TEST_F(HugeTmpfsTest, OtherProcessMapsTheSameHugeFrames) {
  const ScopedFd file = HugeTmpfsFile(kBlocks * kBlock);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), kBlocks * kBlock);
  ASSERT_TRUE(mapping.ok());
  for (size_t i = 0; i < kBlocks; ++i) WriteByte(mapping.block(i) + 5, 42);

  Child reader(Identity::kSame, [&](Channel&) {
    const ScopedMapping view = ScopedMapping::SharedFile(file.get(), kBlocks * kBlock, PROT_READ);
    CHILD_CHECK(view.ok());
    const int64_t before = MinorFaultsOfThisThread();
    for (size_t i = 0; i < kBlocks; ++i) CHILD_CHECK(ReadByte(view.block(i) + 5) == 42);
    const int64_t faults = MinorFaultsOfThisThread() - before;
    CHILD_CHECK(faults <= int64_t{kBlocks} + 4);  // + 4: code and stack of this loop
    CHILD_CHECK(PmdMappedKib(view.data()) == int64_t{kBlocks * kBlock >> 10});
    return 0;
  });
  EXPECT_EQ(reader.Wait(), 0);
}

// F8: an unprivileged process gets the same from a user namespace of a short-lived child, and the
// file outlives that child, its namespaces and the mount descriptor.
TEST_F(HugeTmpfsTest, NobodyGetsHugeFramesFromAUserNamespace) {
  HOSTMM_SKIP_IF(WhyNoRoot());
  Child nobody(Identity::kNobody, [](Channel& channel) {
    ScopedFd mount_fd = MountDetachedTmpfsInUserNamespace({});
    if (!mount_fd.valid()) return errno == EPERM || errno == ENOSPC || errno == EACCES ? 77 : 1;
    const ScopedFd file = UnnamedFileOn(mount_fd.get(), kBlocks * kBlock);
    CHILD_CHECK(file.valid());
    mount_fd.Close();
    CHILD_CHECK(channel.SendFd(file.get()));
    CHILD_CHECK(PmdKibAfterOneTouchPerBlock(file) == int64_t{kBlocks * kBlock >> 10});
    return 0;
  });
  const ScopedFd file = nobody.channel().ReceiveFd();
  const int exit_code = nobody.Wait();
  if (exit_code == 77) GTEST_SKIP() << "user namespaces are not allowed for unprivileged users";
  ASSERT_EQ(exit_code, 0);
  // The descriptor can be passed to anyone: here to root, outside of that namespace.
  ASSERT_TRUE(file.valid());
  EXPECT_EQ(PmdKibAfterOneTouchPerBlock(file), int64_t{kBlocks * kBlock >> 10});
}

// Why the user namespace: without it the first step is refused.
TEST_F(HugeTmpfsTest, NobodyMayNotMountDirectly) {
  HOSTMM_SKIP_IF(WhyNoRoot());
  Child nobody(Identity::kNobody, [](Channel&) {
    CHILD_CHECK(!MountDetachedTmpfs({}).valid() && errno == EPERM);
    return 0;
  });
  EXPECT_EQ(nobody.Wait(), 0);
}

// F9, counted: a huge first touch is one fault where small pages take 512.
TEST_F(HugeTmpfsTest, OneFaultPerBlock) {
  const ScopedFd file = HugeTmpfsFile(kBlock);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(mapping.ok());
  const int64_t before = MinorFaultsOfThisThread();
  for (size_t offset = 0; offset < kBlock; offset += kPage) WriteByte(mapping.data() + offset, 1);
  EXPECT_LE(MinorFaultsOfThisThread() - before, 1 + kStrayFaults);
}

class TmpfsLimitTest : public HugeTmpfsTest, public ::testing::WithParamInterface<Identity> {};

// F12b: "no limit" and a limit beyond memory are accepted, as root and in a user namespace.
TEST_P(TmpfsLimitTest, SizeAndInodeLimits) {
  HOSTMM_SKIP_IF(WhyNoRoot());
  const auto mount =
      GetParam() == Identity::kNobody ? MountDetachedTmpfsInUserNamespace : MountDetachedTmpfs;
  Child child(GetParam(), [mount](Channel&) {
    const ScopedFd unlimited = mount({});
    if (!unlimited.valid()) return errno == EPERM || errno == ENOSPC || errno == EACCES ? 77 : 1;
    struct statfs stats = {};
    CHILD_CHECK(fstatfs(unlimited.get(), &stats) == 0);
    CHILD_CHECK(stats.f_blocks == 0 && stats.f_files == 0);

    // 1,000 GiB: more than the machines that run this have.
    const ScopedFd large = mount({.huge = "within_size", .size = "1000g", .nr_inodes = ""});
    CHILD_CHECK(large.valid() && fstatfs(large.get(), &stats) == 0);
    CHILD_CHECK(stats.f_blocks == (uint64_t{1000} << 30) / kPage);

    // The default is half of memory: too little for a database of the size of the machine.
    const ScopedFd standard = mount({.huge = "within_size", .size = "", .nr_inodes = ""});
    CHILD_CHECK(standard.valid() && fstatfs(standard.get(), &stats) == 0);
    const uint64_t total_pages = MeminfoKib("MemTotal") / 4;
    CHILD_CHECK(stats.f_blocks <= total_pages / 2 + 1 && stats.f_blocks >= total_pages / 2 - 1);
    return 0;
  });
  const int exit_code = child.Wait();
  if (exit_code == 77) GTEST_SKIP() << "user namespaces are not allowed for unprivileged users";
  EXPECT_EQ(exit_code, 0);
}

INSTANTIATE_TEST_SUITE_P(Who, TmpfsLimitTest, ::testing::Values(Identity::kSame, Identity::kNobody),
                         [](const auto& info) {
                           return info.param == Identity::kSame ? "Caller" : "Nobody";
                         });

// The block in which a file ends gets small pages, so that what lies behind the end stays out of
// reach. (With huge=always it is one huge frame, which is mapped whole.)
TEST_F(HugeTmpfsTest, NothingBehindTheEndOfAFile) {
  constexpr size_t kFileBytes = kBlock + kBlock / 2;
  const ScopedFd file = HugeTmpfsFile(kFileBytes);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), 2 * kBlock);
  ASSERT_TRUE(mapping.ok());
  WriteByte(mapping.block(0), 1);
  WriteByte(mapping.block(1), 1);
  EXPECT_EQ(PmdMappedKib(mapping.data()), int64_t{kBlock >> 10});
  EXPECT_NE(madvise(mapping.block(0) + kFileBytes, kPage, MADV_POPULATE_WRITE), 0);
  EXPECT_EQ(errno, EFAULT);
}

// F12a: the mapping that touches first decides, not the file.
TEST_F(HugeTmpfsTest, NoHugePageMappingAllocatesSmallPages) {
  const ScopedFd file = HugeTmpfsFile(kBlocks * kBlock);
  const ScopedMapping huge = ScopedMapping::SharedFile(file.get(), kBlocks * kBlock);
  const ScopedMapping small = ScopedMapping::SharedFile(file.get(), kBlocks * kBlock);
  ASSERT_TRUE(huge.ok() && small.ok());
  ASSERT_EQ(madvise(small.data(), small.size(), MADV_NOHUGEPAGE), 0);

  for (size_t i = 0; i < kBlocks; ++i) WriteByte(small.block(i), 1);
  EXPECT_EQ(PagesOfFile(small), kBlocks);
  EXPECT_EQ(PmdMappedKib(huge.data()), 0);

  // Once small, a block stays small: a touch of a hole beside it adds one page, not two MiB.
  WriteByte(huge.block(0) + kBlock / 2, 1);
  EXPECT_EQ(PagesOfFile(small), kBlocks + 1);
}

// F12a: filled with small pages, then collapsed through the normal mapping; data intact.
TEST_F(HugeTmpfsTest, SmallFilledBlockCollapses) {
  HOSTMM_SKIP_IF(WhyNoCollapse());
  const ScopedFd file = HugeTmpfsFile(kBlock);
  const ScopedMapping huge = ScopedMapping::SharedFile(file.get(), kBlock);
  const ScopedMapping small = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(huge.ok() && small.ok());
  ASSERT_EQ(madvise(small.data(), kBlock, MADV_NOHUGEPAGE), 0);
  memset(small.data(), 7, kBlock);

  EXPECT_EQ(madvise(small.data(), kBlock, kMadvCollapse), -1);
  EXPECT_EQ(errno, EINVAL) << "collapse goes through the mapping that may be huge";
  ASSERT_EQ(Collapse(huge.data()), 0);
  EXPECT_EQ(PmdMappedKib(huge.data()), int64_t{kBlock >> 10});
  EXPECT_EQ(ReadByte(huge.data() + kBlock - 1), 7);
}

// A guest's own MADV_NOHUGEPAGE maps even a huge frame with small entries: do not forward it
// blindly.
TEST_F(HugeTmpfsTest, NoHugePageViewOfAHugeFrameUsesSmallEntries) {
  const ScopedFd file = HugeTmpfsFile(kBlock);
  const ScopedMapping huge = ScopedMapping::SharedFile(file.get(), kBlock);
  const ScopedMapping small = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(huge.ok() && small.ok());
  ASSERT_EQ(madvise(small.data(), kBlock, MADV_NOHUGEPAGE), 0);
  WriteByte(huge.data(), 1);
  ReadEvery(small.data(), kBlock, kPage);
  EXPECT_EQ(PmdMappedKib(huge.data()), int64_t{kBlock >> 10});
  EXPECT_EQ(PmdMappedKib(small.data()), 0);
}

// What a full tmpfs looks like: MADV_POPULATE_WRITE says EFAULT instead of SIGBUS, and has used up
// what was left as small pages. A punched block gives the room back.
TEST_F(HugeTmpfsTest, FullTmpfsIsAnErrnoForPopulate) {
  const size_t limit = 2 * kBlock + kBlock / 2;
  const ScopedFd file = HugeTmpfsFile(
      4 * kBlock, {.huge = "within_size", .size = std::to_string(limit), .nr_inodes = ""});
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), 4 * kBlock);
  ASSERT_TRUE(mapping.ok());
  ASSERT_EQ(madvise(mapping.block(0), 2 * kBlock, MADV_POPULATE_WRITE), 0);
  EXPECT_EQ(madvise(mapping.block(2), kBlock, MADV_POPULATE_WRITE), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(PagesOfFile(mapping), limit / kPage);

  ASSERT_EQ(madvise(mapping.block(0), kBlock, MADV_REMOVE), 0);
  EXPECT_EQ(madvise(mapping.block(2), kBlock, MADV_POPULATE_WRITE), 0);
}

}  // namespace
}  // namespace hostmm::test
