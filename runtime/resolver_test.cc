// The fault road with a real userfaultfd, where the kernel says other things than "done".
#include "runtime/resolver.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <memory>
#include <thread>
#include <utility>

#include "runtime/backing.h"
#include "runtime/collapse_retry.h"
#include "runtime/frame_store.h"
#include "runtime/userfaultfd.h"
#include "tests/testing/child.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
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
  bool Sound() { return CheckInvariants(segment_.reader()).empty() && resolver_.parked() == 0; }

 private:
  TestSegment segment_;
  WorkerPool pool_;
  FileTable files_;
  GuestSet guests_;
  CollapseRetry retry_;
  Resolver resolver_;
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

// The thread of a fault sleeps on when its mapping goes; only a wake lets it see that.
TEST_F(ResolverTest, AMinorFaultWhoseMappingHasGoneIsWoken) {
  Child guest(Identity::kSame, [](test::Channel&) {
    OneGuest world(kTracked);
    CHILD_CHECK(world.backing().FillSmall(FilePage(0), PageCount(1)) == Backing::FillResult::kDone);
    CHILD_CHECK(world.Register(TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM),
                               UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR));
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
