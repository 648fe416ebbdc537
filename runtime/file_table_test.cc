#include "runtime/file_table.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>

#include <memory>
#include <utility>

namespace hostmm {
namespace {

class FileTableTest : public testing::Test {
 protected:
  FileTableTest() : pool_(*WorkerPool::NewEventFd(), 1), files_(&pool_) {}
  static std::shared_ptr<const Backing> NewBacking() {
    UniqueFd file(memfd_create("file", MFD_CLOEXEC));
    EXPECT_EQ(ftruncate(file.get(), kBlockSize), 0);
    return std::make_shared<const Backing>(
        *Backing::Create(FrameKind::kBase, std::move(file), PageCount(kPagesPerBlock)));
  }
  WorkerPool pool_;
  FileTable files_;
};

TEST_F(FileTableTest, FindsByTheWholeId) {
  const std::shared_ptr<const Backing> backing = NewBacking();
  files_.AddOwn({1, 5}, backing);
  EXPECT_EQ(files_.Find({1, 5}), backing);
  EXPECT_EQ(files_.Find({1, 6}), nullptr) << "another incarnation";
  EXPECT_EQ(files_.Find({2, 5}), nullptr);
}

TEST_F(FileTableTest, AReleasedFileIsLetGoByAWorker) {
  std::weak_ptr<const Backing> watched;
  {
    std::shared_ptr<const Backing> backing = NewBacking();
    watched = backing;
    files_.AddOwn({1, 5}, std::move(backing));
  }
  files_.Release({{1, 5}});
  EXPECT_EQ(files_.Find({1, 5}), nullptr);
  pollfd done = {pool_.event_fd(), POLLIN, 0};
  ASSERT_EQ(poll(&done, 1, 10'000), 1);
  pool_.RunDone();
  EXPECT_TRUE(watched.expired());
}

TEST_F(FileTableTest, AReleaseLeavesWhoStillHoldsIt) {
  const std::shared_ptr<const Backing> backing = NewBacking();
  files_.AddOwn({1, 5}, backing);
  files_.Release({{1, 5}, {7, 7}});
  EXPECT_EQ(backing->FillSmall(FilePage(0), PageCount(1)), Backing::FillResult::kDone);
}

TEST_F(FileTableTest, AnAdoptedFileIsFoundByItsKeyUntilItIsReleased) {
  const AdoptedKey key{3, 4};
  EXPECT_FALSE(files_.FindAdopted(key).has_value());
  files_.AddAdopted({2, 1}, key);
  EXPECT_EQ(files_.FindAdopted(key), (MmId{2, 1}));
  EXPECT_EQ(files_.Find({2, 1}), nullptr) << "it has no frames of ours";
  EXPECT_FALSE(files_.FindAdopted({4, 3}).has_value());
  files_.Release({{2, 1}});
  EXPECT_FALSE(files_.FindAdopted(key).has_value());
  files_.AddAdopted({2, 2}, key);
  EXPECT_EQ(files_.FindAdopted(key), (MmId{2, 2}));
}

}  // namespace
}  // namespace hostmm
