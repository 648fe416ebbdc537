// Tracked ranges: MINOR registration and UFFDIO_CONTINUE (facts F5, F21, F23), and the page tables
// that write protection pins (facts F19, F20).

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"
#include "tests/testing/touch.h"

namespace hostmm::test {
namespace {

constexpr int64_t kBlockKib = kBlock >> 10;
constexpr size_t kBytes = 4 * kBlock;

class ContinueTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd(UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MISSING_SHMEM));
    UseFile(MemfdFile(kBytes));
  }

  void UseFile(ScopedFd file) {
    uffd_.Close();
    file_ = std::move(file);
    pager_ = ScopedMapping::SharedFile(file_.get(), kBytes);
    guest_ = ScopedMapping::SharedFile(file_.get(), kBytes);
    ASSERT_TRUE(pager_.ok() && guest_.ok()) << strerror(errno);
    uffd_ = TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM);
    ASSERT_EQ(uffd_.Register(guest_.data(), kBytes, UFFDIO_REGISTER_MODE_MINOR), 0);
  }

  ScopedFd file_;
  ScopedMapping pager_;
  ScopedMapping guest_;
  TestUffd uffd_;
};

// F21: a present page raises a minor fault, one CONTINUE maps it and wakes.
TEST_F(ContinueTest, PresentPageIsContinued) {
  WriteByte(pager_.block(1), 7);
  Touch touch(&uffd_, guest_.block(1), Touch::Kind::kRead);
  const auto fault = uffd_.WaitFault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_TRUE(fault->flags & UFFD_PAGEFAULT_FLAG_MINOR);
  EXPECT_EQ(fault->address, reinterpret_cast<uint64_t>(guest_.block(1)));

  int64_t done = 0;
  ASSERT_EQ(uffd_.Continue(guest_.block(1), kPage, &done), 0);
  EXPECT_EQ(done, int64_t{kPage});
  EXPECT_TRUE(touch.Finished());
  EXPECT_EQ(ReadByte(guest_.block(1)), 7);
  EXPECT_EQ(RssKib(guest_.data()), 4);
}

// MINOR alone: a hole is none of its business and fills natively.
TEST_F(ContinueTest, HoleRaisesNothing) {
  Touch touch(&uffd_, guest_.block(1), Touch::Kind::kRead);
  EXPECT_TRUE(touch.Finished());
  EXPECT_TRUE(uffd_.Quiet());
}

// F21: one call maps a whole block, and one maps many.
TEST_F(ContinueTest, OneCallMapsManyPages) {
  memset(pager_.data(), 7, kBytes);
  int64_t done = 0;
  ASSERT_EQ(uffd_.Continue(guest_.data(), kBlock, &done), 0);
  EXPECT_EQ(done, int64_t{kBlock});
  EXPECT_EQ(RssKib(guest_.data()), kBlockKib);
  ASSERT_EQ(uffd_.Continue(guest_.block(1), kBytes - kBlock, &done), 0);
  EXPECT_EQ(done, static_cast<int64_t>(kBytes - kBlock));

  Touch touch(&uffd_, [this] { ReadEvery(guest_.data(), kBytes, kPage); });
  EXPECT_TRUE(touch.Finished());
  EXPECT_LE(touch.minor_faults(), kStrayFaults);
  EXPECT_TRUE(uffd_.Quiet());
}

// F5: what a second answer, a hole and a half-filled range say. A partial count comes as EAGAIN.
TEST_F(ContinueTest, ErrorsAreNamed) {
  int64_t done = 0;
  EXPECT_EQ(uffd_.Continue(guest_.data(), kPage, &done), EFAULT) << "no page in the file";

  WriteByte(pager_.data(), 7);
  ASSERT_EQ(uffd_.Continue(guest_.data(), kPage, &done), 0);
  EXPECT_EQ(uffd_.Continue(guest_.data(), kPage, &done), EEXIST);
  EXPECT_EQ(done, -EEXIST);

  WriteByte(pager_.data() + kPage, 7);
  WriteByte(pager_.data() + 2 * kPage, 7);
  EXPECT_EQ(uffd_.Continue(guest_.data() + kPage, 4 * kPage, &done), EAGAIN);
  EXPECT_EQ(done, 2 * int64_t{kPage}) << "two pages, then a hole";

  const std::vector<char> page(kPage, 9);
  EXPECT_EQ(uffd_.Copy(guest_.data(), page.data(), kPage), EEXIST);
}

// F23: CONTINUE installs small entries, even over a huge frame. This is why the steady state is
// native.
TEST_F(ContinueTest, ContinueOverAHugeFrameMapsSmall) {
  HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
  ASSERT_NO_FATAL_FAILURE(UseFile(HugeTmpfsFile(kBytes)));
  WriteByte(pager_.block(1), 7);
  int64_t done = 0;
  ASSERT_EQ(uffd_.Continue(guest_.block(1), kBlock, &done), 0);
  EXPECT_EQ(done, int64_t{kBlock});
  const auto guest = ReadVma(0, guest_.data());
  ASSERT_TRUE(guest.has_value());
  EXPECT_EQ(guest->rss_kib, kBlockKib);
  EXPECT_EQ(guest->shmem_pmd_mapped_kib, 0);
  EXPECT_EQ(PmdMappedKib(pager_.data()), kBlockKib) << "the frame itself is huge";
}

