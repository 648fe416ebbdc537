// The one page table that Linux shares between processes: the PMD table of a hugetlb mapping (facts
// F14 to F17).
//
// Every fault count is taken inside the process that touches, over one access per 2 MiB.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "tests/testing/child.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/sysctl_guard.h"
#include "tests/testing/test_uffd.h"
#include "tests/testing/touch.h"

namespace hostmm::test {
namespace {

constexpr int64_t kBlocksPerGiB = kGiB / kBlock;

// What a shared PMD table leaves to do for 1 GiB: one fault that finds the table, plus noise of
// the process itself. Unshared, it is one fault per 2 MiB.
constexpr int64_t kSharedFaults = 4;

constexpr char kOvercommit[] = "/proc/sys/vm/nr_overcommit_hugepages";

enum class Registration { kNone, kMissing, kMinor, kWriteProtect };

uint64_t RegisterMode(Registration registration) {
  switch (registration) {
    case Registration::kMinor:
      return UFFDIO_REGISTER_MODE_MINOR;
    case Registration::kWriteProtect:
      return UFFDIO_REGISTER_MODE_WP;
    default:
      return UFFDIO_REGISTER_MODE_MISSING;
  }
}

struct Visit {
  size_t alignment = kGiB;
  size_t skew = 0;
  Registration registration = Registration::kMissing;
};

// A child that maps the file, registers, touches every block once, tells its faults and stays
// until it is told to go: only mappings that exist can be shared.
class Visitor {
 public:
  Visitor(const ScopedFd& file, const Visit& visit)
      : child_(Identity::kSame, [&](Channel& channel) { return Run(file, visit, channel); }) {
    uint64_t faults = 0;
    if (child_.channel().ReceiveValue(&faults)) faults_ = static_cast<int64_t>(faults);
  }
  int64_t faults() const { return faults_; }
  int Leave() {
    child_.channel().Signal();
    return child_.Wait();
  }

 private:
  static int Run(const ScopedFd& file, const Visit& visit, Channel& channel) {
    const ScopedMapping view = ScopedMapping::SharedFile(file.get(), kGiB, PROT_READ | PROT_WRITE,
                                                         visit.alignment, visit.skew);
    CHILD_CHECK(view.ok());
    TestUffd uffd;
    if (visit.registration != Registration::kNone) {
      uffd = TestUffd::Open(UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
      CHILD_CHECK(uffd.Register(view.data(), kGiB, RegisterMode(visit.registration)) == 0);
    }
    const int64_t before = MinorFaultsOfThisThread();
    ReadEvery(view.data(), kGiB, kBlock);
    CHILD_CHECK(channel.SendValue(MinorFaultsOfThisThread() - before));
    CHILD_CHECK(channel.Await());
    return 0;
  }

  int64_t faults_ = -1;
  Child child_;
};

class HugetlbTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoRoot());
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    HOSTMM_SKIP_IF(WhyNoMemory(3));
    // + 16: pages for whoever else uses the pool meanwhile.
    overcommit_ = std::make_unique<SysctlGuard>(kOvercommit, kBlocksPerGiB + 16);
    if (!overcommit_->ok()) GTEST_SKIP() << "cannot raise vm.nr_overcommit_hugepages";
    file_ = HugetlbFile(kGiB);
    ASSERT_TRUE(file_.valid()) << strerror(errno);
    pager_ = ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
    ASSERT_TRUE(pager_.ok()) << strerror(errno);
  }
  void TearDown() override {
    // The pages go back before the limit does.
    pager_ = ScopedMapping();
    file_.Close();
    overcommit_.reset();
  }

  // Fills the whole file through the pager's mapping; false if pages ran out.
  bool Populate() { return madvise(pager_.data(), kGiB, MADV_POPULATE_WRITE) == 0; }

  std::unique_ptr<SysctlGuard> overcommit_;
  ScopedFd file_;
  ScopedMapping pager_;
};

