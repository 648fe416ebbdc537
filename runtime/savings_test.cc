#include "runtime/savings.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <utility>

#include "runtime/backing.h"
#include "runtime/frame_store.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr PageCount kLength{8 * kPagesPerBlock};
constexpr GuestAddr kVa{uint64_t{1} << 40};

class SavingsTest : public testing::Test {
 protected:
  SavingsTest() : pool_(*WorkerPool::NewEventFd(), 1), files_(&pool_) {}
  Guest& NewGuest(pid_t pid, MmId mm, PageCount length) {
    auto guest = std::make_unique<Guest>();
    guest->id = segment_.AddGuest();
    guest->pid = pid;
    EXPECT_EQ(segment_.tables.MapRegion(guest->id,
                                        {kVa, length, mm, FilePage(0), AccessSet::ReadWrite(), 0}),
              TableStatus::kOk);
    return *guests_.Add(std::move(guest));
  }
  TestSegment segment_;
  WorkerPool pool_;
  FileTable files_;
  GuestSet guests_;
};

TEST_F(SavingsTest, PlainPagesCostEightBytesPerPageAndProcess) {
  const MmId mm = segment_.AddMm(kLength, FrameKind::kBase);
  UniqueFd file = *FrameStore::Open(FrameKind::kBase)->NewFile(BytesOf(kLength));
  auto backing =
      std::make_shared<const Backing>(*Backing::Create(FrameKind::kBase, std::move(file), kLength));
  files_.AddOwn(mm, backing);
  NewGuest(11, mm, kLength);
  NewGuest(12, mm, kLength);
  NewGuest(0, mm, kLength);  // has not attached
  EXPECT_EQ(Survey(segment_.tables, files_, guests_).plain_bytes, 0u) << "nothing is in memory";
  ASSERT_EQ(backing->FillSmall(FilePage(0), PageCount(100)), Backing::FillResult::kDone);
  const Savings now = Survey(segment_.tables, files_, guests_);
  EXPECT_EQ(now.guests.size(), 2u);
  EXPECT_EQ(now.plain_bytes, 2 * 100 * 8u);
  EXPECT_EQ(now.page_table_bytes, 0u);
}

TEST_F(SavingsTest, ARegionCountsNoMoreThanItMaps) {
  const MmId mm = segment_.AddMm(kLength, FrameKind::kBase);
  UniqueFd file = *FrameStore::Open(FrameKind::kBase)->NewFile(BytesOf(kLength));
  auto backing =
      std::make_shared<const Backing>(*Backing::Create(FrameKind::kBase, std::move(file), kLength));
  files_.AddOwn(mm, backing);
  ASSERT_EQ(backing->FillSmall(FilePage(0), PageCount(100)), Backing::FillResult::kDone);
  NewGuest(11, mm, PageCount(10));
  EXPECT_EQ(Survey(segment_.tables, files_, guests_).plain_bytes, 10 * 8u);
}

TEST(SumPageTablesTest, CountsWhoIsThere) {
  const uint64_t own = SumPageTables({getpid()});
  EXPECT_GT(own, 0u);
  EXPECT_LT(own, uint64_t{1} << 30);
  EXPECT_EQ(SumPageTables({getpid(), getpid()}) / 2 / 65536, own / 65536);
  EXPECT_EQ(SumPageTables({}), 0u);
  // No process has this number: it is above the kernel's largest.
  EXPECT_EQ(SumPageTables({1 << 30}), 0u);
}

}  // namespace
}  // namespace hostmm
