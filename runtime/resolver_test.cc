// The fault road with a real userfaultfd, where the kernel says other things than "done".
#include "runtime/resolver.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "runtime/backing.h"
#include "runtime/collapse_retry.h"
#include "runtime/frame_store.h"
#include "runtime/orders.h"
#include "runtime/page_table_budget.h"
#include "runtime/userfaultfd.h"
#include "tests/testing/child.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"
#include "vmm/invariants.h"
#include "vmm/test_segment.h"

namespace hostmm {
namespace {

using test::Child;
using test::Identity;
using test::TestUffd;

constexpr uint64_t kBlocks = 2;
constexpr uint64_t kBytes = kBlocks * kBlockSize;

// A pager of one guest, which is this process. Small frames are made inline, so nothing here needs
// a loop.
class OneGuest {
 public:
  explicit OneGuest(uint32_t region_flags)
      : pool_(*WorkerPool::NewEventFd(), 1),
        files_(&pool_),
        retry_(&segment_.tables, &files_, &pool_),
        resolver_(&segment_.tables, &files_, &guests_, &pool_, &retry_) {
    const FrameStore store = *FrameStore::Open(FrameKind::kBase);
    UniqueFd file = *store.NewFile(kBytes);
    region_ = test::ScopedMapping::SharedFile(file.get(), kBytes);
    backing_ = std::make_shared<const Backing>(
        *Backing::Create(FrameKind::kBase, std::move(file), PageCount(kBytes / kPageSize)));
    const MmId mm = segment_.AddMm(PageCount(kBytes / kPageSize), FrameKind::kBase);
    files_.AddOwn(mm, backing_);
    auto guest = std::make_unique<Guest>();
    guest->id = segment_.AddGuest();
    segment_.tables.MapRegion(guest->id, {GuestAddr(address()), PageCount(kBytes / kPageSize), mm,
                                          FilePage(0), AccessSet::ReadWrite(), region_flags});
    guest_ = guests_.Add(std::move(guest));
  }

  uint64_t address() const { return reinterpret_cast<uint64_t>(region_.data()); }
  char* data() const { return region_.data(); }
  const Backing& backing() const { return *backing_; }
  // Registers the region and takes the userfaultfd over.
  bool Register(TestUffd uffd, uint64_t modes) {
    if (!uffd.valid() || uffd.Register(data(), kBytes, modes) != 0) return false;
    guest_->uffd.fd.reset(dup(uffd.fd()));
    return true;
  }
  bool AwaitFault() const {
    pollfd event = {guest_->uffd.fd.get(), POLLIN, 0};
    return poll(&event, 1, static_cast<int>(test::kStepDeadline.count())) == 1;
  }
  EventLoop::Progress Drain() { return resolver_.Drain(*guest_); }
  // A budget that is never used up.
  void SetBudget() { resolver_.SetBudget(&budget_); }
  // Touches a page and answers until the toucher is through. RETURNS the events that it took, -1
  // when there was no end of them.
  int Touch(uint64_t page) {
    constexpr int kTooMany = 20;
    std::atomic<bool> through = false;
    std::thread toucher([&] {
      test::WriteByte(data() + page * kPageSize, 1);
      through = true;
    });
    int events = 0;
    while (!through && events < kTooMany) {
      pollfd event = {guest_->uffd.fd.get(), POLLIN, 0};
      if (poll(&event, 1, 1) != 1) continue;
      Drain();
      ++events;
    }
    if (!through) guest_->uffd.fd.reset();  // lets it go
    toucher.join();
    return events < kTooMany ? events : -1;
  }
  bool Sound() { return CheckInvariants(segment_.reader()).empty() && resolver_.parked() == 0; }

 private:
  TestSegment segment_;
  WorkerPool pool_;
  FileTable files_;
  GuestSet guests_;
  CollapseRetry retry_;
  Resolver resolver_;
  Orders orders_;
  PageTableBudget budget_{uint64_t{1} << 30, &guests_, &orders_};
  test::ScopedMapping region_;
  std::shared_ptr<const Backing> backing_;
  Guest* guest_ = nullptr;
};

class ResolverTest : public testing::Test {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(test::WhyNoUserfaultfd(UFFD_FEATURE_MINOR_SHMEM)); }
};

TEST_F(ResolverTest, AMissingFaultIsFilled) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(0);
    CHILD_CHECK(world.Register(TestUffd::Open(), UFFDIO_REGISTER_MODE_MISSING));
    std::thread toucher([&] { test::WriteByte(world.data(), 1); });
    CHILD_CHECK(world.AwaitFault());
    CHILD_CHECK(world.Drain() == EventLoop::Progress::kDrained);
    toucher.join();
    CHILD_CHECK(world.Sound());
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 0) << "-1: it was not woken";
}