#define POPULATE_OR_SKIP() \
  if (!Populate()) GTEST_SKIP() << "not 1 GiB of hugetlb pages to be had: memory is fragmented"

// F16: pages on demand, no reservation, and the limit is back when the guard is gone.
TEST_F(HugetlbTest, OvercommitGivesPagesOnDemand) {
  const int64_t surplus = ReadSysctl("/sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages");
  ASSERT_EQ(madvise(pager_.data(), kBlock, MADV_POPULATE_WRITE), 0) << strerror(errno);
  EXPECT_EQ(ReadVma(0, pager_.data())->shared_hugetlb_kib +
                ReadVma(0, pager_.data())->private_hugetlb_kib,
            int64_t{kBlock >> 10});
  EXPECT_GE(ReadSysctl("/sys/kernel/mm/hugepages/hugepages-2048kB/surplus_hugepages") +
                ReadSysctl("/proc/sys/vm/nr_hugepages"),
            surplus + 1);
}

// F16: making and mapping the file needs no privilege; only the pages must be there.
TEST_F(HugetlbTest, NobodyMayUseHugetlbMemfd) {
  Child nobody(Identity::kNobody, [](Channel&) {
    const ScopedFd file = HugetlbFile(kBlock);
    CHILD_CHECK(file.valid());
    const ScopedMapping view = ScopedMapping::SharedFile(file.get(), kBlock);
    CHILD_CHECK(view.ok());
    CHILD_CHECK(madvise(view.data(), kBlock, MADV_POPULATE_WRITE) == 0);
    return 0;
  });
  EXPECT_EQ(nobody.Wait(), 0);
}

// F14.
TEST_F(HugetlbTest, AlignedMappingsShareThePmdTable) {
  POPULATE_OR_SKIP();
  Visitor later(file_, {.registration = Registration::kNone});
  EXPECT_GE(later.faults(), 0);
  EXPECT_LE(later.faults(), kSharedFaults);
  EXPECT_EQ(later.Leave(), 0);
}

// F14: one block of misalignment (mod 1 GiB) and nothing is shared.
TEST_F(HugetlbTest, MisalignedMappingsDoNot) {
  POPULATE_OR_SKIP();
  Visitor later(file_, {.skew = kBlock, .registration = Registration::kNone});
  EXPECT_GE(later.faults(), kBlocksPerGiB - 1);
  EXPECT_EQ(later.Leave(), 0);
}

// F15, and its fine print: the flags of the VMAs must agree, so a registered guest shares with
// other registered guests but never with the pager, which is not registered.
TEST_F(HugetlbTest, MissingRegisteredGuestsShareAmongThemselves) {
  POPULATE_OR_SKIP();
  Visitor first(file_, {.registration = Registration::kMissing});
  EXPECT_GE(first.faults(), kBlocksPerGiB) << "the pager's table has other VMA flags";
  Visitor second(file_, {.registration = Registration::kMissing});
  EXPECT_GE(second.faults(), 0);
  EXPECT_LE(second.faults(), kSharedFaults);
  Visitor third(file_, {.registration = Registration::kMissing});
  EXPECT_LE(third.faults(), kSharedFaults);
  EXPECT_EQ(first.Leave(), 0);
  EXPECT_EQ(second.Leave(), 0);
  EXPECT_EQ(third.Leave(), 0);
}

class HugetlbTrackedTest : public HugetlbTest, public ::testing::WithParamInterface<Registration> {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(
        WhyNoUserfaultfd(UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM));
    HugetlbTest::SetUp();
  }
};

