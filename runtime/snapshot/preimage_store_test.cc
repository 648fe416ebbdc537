#include "runtime/snapshot/preimage_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/worker_pool.h"
#include "tests/testing/deadline.h"

namespace hostmm {
namespace {

UniqueFd LiveFileOf(uint64_t pages, char value) {
  UniqueFd file(memfd_create("live", MFD_CLOEXEC));
  const std::vector<char> bytes(pages * kPageSize, value);
  EXPECT_EQ(write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  return file;
}

TEST(PreimageStoreTest, KeepsWhatAPageWas) {
  PreimageStore store = *PreimageStore::Create(0);
  const UniqueFd live = LiveFileOf(4, 'a');
  const FrameNumber frame = *store.Allocate(1);
  ASSERT_EQ(store.Copy(live.get(), FilePage(2), PageCount(1), frame), 0);
  store.SetUses(frame, 1, 2);
  ASSERT_EQ(pwrite(live.get(), "b", 1, 2 * kPageSize), 1);
  std::vector<std::byte> page(kPageSize);
  ASSERT_EQ(store.Read(frame, page.data(), kPageSize), 0);
  EXPECT_EQ(static_cast<char>(page[0]), 'a');
  EXPECT_EQ(store.used_bytes(), kPageSize);
  store.Drop(frame, PageCount(1));
  EXPECT_EQ(store.used_bytes(), kPageSize);
  store.Drop(frame, PageCount(1));
  EXPECT_EQ(store.used_bytes(), 0u);
}

TEST(PreimageStoreTest, CopiesAHugetlbBlockInOneRun) {
  PreimageStore store = *PreimageStore::Create(0);
  const UniqueFd live = LiveFileOf(kPagesPerBlock, 'x');
  const FrameNumber frame = *store.Allocate(kPagesPerBlock);
  ASSERT_EQ(store.Copy(live.get(), FilePage(0), PageCount(kPagesPerBlock), frame), 0);
  store.SetUses(frame, kPagesPerBlock, 1);
  std::vector<std::byte> block(kBlockSize);
  ASSERT_EQ(store.Read(frame, block.data(), kBlockSize), 0);
  EXPECT_EQ(static_cast<char>(block[kBlockSize - 1]), 'x');
  store.Drop(frame, PageCount(kPagesPerBlock));
  EXPECT_EQ(store.used_bytes(), 0u);
}

TEST(PreimageStoreTest, WhatLiesBehindTheEndIsZeros) {
  PreimageStore store = *PreimageStore::Create(0);
  const UniqueFd live = LiveFileOf(1, 'a');
  const FrameNumber frame = *store.Allocate(1);
  ASSERT_EQ(store.Copy(live.get(), FilePage(1), PageCount(1), frame), 0);
  std::vector<std::byte> page(kPageSize, std::byte{1});
  ASSERT_EQ(store.Read(frame, page.data(), kPageSize), 0);
  EXPECT_EQ(page, std::vector<std::byte>(kPageSize));
}

TEST(PreimageStoreTest, HasALimit) {
  for (const uint64_t limit : {2 * kPageSize, kPageSize + 1}) {
    PreimageStore store = *PreimageStore::Create(limit);
    EXPECT_TRUE(store.Allocate(1).has_value());
    EXPECT_TRUE(store.Allocate(1).has_value());
    EXPECT_FALSE(store.Allocate(1).has_value());
  }
  EXPECT_TRUE(PreimageStore::Create(1)->Allocate(1).has_value());
  EXPECT_FALSE(PreimageStore::Create(1)->Allocate(2).has_value());
}

class GivenBackTest : public testing::Test {
 protected:
  GivenBackTest() : pool_(*WorkerPool::NewEventFd(), 1) {}

  // Pages of 'x', in order, named by one table each.
  FrameNumber CopyPages(uint64_t count) {
    const UniqueFd live = LiveFileOf(count, 'x');
    const FrameNumber first = *store_->Allocate(count);
    EXPECT_EQ(store_->Copy(live.get(), FilePage(0), PageCount(count), first), 0);
    store_->SetUses(first, count, 1);
    return first;
  }
  void DropEach(FrameNumber first, std::initializer_list<uint64_t> frames) {
    for (uint64_t frame : frames) store_->Drop(FrameNumber(first.value() + frame), PageCount(1));
  }
  char Read(FrameNumber frame) {
    std::byte page[kPageSize];
    EXPECT_EQ(store_->Read(frame, page, kPageSize), 0);
    return static_cast<char>(page[0]);
  }
  // What the worker has done is heard of, as by the loop.
  void Await(int jobs) {
    for (int i = 0; i < jobs; ++i) {
      pollfd done = {pool_.event_fd(), POLLIN, 0};
      ASSERT_EQ(poll(&done, 1, 10'000), 1);
      pool_.RunDone();
    }
  }

  WorkerPool pool_;
  std::shared_ptr<PreimageStore> store_ =
      std::make_shared<PreimageStore>(*PreimageStore::Create(0));
};

TEST_F(GivenBackTest, OnlyWhatNobodyNeedsAndOnlyWhenItIsAsked) {
  const FrameNumber first = CopyPages(5);
  DropEach(first, {3, 0, 1});
  EXPECT_EQ(store_->used_bytes(), 2 * kPageSize);
  EXPECT_EQ(Read(first), 'x');
  PreimageStore::GiveBack(store_, &pool_);
  Await(1);
  for (const uint64_t frame : {0, 1, 3}) EXPECT_EQ(Read(FrameNumber(frame)), '\0') << frame;
  for (const uint64_t frame : {2, 4}) EXPECT_EQ(Read(FrameNumber(frame)), 'x') << frame;
}

// Or the worker would take away what has just been copied.
TEST_F(GivenBackTest, ItIsUsedAgainOnlyAfterwards) {
  const FrameNumber first = CopyPages(2);
  DropEach(first, {0});
  EXPECT_EQ(store_->Allocate(1), FrameNumber(2));
  PreimageStore::GiveBack(store_, &pool_);
  EXPECT_EQ(store_->Allocate(1), FrameNumber(3));
  Await(1);
  EXPECT_EQ(store_->Allocate(1), FrameNumber(0));
}

// The limit is of memory: whoever needs a frame can wait for one that is on its way.
TEST_F(GivenBackTest, AtTheLimitItIsWaitedFor) {
  store_ = std::make_shared<PreimageStore>(*PreimageStore::Create(kPageSize));
  store_->Discard(*store_->Allocate(1), PageCount(1));
  EXPECT_FALSE(store_->Allocate(1).has_value());
  EXPECT_FALSE(store_->gives_back());
  PreimageStore::GiveBack(store_, &pool_);
  ASSERT_TRUE(store_->gives_back());
  std::optional<FrameNumber> frame;
  store_->AfterGiveBack([&] { frame = store_->Allocate(1); });
  EXPECT_FALSE(store_->Allocate(1).has_value());
  Await(1);
  EXPECT_EQ(frame, FrameNumber(0));
  EXPECT_FALSE(store_->gives_back());
}

TEST_F(GivenBackTest, AnOldStoreIsClosedByTheWorkerAlsoWhenItGivesBack) {
  DropEach(CopyPages(2), {0});
  PreimageStore::GiveBack(store_, &pool_);
  const std::weak_ptr<PreimageStore> store = store_;
  PreimageStore::Retire(std::move(store_), &pool_);
  // Before this thread hears of either.
  const test::Deadline deadline(test::kStepDeadline);
  EXPECT_TRUE(test::PollUntil(deadline, [&] { return store.expired(); }));
  pool_.RunDone();
}

TEST_F(GivenBackTest, AnOldStoreIsClosedByTheWorker) {
  const std::weak_ptr<PreimageStore> store = store_;
  PreimageStore::Retire(std::move(store_), &pool_);
  Await(1);
  EXPECT_TRUE(store.expired());
}

TEST(PreimageStoreTest, SaysWhyItCannotRead) {
  PreimageStore store = *PreimageStore::Create(0);
  const UniqueFd unreadable(open("/dev/null", O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(store.Copy(unreadable.get(), FilePage(0), PageCount(1), *store.Allocate(1)), EBADF);
}

}  // namespace
}  // namespace hostmm