constexpr uint64_t kTrackedModes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;

// What is there comes back 64 pages at a time, wherever the touch falls.
TEST_F(ResolverTest, UnderABudgetOneMinorFaultMapsManyPages) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(kTracked);
    world.SetBudget();
    CHILD_CHECK(world.Register(TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM), kTrackedModes));
    for (uint64_t page = 0; page < 512; ++page) CHILD_CHECK(world.Touch(page) >= 0);
    CHILD_CHECK(madvise(world.data(), kBytes, MADV_DONTNEED) == 0);
    CHILD_CHECK(test::RssKib(world.data()) == 0);
    CHILD_CHECK(world.Touch(100) == 1);
    CHILD_CHECK(test::RssKib(world.data()) == 64 * 4);
    CHILD_CHECK(world.Touch(64) == 0);
    CHILD_CHECK(world.Touch(127) == 0);
    CHILD_CHECK(world.Touch(128) == 1);
    CHILD_CHECK(world.Sound());
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 0);
}

// The pages around a fault may be mapped, each a reason for the kernel to stop.
TEST_F(ResolverTest, AMinorFaultAmongMappedPagesGetsOn) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(kTracked);
    world.SetBudget();
    CHILD_CHECK(world.Register(TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM), kTrackedModes));
    // Each fills four pages; the second finds the first four mapped.
    for (const uint64_t page : {0, 6, 17, 9, 14}) CHILD_CHECK(world.Touch(page) > 0);
    for (uint64_t page = 0; page < 20; ++page) CHILD_CHECK(world.Touch(page) >= 0);
    CHILD_CHECK(test::RssKib(world.data()) == 20 * 4);
    CHILD_CHECK(world.Sound());
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 0);
}

TEST_F(ResolverTest, WhoAsksForSmallPagesGetsOneAtATime) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(kTracked | kHintSmall);
    world.SetBudget();
    CHILD_CHECK(world.Register(TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM), kTrackedModes));
    CHILD_CHECK(world.Touch(0) > 0);
    CHILD_CHECK(madvise(world.data(), kBytes, MADV_DONTNEED) == 0);
    for (const uint64_t page : {2, 0, 1, 3}) CHILD_CHECK(world.Touch(page) == 1);
    CHILD_CHECK(test::RssKib(world.data()) == 4 * 4);
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 0);
}

// The thread of a fault sleeps on when its mapping goes; only a wake lets it see that.
TEST_F(ResolverTest, AMinorFaultWhoseMappingHasGoneIsWoken) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(kTracked);
    CHILD_CHECK(world.backing().FillSmall(FilePage(0), PageCount(1)) == Backing::FillResult::kDone);
    CHILD_CHECK(world.Register(TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM), kTrackedModes));
    std::thread toucher([&] { test::WriteByte(world.data(), 1); });
    CHILD_CHECK(world.AwaitFault());
    munmap(world.data(), kBytes);
    world.Drain();
    toucher.join();
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 128 + SIGSEGV) << "-1: it was not woken";
}

TEST_F(ResolverTest, AFaultOutsideOfAnyRegionIsLeftToTheKernel) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(0);
    TestUffd uffd = TestUffd::Open();
    const auto other = test::ScopedMapping::SharedFile(world.backing().file().get(), kBytes);
    CHILD_CHECK(uffd.Register(other.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING) == 0);
    CHILD_CHECK(world.Register(std::move(uffd), UFFDIO_REGISTER_MODE_MISSING));
    std::thread toucher([&] { test::WriteByte(other.data(), 1); });
    CHILD_CHECK(world.AwaitFault());
    world.Drain();
    toucher.join();
    CHILD_CHECK(world.Sound());
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 0) << "-1: it was not woken";
}

// O_NONBLOCK is the guest's to take away.
TEST_F(ResolverTest, ABlockingUserfaultfdWithoutEventsIsNotWaitedFor) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(0);
    TestUffd uffd = TestUffd::Open();
    CHILD_CHECK(fcntl(uffd.fd(), F_SETFL, 0) == 0);
    CHILD_CHECK(world.Register(std::move(uffd), UFFDIO_REGISTER_MODE_MISSING));
    CHILD_CHECK(world.Drain() == EventLoop::Progress::kDrained);
    return 0;
  });
  EXPECT_EQ(guest.Wait(), 0) << "-1: the read waits";
}

TEST_F(ResolverTest, WhatIsNoUserfaultfdDrains) {
  OneGuest world(0);
  EXPECT_EQ(world.Drain(), EventLoop::Progress::kDrained);
}

}  // namespace
}  // namespace hostmm