// F15: MINOR and WP registration give the sharing up, which is why they are for tracked ranges
// only.
TEST_P(HugetlbTrackedTest, TrackedRegistrationUnshares) {
  POPULATE_OR_SKIP();
  const ScopedMapping own =
      ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
  ASSERT_TRUE(own.ok());
  const int64_t before = MinorFaultsOfThisThread();
  ReadEvery(own.data(), kGiB, kBlock);
  ASSERT_LE(MinorFaultsOfThisThread() - before, kSharedFaults);

  TestUffd uffd = TestUffd::Open(UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM);
  ASSERT_EQ(uffd.Register(own.data(), kGiB, RegisterMode(GetParam())), 0);
  if (GetParam() == Registration::kMinor) {
    Touch touch(&uffd, own.data(), Touch::Kind::kRead);
    EXPECT_TRUE(uffd.WaitFault().has_value()) << "every block is to be continued anew";
    int64_t done = 0;
    ASSERT_EQ(uffd.Continue(own.data(), kBlock, &done), 0);
    EXPECT_TRUE(touch.Finished());
  } else {
    const int64_t after = MinorFaultsOfThisThread();
    ReadEvery(own.data(), kGiB, kBlock);
    EXPECT_GE(MinorFaultsOfThisThread() - after, kBlocksPerGiB);
  }
}

INSTANTIATE_TEST_SUITE_P(Mode, HugetlbTrackedTest,
                         ::testing::Values(Registration::kMinor, Registration::kWriteProtect),
                         [](const auto& info) {
                           return info.param == Registration::kMinor ? "Minor" : "WriteProtect";
                         });

// F15: mprotect of a part unshares, because the flags no longer agree over the whole GiB.
TEST_F(HugetlbTest, MprotectOfAPartUnshares) {
  POPULATE_OR_SKIP();
  const ScopedMapping own =
      ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
  ASSERT_TRUE(own.ok());
  ReadEvery(own.data(), kGiB, kBlock);
  ASSERT_EQ(mprotect(own.data(), kBlock, PROT_READ), 0);
  const int64_t before = MinorFaultsOfThisThread();
  ReadEvery(own.data(), kGiB, kBlock);
  EXPECT_GE(MinorFaultsOfThisThread() - before, kBlocksPerGiB - 1);
  // The pager's own view lost nothing.
  const int64_t pager_before = MinorFaultsOfThisThread();
  ReadEvery(pager_.data(), kGiB, kBlock);
  EXPECT_LE(MinorFaultsOfThisThread() - pager_before, kSharedFaults);
}

// F15: a hole of a registered guest traps, and the pager's touch plus a wake serves it.
TEST_F(HugetlbTest, HoleTrapsAndIsServedByTouchAndWake) {
  const ScopedMapping guest =
      ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
  ASSERT_TRUE(guest.ok());
  TestUffd uffd = TestUffd::Open();
  ASSERT_EQ(uffd.Register(guest.data(), kGiB, UFFDIO_REGISTER_MODE_MISSING), 0);
  Touch touch(&uffd, guest.block(7) + 3 * kPage, Touch::Kind::kWrite);
  const auto fault = uffd.WaitFault();
  ASSERT_TRUE(fault.has_value());
  ASSERT_EQ(madvise(pager_.block(7), kBlock, MADV_POPULATE_WRITE), 0);
  ASSERT_EQ(uffd.Wake(guest.block(7), kBlock), 0);
  EXPECT_TRUE(touch.Finished());
  EXPECT_EQ(ReadByte(pager_.block(7) + 3 * kPage), 1);
}

