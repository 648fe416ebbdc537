// The steady state: holes trap, what is present is mapped natively at PMD level (fact F11), and
// what becomes of a registration when the guest changes its mapping.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "tests/testing/child.h"
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
constexpr size_t kBlocks = 16;

// A pager's and a guest's view of one huge tmpfs file; the guest's is registered MISSING.
class MissingPmdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
    file_ = HugeTmpfsFile(kBlocks * kBlock);
    pager_ = ScopedMapping::SharedFile(file_.get(), kBlocks * kBlock);
    guest_ = ScopedMapping::SharedFile(file_.get(), kBlocks * kBlock);
    ASSERT_TRUE(pager_.ok() && guest_.ok()) << strerror(errno);
    uffd_ = TestUffd::Open();
    ASSERT_EQ(uffd_.Register(guest_.data(), guest_.size(), UFFDIO_REGISTER_MODE_MISSING), 0);
  }

  // Touches a hole at `at` of a guest's range and expects that it raises an event, which is
  // answered by a touch of `pager_at`; true if all went that way.
  bool HoleRaisesEvent(char* at, char* pager_at) {
    Touch touch(&uffd_, at, Touch::Kind::kRead);
    const auto fault = uffd_.WaitFault();
    if (!fault || fault->address != reinterpret_cast<uint64_t>(at)) return false;
    if (madvise(pager_at, kBlock, MADV_POPULATE_WRITE) != 0) return false;
    return uffd_.Wake(at, kPage) == 0 && touch.Finished();
  }

  bool HoleIsFilledNatively(char* at) {
    Touch touch(&uffd_, at, Touch::Kind::kRead);
    return touch.Finished() && uffd_.Quiet();
  }

  ScopedFd file_;
  ScopedMapping pager_;
  ScopedMapping guest_;
  TestUffd uffd_;
};

// F11.
TEST_F(MissingPmdTest, PagerTouchesThenWakesAndTheGuestMapsHuge) {
  Touch touch(&uffd_, guest_.block(3) + 5 * kPage, Touch::Kind::kWrite);
  const auto fault = uffd_.WaitFault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->address, reinterpret_cast<uint64_t>(guest_.block(3) + 5 * kPage));
  EXPECT_TRUE(fault->flags & UFFD_PAGEFAULT_FLAG_WRITE);
  EXPECT_TRUE(touch.StillWaiting());

  WriteByte(pager_.block(3), 7);
  ASSERT_EQ(uffd_.Wake(guest_.block(3), kBlock), 0);
  ASSERT_TRUE(touch.Finished());
  EXPECT_EQ(PmdMappedKib(guest_.data()), kBlockKib);
  EXPECT_EQ(ReadByte(guest_.block(3)), 7);
  EXPECT_TRUE(uffd_.Quiet());
}

// F11, with the call that reports an error (a full file system) instead of raising SIGBUS.
TEST_F(MissingPmdTest, PopulateWriteServesAsWell) {
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(2), pager_.block(2)));
  EXPECT_EQ(PmdMappedKib(guest_.data()), kBlockKib);
}

// F11: what the pager filled before the guest came raises nothing, and the VMA stays one.
TEST_F(MissingPmdTest, PopulatedBlocksNeedNoEventAndNoSplit) {
  ASSERT_EQ(madvise(pager_.data(), pager_.size(), MADV_POPULATE_WRITE), 0);
  Touch touch(&uffd_, [this] { ReadEvery(guest_.data(), guest_.size(), kPage); });
  ASSERT_TRUE(touch.Finished());
  EXPECT_LE(touch.minor_faults(), int64_t{kBlocks} + kStrayFaults);
  EXPECT_TRUE(uffd_.Quiet());
  const auto vma = ReadVma(0, guest_.data());
  ASSERT_TRUE(vma.has_value());
  EXPECT_EQ(vma->shmem_pmd_mapped_kib, kBlockKib * int64_t{kBlocks});
  EXPECT_EQ(vma->end - vma->begin, kBlocks * kBlock);
  EXPECT_TRUE(vma->HasFlag("um"));
}

// F11: a second guest, with a registration of its own, pays nothing for what is there.
TEST_F(MissingPmdTest, SecondProcessMapsHugeWithoutEvent) {
  ASSERT_EQ(madvise(pager_.data(), pager_.size(), MADV_POPULATE_WRITE), 0);
  Child second(Identity::kSame, [this](Channel&) {
    const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBlocks * kBlock);
    TestUffd uffd = TestUffd::Open();
    CHILD_CHECK(uffd.Register(view.data(), view.size(), UFFDIO_REGISTER_MODE_MISSING) == 0);
    ReadEvery(view.data(), view.size(), kPage);
    CHILD_CHECK(PmdMappedKib(view.data()) == kBlockKib * int64_t{kBlocks});
    CHILD_CHECK(uffd.Quiet());
    return 0;
  });
  EXPECT_EQ(second.Wait(), 0);
}

// A wake without a page only makes the fault come again: no wake is ever lost, and answering a
// hole with a wake alone would loop.
TEST_F(MissingPmdTest, WakeWithoutPageRaisesTheFaultAgain) {
  Touch touch(&uffd_, guest_.block(1), Touch::Kind::kRead);
  ASSERT_TRUE(uffd_.WaitFault().has_value());
  ASSERT_EQ(uffd_.Wake(guest_.block(1), kPage), 0);
  ASSERT_TRUE(uffd_.WaitFault().has_value()) << "the fault is raised a second time";
  WriteByte(pager_.block(1), 7);
  ASSERT_EQ(uffd_.Wake(guest_.block(1), kPage), 0);
  EXPECT_TRUE(touch.Finished());
}

