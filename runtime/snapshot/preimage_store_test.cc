#include "runtime/snapshot/preimage_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

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
  PreimageStore store = *PreimageStore::Create(2 * kPageSize);
  const FrameNumber first = *store.Allocate(1);
  EXPECT_TRUE(store.Allocate(1).has_value());
  EXPECT_FALSE(store.Allocate(1).has_value());
  store.Discard(first, PageCount(1));
  EXPECT_TRUE(store.Allocate(1).has_value());
}

TEST(PreimageStoreTest, SaysWhyItCannotRead) {
  PreimageStore store = *PreimageStore::Create(0);
  const UniqueFd unreadable(open("/dev/null", O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(store.Copy(unreadable.get(), FilePage(0), PageCount(1), *store.Allocate(1)), EBADF);
}

}  // namespace
}  // namespace hostmm