// The table is one: what one registered guest has faulted in is mapped in the other, without a
// fault, let alone an event.
TEST_F(HugetlbTest, WhatOneGuestFaultsInIsMappedInTheOther) {
  ASSERT_EQ(madvise(pager_.data(), 10 * kBlock, MADV_POPULATE_WRITE), 0) << strerror(errno);
  const ScopedMapping guest =
      ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
  ASSERT_TRUE(guest.ok());
  TestUffd uffd = TestUffd::Open();
  ASSERT_EQ(uffd.Register(guest.data(), kGiB, UFFDIO_REGISTER_MODE_MISSING), 0);
  ReadByte(guest.block(0));  // now there is a table for the other guest to find

  Child other(Identity::kSame, [&](Channel& channel) {
    const ScopedMapping view =
        ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
    TestUffd own = TestUffd::Open();
    CHILD_CHECK(own.Register(view.data(), kGiB, UFFDIO_REGISTER_MODE_MISSING) == 0);
    ReadByte(view.block(0));
    CHILD_CHECK(channel.Signal() && channel.Await());
    const int64_t before = MinorFaultsOfThisThread();
    ReadByte(view.block(9));
    CHILD_CHECK(MinorFaultsOfThisThread() == before);
    CHILD_CHECK(own.Quiet());
    return 0;
  });
  ASSERT_TRUE(other.channel().Await());
  ReadByte(guest.block(9));
  ASSERT_TRUE(other.channel().Signal());
  EXPECT_EQ(other.Wait(), 0);
}

// Fork copies no entries of a shared hugetlb mapping: the child is like a later process.
TEST_F(HugetlbTest, ForkChildSharesAgainAfterRegistering) {
  POPULATE_OR_SKIP();
  const ScopedMapping guest =
      ScopedMapping::SharedFile(file_.get(), kGiB, PROT_READ | PROT_WRITE, kGiB);
  ASSERT_TRUE(guest.ok());
  TestUffd uffd = TestUffd::Open();
  ASSERT_EQ(uffd.Register(guest.data(), kGiB, UFFDIO_REGISTER_MODE_MISSING), 0);
  ReadEvery(guest.data(), kGiB, kBlock);
  Child forked(Identity::kSame, [&](Channel&) {
    TestUffd own = TestUffd::Open();
    CHILD_CHECK(own.Register(guest.data(), kGiB, UFFDIO_REGISTER_MODE_MISSING) == 0);
    const int64_t before = MinorFaultsOfThisThread();
    ReadEvery(guest.data(), kGiB, kBlock);
    CHILD_CHECK(MinorFaultsOfThisThread() - before <= kSharedFaults);
    return 0;
  });
  EXPECT_EQ(forked.Wait(), 0);
}

// F17: calls on a range below 2 MiB. mprotect and munmap refuse; MADV_DONTNEED "succeeds" without
// doing anything (the range is rounded down to nothing), which is worse.
TEST_F(HugetlbTest, SmallRangesAreRefusedOrIgnored) {
  WriteByte(pager_.data(), 7);
  EXPECT_EQ(mprotect(pager_.data(), kPage, PROT_READ), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(munmap(pager_.data(), kPage), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(madvise(pager_.data() + kPage, kPage, MADV_DONTNEED), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(madvise(pager_.data(), kPage, MADV_DONTNEED), 0);
  EXPECT_EQ(ReadVma(0, pager_.data())->shared_hugetlb_kib +
                ReadVma(0, pager_.data())->private_hugetlb_kib,
            int64_t{kBlock >> 10})
      << "still mapped";
}

// Out of pages: an errno for MADV_POPULATE_WRITE, SIGBUS for a touch.
TEST_F(HugetlbTest, RunningOutIsAnErrnoForPopulate) {
  const int64_t limit = ReadSysctl(kOvercommit) + ReadSysctl("/proc/sys/vm/nr_hugepages");
  const size_t bytes = (limit + 1) * kBlock;
  const ScopedFd file = HugetlbFile(bytes);
  const ScopedMapping view = ScopedMapping::SharedFile(file.get(), bytes);
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(madvise(view.data(), bytes, MADV_POPULATE_WRITE), -1);
  EXPECT_EQ(errno, EFAULT);
  Child toucher(Identity::kSame, [&](Channel&) {
    ReadEvery(view.data(), bytes, kBlock);
    return 0;
  });
  EXPECT_EQ(toucher.Wait(), 128 + SIGBUS);
}

}  // namespace
}  // namespace hostmm::test