// The guest's own zap brings a native refault; a hole punched in the file traps again.
TEST_F(MissingPmdTest, ZapIsNativeAndHolePunchTraps) {
  WriteByte(pager_.block(0), 7);
  ReadByte(guest_.block(0));
  ASSERT_EQ(madvise(guest_.block(0), kBlock, MADV_DONTNEED), 0);
  EXPECT_TRUE(HoleIsFilledNatively(guest_.block(0)));
  EXPECT_EQ(ReadByte(guest_.block(0)), 7);

  ASSERT_EQ(madvise(pager_.block(0), kBlock, MADV_REMOVE), 0);
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(0), pager_.block(0)));
  EXPECT_EQ(ReadByte(guest_.block(0)), 0);
}

TEST_F(MissingPmdTest, MprotectSplitKeepsTheRegistration) {
  ASSERT_EQ(mprotect(guest_.block(4), kBlock, PROT_READ), 0);
  const auto middle = ReadVma(0, guest_.block(4));
  ASSERT_TRUE(middle.has_value());
  ASSERT_EQ(middle->end - middle->begin, kBlock);
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(3), pager_.block(3)));
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(4), pager_.block(4)));
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(5), pager_.block(5)));
}

// Without UFFD_FEATURE_EVENT_REMAP a moved range is silently no longer watched: register it again.
TEST_F(MissingPmdTest, MremapMoveDropsTheRegistration) {
  char* target = ReserveAligned(4 * kBlock, kBlock);
  ASSERT_NE(target, nullptr);
  ASSERT_EQ(mremap(guest_.block(4), 4 * kBlock, 4 * kBlock, MREMAP_MAYMOVE | MREMAP_FIXED, target),
            target)
      << strerror(errno);
  const ScopedMapping moved = ScopedMapping::Adopt(target, 4 * kBlock);
  EXPECT_FALSE(ReadVma(0, moved.data())->HasFlag("um"));
  EXPECT_TRUE(HoleIsFilledNatively(moved.block(0)));
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(3), pager_.block(3))) << "what stayed is watched";

  ASSERT_EQ(uffd_.Register(moved.data(), moved.size(), UFFDIO_REGISTER_MODE_MISSING), 0);
  EXPECT_TRUE(HoleRaisesEvent(moved.block(1), pager_.block(5)));
}

// MREMAP_DONTUNMAP leaves an empty, still registered range behind; the moved one is not registered.
TEST_F(MissingPmdTest, MremapDontUnmapKeepsTheOldRangeRegistered) {
  char* target = ReserveAligned(4 * kBlock, kBlock);
  ASSERT_NE(target, nullptr);
  void* result = mremap(guest_.block(4), 4 * kBlock, 4 * kBlock,
                        MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, target);
  if (result == MAP_FAILED && errno == EINVAL) {
    munmap(target, 4 * kBlock);
    GTEST_SKIP() << "MREMAP_DONTUNMAP of shared memory needs Linux 5.13";
  }
  ASSERT_EQ(result, target);
  const ScopedMapping moved = ScopedMapping::Adopt(target, 4 * kBlock);
  EXPECT_TRUE(HoleIsFilledNatively(moved.block(0)));
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(5), pager_.block(5)));
}

// mremap with an old size of 0 makes a second view of the same file: it is not registered.
TEST_F(MissingPmdTest, MremapDuplicateIsNotRegistered) {
  void* copy = mremap(guest_.block(4), 0, 4 * kBlock, MREMAP_MAYMOVE);
  ASSERT_NE(copy, MAP_FAILED) << strerror(errno);
  const ScopedMapping duplicate = ScopedMapping::Adopt(static_cast<char*>(copy), 4 * kBlock);
  EXPECT_TRUE(HoleIsFilledNatively(duplicate.data()));
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(5), pager_.block(5)));
}

TEST_F(MissingPmdTest, MremapGrowInPlaceIsRegistered) {
  ASSERT_EQ(munmap(guest_.block(12), 4 * kBlock), 0);
  ASSERT_EQ(mremap(guest_.block(0), 12 * kBlock, kBlocks * kBlock, 0), guest_.data())
      << strerror(errno);
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(13), pager_.block(13)));
}

TEST_F(MissingPmdTest, MapFixedOverAPartDropsTheRegistrationThere) {
  ASSERT_NE(mmap(guest_.block(6), kBlock, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 file_.get(), 6 * kBlock),
            MAP_FAILED);
  EXPECT_TRUE(HoleIsFilledNatively(guest_.block(6)));
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(7), pager_.block(7)));
}

// Beyond the end of the file the kernel answers itself (SIGBUS); what a ftruncate adds is watched.
TEST_F(MissingPmdTest, BeyondEndOfFileRaisesNoEventUntilTheFileGrows) {
  ASSERT_EQ(ftruncate(file_.get(), 8 * kBlock), 0);
  Child beyond(Identity::kSame, [this](Channel&) {
    const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBlocks * kBlock);
    TestUffd uffd = TestUffd::Open();
    CHILD_CHECK(uffd.Register(view.data(), view.size(), UFFDIO_REGISTER_MODE_MISSING) == 0);
    ReadByte(view.block(9));
    return 0;
  });
  EXPECT_EQ(beyond.Wait(kWakeDeadline), 128 + SIGBUS);
  EXPECT_EQ(madvise(pager_.block(9), kBlock, MADV_POPULATE_WRITE), -1);
  EXPECT_EQ(errno, EFAULT);

  ASSERT_EQ(ftruncate(file_.get(), kBlocks * kBlock), 0);
  EXPECT_TRUE(HoleRaisesEvent(guest_.block(9), pager_.block(9)));
}

}  // namespace
}  // namespace hostmm::test
