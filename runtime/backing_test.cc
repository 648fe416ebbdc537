#include "runtime/backing.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "runtime/frame_store.h"
#include "tests/testing/deadline.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"

namespace hostmm {
namespace {

using FillResult = Backing::FillResult;
using Use = Backing::Use;

constexpr uint64_t kBlocks = 4;
constexpr PageCount kLength{kBlocks * kPagesPerBlock};

uint64_t BytesInFile(const Backing& backing) {
  struct stat info;
  EXPECT_EQ(fstat(backing.file().get(), &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

Backing Make(FrameKind kind, PageCount length = kLength) {
  absl::StatusOr<FrameStore> store = FrameStore::Open(kind);
  EXPECT_TRUE(store.ok()) << store.status();
  absl::StatusOr<UniqueFd> file = store->NewFile(BytesOf(length));
  EXPECT_TRUE(file.ok()) << file.status();
  absl::StatusOr<Backing> backing = Backing::Create(kind, *std::move(file), length);
  EXPECT_TRUE(backing.ok()) << backing.status();
  return *std::move(backing);
}

// A tmpfs that holds no more than `blocks`.
Backing MakeOnSmallTmpfs(uint64_t blocks) {
  test::ScopedFd file =
      test::HugeTmpfsFile(BytesOf(kLength), {.size = std::to_string(blocks * kBlockSize)});
  absl::StatusOr<Backing> backing =
      Backing::Create(FrameKind::kHuge, UniqueFd(dup(file.get())), kLength);
  EXPECT_TRUE(backing.ok()) << backing.status();
  return *std::move(backing);
}

// As often as the kernel says to ask again: somebody else has a page of the block in hand.
FillResult CollapseInTheEnd(const Backing& backing, BlockIndex block) {
  FillResult result = FillResult::kRefused;
  test::PollUntil(test::Deadline(test::kStepDeadline), [&] {
    errno = 0;
    result = backing.Collapse(block);
    return result != FillResult::kRefused || errno != EAGAIN;
  });
  return result;
}

class BackingTest : public testing::Test {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs()); }
};

TEST_F(BackingTest, FillHugeMakesOneFrameOfOneBlock) {
  const Backing backing = Make(FrameKind::kHuge);
  EXPECT_EQ(BytesInFile(backing), 0u);
  EXPECT_EQ(backing.FillHuge(BlockIndex(2)), FillResult::kDone);
  EXPECT_EQ(BytesInFile(backing), kBlockSize);
  // In another mapping it is huge, too.
  const auto view = test::ScopedMapping::SharedFile(backing.file().get(), BytesOf(kLength));
  test::ReadByte(view.block(2));
  EXPECT_EQ(test::PmdMappedKib(view.data()), 2048);
}

TEST_F(BackingTest, FillSmallMakesThesePagesOnly) {
  const Backing backing = Make(FrameKind::kHuge);
  EXPECT_EQ(backing.FillSmall(FilePage(kPagesPerBlock + 5), PageCount(3)), FillResult::kDone);
  EXPECT_EQ(BytesInFile(backing), 3 * kPageSize);
  // Again, overlapping: what is there stays.
  EXPECT_EQ(backing.FillSmall(FilePage(kPagesPerBlock + 4), PageCount(3)), FillResult::kDone);
  EXPECT_EQ(BytesInFile(backing), 4 * kPageSize);
}

TEST_F(BackingTest, FillKeepsContent) {
  const Backing backing = Make(FrameKind::kHuge);
  const auto view = test::ScopedMapping::SharedFile(backing.file().get(), BytesOf(kLength));
  ASSERT_EQ(backing.FillSmall(FilePage(0), PageCount(1)), FillResult::kDone);
  test::WriteByte(view.data(), 42);
  EXPECT_EQ(backing.FillHuge(BlockIndex(0)), FillResult::kDone);
  EXPECT_EQ(test::ReadByte(view.data()), 42);
}

TEST_F(BackingTest, CollapseMakesAFullBlockHugeAndKeepsItsContent) {
  HOSTMM_SKIP_IF(test::WhyNoCollapse());
  const Backing backing = Make(FrameKind::kBase);
  const auto view = test::ScopedMapping::SharedFile(backing.file().get(), BytesOf(kLength));
  ASSERT_EQ(backing.FillSmall(FilePage(0), PageCount(kPagesPerBlock)), FillResult::kDone);
  for (size_t i = 0; i < kPagesPerBlock; ++i) {
    test::WriteByte(view.data() + i * kPageSize, static_cast<char>(i));
  }
  EXPECT_EQ(CollapseInTheEnd(backing, BlockIndex(0)), FillResult::kDone);
  for (size_t i = 0; i < kPagesPerBlock; ++i) {
    ASSERT_EQ(test::ReadByte(view.data() + i * kPageSize), static_cast<char>(i)) << i;
  }
  EXPECT_EQ(test::PmdMappedKib(view.data()), 2048);
}

TEST_F(BackingTest, CollapseOfAnEmptyBlockIsRefused) {
  const Backing backing = Make(FrameKind::kBase);
  EXPECT_NE(backing.Collapse(BlockIndex(1)), FillResult::kDone);
}

TEST_F(BackingTest, AFullStoreIsNoSignal) {
  const Backing backing = MakeOnSmallTmpfs(2);
  EXPECT_EQ(backing.FillHuge(BlockIndex(0)), FillResult::kDone);
  EXPECT_EQ(backing.FillHuge(BlockIndex(1)), FillResult::kDone);
  EXPECT_EQ(backing.FillHuge(BlockIndex(2)), FillResult::kOutOfFrames);
  EXPECT_EQ(backing.FillSmall(FilePage(3 * kPagesPerBlock), PageCount(8)),
            FillResult::kOutOfFrames);
}

TEST_F(BackingTest, AFileCutShortIsNoSignal) {
  const Backing backing = Make(FrameKind::kHuge);
  ASSERT_EQ(ftruncate(backing.file().get(), kBlockSize), 0);
  EXPECT_EQ(backing.FillHuge(BlockIndex(0)), FillResult::kDone);
  EXPECT_EQ(backing.FillHuge(BlockIndex(2)), FillResult::kOutOfFrames);
  EXPECT_EQ(backing.FillSmall(FilePage(3 * kPagesPerBlock), PageCount(1)),
            FillResult::kOutOfFrames);
  EXPECT_EQ(backing.Sample(BlockIndex(3)), Use::kUnused);
}

TEST_F(BackingTest, TheTailBlockCanBeFilledPageByPage) {
  const PageCount length(kPagesPerBlock + 3);
  const Backing backing = Make(FrameKind::kHuge, length);
  EXPECT_EQ(backing.FillSmall(FilePage(kPagesPerBlock), PageCount(3)), FillResult::kDone);
  EXPECT_EQ(BytesInFile(backing), 3 * kPageSize);
}

TEST_F(BackingTest, ASampleTellsAUsedBlockFromAnEmptyOneAndFillsNothing) {
  const Backing backing = Make(FrameKind::kHuge);
  EXPECT_EQ(backing.Sample(BlockIndex(0)), Use::kUnused);
  EXPECT_EQ(BytesInFile(backing), 0u);
  ASSERT_EQ(backing.FillHuge(BlockIndex(0)), FillResult::kDone);
  EXPECT_EQ(backing.Sample(BlockIndex(0)), Use::kUnused) << "zeros are no use";
  const auto view = test::ScopedMapping::SharedFile(backing.file().get(), BytesOf(kLength));
  test::WriteByte(view.data(), 1);
  EXPECT_EQ(backing.Sample(BlockIndex(0)), Use::kUnused) << "one page is not half of them";
  for (size_t i = 0; i < kPagesPerBlock; ++i) test::WriteByte(view.data() + i * kPageSize, 1);
  EXPECT_EQ(backing.Sample(BlockIndex(0)), Use::kUsed);
}

TEST_F(BackingTest, LengthsThatCannotBeMappedAreErrors) {
  absl::StatusOr<Backing> backing = Backing::Create(
      FrameKind::kBase, UniqueFd(memfd_create("x", MFD_CLOEXEC)), PageCount(uint64_t{1} << 40));
  EXPECT_FALSE(backing.ok());
  EXPECT_FALSE(Backing::Create(FrameKind::kBase, UniqueFd(), kLength).ok());
}

}  // namespace
}  // namespace hostmm