// Leaving the tracked state: unregister, zap, and the next touch maps the block whole again.
TEST_F(ContinueTest, UnregisterAndZapGoBackToHuge) {
  HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
  ASSERT_NO_FATAL_FAILURE(UseFile(HugeTmpfsFile(kBytes)));
  WriteByte(pager_.block(1), 7);
  int64_t done = 0;
  ASSERT_EQ(uffd_.Continue(guest_.block(1), kBlock, &done), 0);
  ASSERT_EQ(uffd_.Unregister(guest_.data(), kBytes), 0);
  ReadByte(guest_.block(1));
  EXPECT_EQ(PmdMappedKib(guest_.data()), 0) << "small entries stay until they are zapped";
  ASSERT_EQ(madvise(guest_.block(1), kBlock, MADV_DONTNEED), 0);
  ReadByte(guest_.block(1));
  EXPECT_EQ(PmdMappedKib(guest_.data()), kBlockKib);
}

// Revoke: a PMD-mapped block becomes tracked. Registering MINOR alone leaves what is mapped; after
// a zap every access comes as a minor fault.
TEST_F(ContinueTest, RegisterThenZapRevokesAHugeMapping) {
  HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
  ASSERT_NO_FATAL_FAILURE(UseFile(HugeTmpfsFile(kBytes)));
  ASSERT_EQ(uffd_.Unregister(guest_.data(), kBytes), 0);
  WriteByte(pager_.block(1), 7);
  ReadByte(guest_.block(1));
  ASSERT_EQ(PmdMappedKib(guest_.data()), kBlockKib);

  ASSERT_EQ(uffd_.Register(guest_.data(), kBytes, UFFDIO_REGISTER_MODE_MINOR), 0);
  ASSERT_EQ(madvise(guest_.block(1), kBlock, MADV_DONTNEED), 0);
  Touch touch(&uffd_, guest_.block(1), Touch::Kind::kRead);
  const auto fault = uffd_.WaitFault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_TRUE(fault->flags & UFFD_PAGEFAULT_FLAG_MINOR);
  int64_t done = 0;
  ASSERT_EQ(uffd_.Continue(guest_.block(1), kPage, &done), 0);
  EXPECT_TRUE(touch.Finished());
}

class PinnedTableTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd(UFFD_FEATURE_WP_HUGETLBFS_SHMEM));
    file_ = MemfdFile(kBytes);
    guest_ = ScopedMapping::SharedFile(file_.get(), kBytes);
    ASSERT_TRUE(guest_.ok());
    memset(guest_.data(), 7, kBytes);
  }

  // Page tables given back by a zap of the whole mapping, in KiB.
  int64_t TablesFreedByZap() {
    const int64_t before = StatusKib(0, "VmPTE");
    madvise(guest_.data(), kBytes, MADV_DONTNEED);
    return before - StatusKib(0, "VmPTE");
  }

  ScopedFd file_;
  ScopedMapping guest_;
};

// F20: with CONFIG_PT_RECLAIM a zap of whole blocks frees their tables.
TEST_F(PinnedTableTest, ZapFreesTablesOfWholeBlocks) {
  const int64_t freed = TablesFreedByZap();
  if (freed == 0) GTEST_SKIP() << "the kernel lacks CONFIG_PT_RECLAIM (Linux 6.14)";
  EXPECT_EQ(freed, static_cast<int64_t>(4 * kBytes / kBlock));  // 4 KiB for each block
}

// F19: write protection leaves markers, which keep the tables.
TEST_F(PinnedTableTest, WriteProtectionPinsTables) {
  const TestUffd uffd = TestUffd::Open(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
  ASSERT_EQ(uffd.Register(guest_.data(), kBytes, UFFDIO_REGISTER_MODE_WP), 0);
  ASSERT_EQ(uffd.WriteProtect(guest_.data(), kBytes, UFFDIO_WRITEPROTECT_MODE_WP), 0);
  EXPECT_EQ(TablesFreedByZap(), 0);
}

// F18, counted: remote write protection of a PMD mapping splits it into small entries.
TEST_F(PinnedTableTest, WriteProtectionSplitsHugeMappings) {
  HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
  const ScopedFd huge = HugeTmpfsFile(kBlock);
  const ScopedMapping view = ScopedMapping::SharedFile(huge.get(), kBlock);
  ASSERT_TRUE(view.ok());
  WriteByte(view.data(), 7);
  ASSERT_EQ(PmdMappedKib(view.data()), kBlockKib);
  const TestUffd uffd = TestUffd::Open(UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
  ASSERT_EQ(uffd.Register(view.data(), kBlock, UFFDIO_REGISTER_MODE_WP), 0);
  ASSERT_EQ(uffd.WriteProtect(view.data(), kBlock, UFFDIO_WRITEPROTECT_MODE_WP), 0);
  EXPECT_EQ(PmdMappedKib(view.data()), 0);
}

}  // namespace
}  // namespace hostmm::test
