#include "runtime/userfaultfd.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>

#include <cstring>
#include <string>

#include "tests/testing/child.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/test_uffd.h"
#include "vmm/units.h"

namespace hostmm {
namespace {

using test::Child;
using test::Identity;
using test::ScopedMapping;
using test::TestUffd;

class UserfaultfdTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(test::WhyNoUserfaultfd(UFFD_FEATURE_MINOR_SHMEM));
    uffd_ = TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM);
    file_.reset(memfd_create("frames", MFD_CLOEXEC));
    ASSERT_EQ(ftruncate(file_.get(), kBlockSize), 0);
    region_ = ScopedMapping::SharedFile(file_.get(), kBlockSize);
    ASSERT_TRUE(region_.ok());
  }
  uint64_t va(uint64_t page = 0) const {
    return reinterpret_cast<uint64_t>(region_.data()) + page * kPageSize;
  }
  int fd() const { return uffd_.fd(); }

  static constexpr uint64_t kBoth = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR;
  TestUffd uffd_;
  UniqueFd file_;
  ScopedMapping region_;
};

TEST_F(UserfaultfdTest, RangesThatCannotBeAreRefused) {
  EXPECT_EQ(UffdRegister(fd(), va() + 1, kPageSize, kBoth), UffdResult::kRefused);
  EXPECT_EQ(UffdRegister(fd(), va(), 0, kBoth), UffdResult::kRefused);
  EXPECT_EQ(UffdRegister(fd(), va(), 100, kBoth), UffdResult::kRefused);
  EXPECT_EQ(UffdRegister(fd(), ~uint64_t{0} - 4095, kPageSize, kBoth), UffdResult::kRefused);
  EXPECT_EQ(UffdWake(fd(), va() + 1, kPageSize), UffdResult::kRefused);
  EXPECT_EQ(UffdRegister(-1, va(), kPageSize, kBoth), UffdResult::kRefused);
}

TEST_F(UserfaultfdTest, ARangeBelongsToOneUserfaultfd) {
  const TestUffd other = TestUffd::Open(UFFD_FEATURE_MINOR_SHMEM);
  EXPECT_EQ(UffdRegister(fd(), va(), kBlockSize, kBoth), UffdResult::kDone);
  EXPECT_EQ(UffdRegister(other.fd(), va(), kBlockSize, kBoth), UffdResult::kBusy);
  EXPECT_EQ(UffdUnregister(fd(), va(), kBlockSize), UffdResult::kDone);
  EXPECT_EQ(UffdRegister(other.fd(), va(), kBlockSize, kBoth), UffdResult::kDone);
}

TEST_F(UserfaultfdTest, ContinueSaysWhatTheKernelSays) {
  // Two pages are there, the rest are holes.
  ASSERT_EQ(pwrite(file_.get(), "x", 1, 0), 1);
  ASSERT_EQ(pwrite(file_.get(), "x", 1, kPageSize), 1);
  EXPECT_EQ(UffdContinue(fd(), va(), kPageSize), UffdResult::kGuestGone) << "not registered";
  ASSERT_EQ(UffdRegister(fd(), va(), kBlockSize, kBoth), UffdResult::kDone);
  EXPECT_EQ(UffdContinue(fd(), va(), kPageSize), UffdResult::kDone);
  EXPECT_EQ(UffdContinue(fd(), va(), kPageSize), UffdResult::kAlreadyMapped);
  EXPECT_EQ(UffdContinue(fd(), va(1), 4 * kPageSize), UffdResult::kPartial);
  EXPECT_EQ(UffdContinue(fd(), va(8), kPageSize), UffdResult::kRefused) << "a hole";
}

TEST_F(UserfaultfdTest, ADeadProcessIsGone) {
  // It sends its userfaultfd and dies.
  Child guest(Identity::kSame, [](test::Channel& channel) {
    const TestUffd own = TestUffd::Open();
    CHILD_CHECK(channel.SendFd(own.fd()));
    CHILD_CHECK(channel.Await());
    return 0;
  });
  const test::ScopedFd theirs = guest.channel().ReceiveFd();
  ASSERT_TRUE(theirs.valid());
  ASSERT_TRUE(guest.channel().Signal());
  ASSERT_EQ(guest.Wait(), 0);
  // Registering says ENOMEM, of all things.
  EXPECT_EQ(UffdRegister(theirs.get(), va(), kPageSize, kBoth), UffdResult::kRefused);
  EXPECT_EQ(UffdContinue(theirs.get(), va(), kPageSize), UffdResult::kGuestGone);
}

TEST_F(UserfaultfdTest, RootGetsTheDevice) {
  const UffdAccess access = ProbeUserfaultfd();
  EXPECT_EQ(access.source, UffdAccess::Source::kDevice);
  EXPECT_TRUE(access.device.ok());
  EXPECT_NE(access.features & UFFD_FEATURE_MISSING_SHMEM, 0u);
}

TEST_F(UserfaultfdTest, WhoMayNotIsToldTheRemedy) {
  HOSTMM_SKIP_IF(test::WhyNoRoot());
  Child nobody(Identity::kNobody, [](test::Channel&) {
    const UffdAccess access = ProbeUserfaultfd();
    if (access.source != UffdAccess::Source::kNone) return 77;
    CHILD_CHECK(strstr(access.why_not, "remedy") != nullptr);
    return 0;
  });
  const int status = nobody.Wait();
  if (status == 77) GTEST_SKIP() << "everybody may use userfaultfd here";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace hostmm
