// Blocks of a snapshot while its live file is written to: with a real file, real tables, and a
// worker whose end the test chooses.
#include "runtime/snapshot/region_source.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <vector>

#include "runtime/event_loop.h"
#include "runtime/frame_store.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

constexpr uint64_t kBlocks = 3;
constexpr uint64_t kBytes = kBlocks * kBlockSize;

class RegionSourceTest : public testing::Test {
 protected:
  explicit RegionSourceTest(uint64_t bytes = kBytes)
      : bytes_(bytes),
        cow_(&segment_.tables),
        loop_(*EventLoop::Create()),
        pool_(*WorkerPool::NewEventFd(), 1),
        set_(
            loop_.get(), [](TakenSnapshot*, const Packet&) {}, [](TakenSnapshot*) {}) {
    const FrameStore store = *FrameStore::Open(FrameKind::kBase);
    UniqueFd file = *store.NewFile(bytes_);
    const PageCount length(bytes_ / kPageSize);
    auto backing = std::make_shared<const Backing>(
        *Backing::Create(FrameKind::kBase, std::move(file), length));
    mm_ = segment_.AddMm(length, FrameKind::kBase);
    segment_.tables.PinMm(mm_);
    live_ = *files_.FindOrMake(mm_, backing, 0);
  }

  TakenSnapshot* Take() {
    TakenSnapshot taken;
    EXPECT_EQ(cow_.Take(mm_, CowPolicy{}, &taken.mm), TableStatus::kOk);
    segment_.tables.PinMm(taken.mm);
    taken.source = mm_;
    taken.length = bytes_;
    TakenSnapshot* added = set_.Add(taken);
    set_.Hold(added);
    return added;
  }
  void Write(uint64_t page, char value) {
    const std::vector<char> bytes(kPageSize, value);
    ASSERT_EQ(pwrite(live_->backing->file().get(), bytes.data(), kPageSize,
                     static_cast<off_t>(page * kPageSize)),
              static_cast<ssize_t>(kPageSize));
  }
  // As a guest's first write: copy, tables, and then the write.
  void FirstWrite(uint64_t page, char value) {
    const FrameNumber frame = *live_->store->Allocate(1);
    ASSERT_EQ(live_->store->Copy(live_->backing->file().get(), FilePage(page), PageCount(1), frame),
              0);
    uint32_t uses = 0;
    ASSERT_EQ(cow_.Privatize(mm_, FilePage(page), PageCount(1), frame, &uses), TableStatus::kOk);
    live_->store->SetUses(frame, 1, uses);
    Write(page, value);
  }
  void AwaitWorker() {
    pollfd ready{pool_.event_fd(), POLLIN, 0};
    ASSERT_EQ(poll(&ready, 1, 10'000), 1);
  }
  // Reads the block; `meanwhile` runs when the worker has read the live file.
  template <class Fn>
  std::vector<std::byte> Read(RegionSource* source, uint64_t block, PageBitmap* pages,
                              Fn meanwhile) {
    std::vector<std::byte> buffer(kBlockSize);
    bool ended = false;
    source->ReadBlock(block, buffer.data(), pages, [&](int error) {
      ended = true;
      error_ = error;
    });
    AwaitWorker();
    meanwhile();
    while (!ended) {
      AwaitWorker();
      pool_.RunDone();
    }
    return buffer;
  }
  static char At(const std::vector<std::byte>& block, uint64_t page) {
    return static_cast<char>(block[page * kPageSize + 100]);
  }

  const uint64_t bytes_;
  TestSegment segment_;
  CowTables cow_;
  std::unique_ptr<EventLoop> loop_;
  WorkerPool pool_;
  SnapshotSet set_;
  LiveFiles files_;
  MmId mm_;
  LiveFile* live_ = nullptr;
  int error_ = -1;
};

TEST_F(RegionSourceTest, WhatIsWrittenWhileItReadsIsNotInIt) {
  for (uint64_t page = 0; page < 4; ++page) Write(page, 'a');
  TakenSnapshot* snapshot = Take();
  FirstWrite(0, 'b');
  RegionSource source(cow_, &set_, *live_, &pool_, snapshot, nullptr);
  PageBitmap pages = {};
  const std::vector<std::byte> block = Read(&source, 0, &pages, [&] {
    FirstWrite(1, 'b');
    Write(0, 'c');
  });
  EXPECT_EQ(error_, 0);
  EXPECT_EQ(At(block, 0), 'a');
  EXPECT_EQ(At(block, 1), 'a');
  EXPECT_EQ(At(block, 2), 'a');
  EXPECT_EQ(At(block, 4), '\0');
}

TEST_F(RegionSourceTest, FindsBlocksOfTheFileAndOfTheStore) {
  Write(0, 'a');
  Write(2 * kPagesPerBlock + 5, 'a');
  TakenSnapshot* snapshot = Take();
  RegionSource source(cow_, &set_, *live_, &pool_, snapshot, nullptr);
  EXPECT_EQ(source.NextBlock(0), 0u);
  EXPECT_EQ(source.NextBlock(1), 2u);
  EXPECT_EQ(source.NextBlock(3), std::nullopt);
  // Copied, and then removed from the live file.
  FirstWrite(0, 'b');
  ASSERT_EQ(fallocate(live_->backing->file().get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                      kBlockSize),
            0);
  EXPECT_EQ(source.NextBlock(0), 0u);
  PageBitmap pages = {};
  EXPECT_EQ(At(Read(&source, 0, &pages, [] {}), 0), 'a');
}

TEST_F(RegionSourceTest, OfAnIncrementOnlyWhatWasWrittenInBetween) {
  for (uint64_t page = 0; page < 3; ++page) Write(page * kPagesPerBlock, 'a');
  TakenSnapshot* earlier = Take();
  FirstWrite(kPagesPerBlock, 'b');
  TakenSnapshot* later = Take();
  FirstWrite(0, 'c');
  RegionSource source(cow_, &set_, *live_, &pool_, later, earlier);
  EXPECT_EQ(source.NextBlock(0), 1u);
  EXPECT_EQ(source.NextBlock(2), std::nullopt);
  PageBitmap pages = {};
  const std::vector<std::byte> block =
      Read(&source, 1, &pages, [&] { FirstWrite(kPagesPerBlock, 'd'); });
  EXPECT_EQ(At(block, 0), 'b');
  EXPECT_EQ(pages.Count(), 1u);
  EXPECT_TRUE(pages.Test(0));
}

TEST_F(RegionSourceTest, ALostSnapshotIsNotRead) {
  Write(0, 'a');
  TakenSnapshot* snapshot = Take();
  RegionSource source(cow_, &set_, *live_, &pool_, snapshot, nullptr);
  PageBitmap pages = {};
  Read(&source, 0, &pages, [&] { snapshot->lost = "for the test"; });
  EXPECT_EQ(error_, EIO);
  EXPECT_EQ(source.why_lost(), "for the test");
}

// The loop has no other turn meanwhile. A processor's time: others may have it as well.
class LargeSourceTest : public RegionSourceTest {
 protected:
  static constexpr uint64_t kGib = uint64_t{1} << 30;
  static constexpr int64_t kTurnMicroseconds = 50'000;

  LargeSourceTest() : RegionSourceTest(300 * kGib) {}

  template <class Fn>
  static int64_t MicrosecondsOf(Fn fn) {
    const int64_t start = Now();
    fn();
    return Now() - start;
  }
  // As first writes that copy nothing: frame numbers are all that the tables know.
  void PrivatizeBlocks(uint64_t blocks) {
    for (uint64_t block = 0; block < blocks; ++block) {
      const FilePage first = FirstPageOf(BlockIndex(block));
      uint32_t uses = 0;
      ASSERT_EQ(
          cow_.Privatize(mm_, first, PageCount(kPagesPerBlock), FrameNumber(first.value()), &uses),
          TableStatus::kOk);
    }
  }

 private:
  static int64_t Now() {
    timespec now = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1'000'000 + now.tv_nsec / 1000;
  }
};

TEST_F(LargeSourceTest, FindsTheEndOfAHoleInOneTurn) {
  const uint64_t last = bytes_ / kBlockSize - 1;
  TakenSnapshot* snapshot = Take();
  RegionSource source(cow_, &set_, *live_, &pool_, snapshot, nullptr);
  EXPECT_LT(MicrosecondsOf([&] { EXPECT_EQ(source.NextBlock(0), std::nullopt); }),
            kTurnMicroseconds);
  // In the store alone.
  FirstWrite(last * kPagesPerBlock + 7, 'a');
  ASSERT_EQ(ftruncate(live_->backing->file().get(), 0), 0);
  ASSERT_EQ(ftruncate(live_->backing->file().get(), static_cast<off_t>(bytes_)), 0);
  EXPECT_LT(MicrosecondsOf([&] { EXPECT_EQ(source.NextBlock(0), last); }), kTurnMicroseconds);
}

TEST_F(LargeSourceTest, BeginsAnIncrementOfMillionsOfPagesInOneTurn) {
  constexpr uint64_t kWritten = 32 * kGib / kBlockSize;
  TakenSnapshot* earlier = Take();
  PrivatizeBlocks(kWritten);
  TakenSnapshot* later = Take();
  std::unique_ptr<RegionSource> source;
  EXPECT_LT(MicrosecondsOf([&] {
              source = std::make_unique<RegionSource>(cow_, &set_, *live_, &pool_, later, earlier);
              EXPECT_EQ(source->NextBlock(0), 0u);
            }),
            kTurnMicroseconds);
  EXPECT_LT(MicrosecondsOf([&] {
              EXPECT_EQ(source->NextBlock(kWritten - 1), kWritten - 1);
              EXPECT_EQ(source->NextBlock(kWritten), std::nullopt);
            }),
            kTurnMicroseconds);
}

}  // namespace
}  // namespace hostmm
