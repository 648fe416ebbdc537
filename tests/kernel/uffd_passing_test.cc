// Who may have a userfaultfd, and what its holder may do from another process (facts F1 to F4).

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>

#include "tests/testing/child.h"
#include "tests/testing/deadline.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/sysctl_guard.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {
namespace {

constexpr size_t kBytes = 4 * kBlock;
constexpr char kText[] = "content of a file";

ScopedFd OpenDevice() { return ScopedFd(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)); }

// userfaultfd(2); invalid with errno.
ScopedFd UserfaultfdSyscall(int flags) {
  return ScopedFd(static_cast<int>(syscall(SYS_userfaultfd, flags)));
}

// An unnamed file that holds kText, outside of any tmpfs of ours.
ScopedFd TextFile() {
  ScopedFd fd(memfd_create("text", MFD_CLOEXEC));
  if (fd.valid() && pwrite(fd.get(), kText, sizeof(kText), 0) != sizeof(kText)) fd.Close();
  return fd;
}

class UffdPassingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoRoot());
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    device_ = OpenDevice();
    file_ = MemfdFile(kBytes);
    pager_ = ScopedMapping::SharedFile(file_.get(), kBytes);
    ASSERT_TRUE(pager_.ok());
  }

  ScopedFd device_;
  ScopedFd file_;
  ScopedMapping pager_;
};

// F1: the usual default leaves a process without privilege nothing that would be of use.
TEST_F(UffdPassingTest, NobodyAloneGetsNoUsefulUserfaultfd) {
  if (ReadSysctl("/proc/sys/vm/unprivileged_userfaultfd") != 0) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd is not 0 here: everybody may";
  }
  Child nobody(Identity::kNobody, [this](Channel&) {
    CHILD_CHECK(!UserfaultfdSyscall(O_CLOEXEC).valid() && errno == EPERM);
    ScopedFd user_only = UserfaultfdSyscall(O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    CHILD_CHECK(user_only.valid());
    uffdio_api api = {};
    api.api = UFFD_API;
    CHILD_CHECK(ioctl(user_only.get(), UFFDIO_API, &api) == 0);
    const TestUffd uffd(std::move(user_only));
    const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBytes);
    CHILD_CHECK(uffd.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING) == 0);
    // The kernel's own access to a hole is not raised: the system call fails.
    const ScopedFd text = TextFile();
    CHILD_CHECK(pread(text.get(), view.data(), sizeof(kText), 0) == -1 && errno == EFAULT);
    return 0;
  });
  EXPECT_EQ(nobody.Wait(), 0);
}

// F2: the whole road of a hole, from a process without privilege: descriptor in, userfaultfd back,
// registration and answers from the other process, kernel-mode access included.
TEST_F(UffdPassingTest, PassedDeviceServesKernelAccessesOfNobody) {
  Child guest(Identity::kNobody, [this](Channel& channel) {
    const ScopedFd device = channel.ReceiveFd();
    const TestUffd uffd = TestUffd::FromDevice(device.get());
    CHILD_CHECK(uffd.valid());
    const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBytes);
    CHILD_CHECK(channel.SendFd(uffd.fd()));
    CHILD_CHECK(channel.SendValue(reinterpret_cast<uint64_t>(view.data())) && channel.Await());
    const ScopedFd text = TextFile();
    CHILD_CHECK(pread(text.get(), view.block(2), sizeof(kText), 0) == sizeof(kText));
    return 0;
  });
  ASSERT_TRUE(guest.channel().SendFd(device_.get()));
  const TestUffd uffd(guest.channel().ReceiveFd());
  ASSERT_TRUE(uffd.valid());
  uint64_t base = 0;
  ASSERT_TRUE(guest.channel().ReceiveValue(&base));
  char* view = reinterpret_cast<char*>(base);
  ASSERT_EQ(uffd.Register(view, kBytes, UFFDIO_REGISTER_MODE_MISSING), 0);  // F4
  ASSERT_TRUE(guest.channel().Signal());

  const auto fault = uffd.WaitFault();
  ASSERT_TRUE(fault.has_value());
  EXPECT_EQ(fault->address, base + 2 * kBlock);
  WriteByte(pager_.block(2), 0);
  ASSERT_EQ(uffd.Wake(view + 2 * kBlock, kPage), 0);  // F4
  ASSERT_EQ(guest.Wait(), 0);
  EXPECT_STREQ(pager_.block(2), kText);
}

// F2: the descriptor gives no access to the memory of the process that opened it.
TEST_F(UffdPassingTest, UserfaultfdIsForTheMemoryOfItsMaker) {
  Child guest(Identity::kNobody, [this](Channel& channel) {
    const ScopedFd device = channel.ReceiveFd();
    const TestUffd uffd = TestUffd::FromDevice(device.get());
    // Private to the child: in the opener there is nothing mapped at this address.
    const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBytes);
    CHILD_CHECK(uffd.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING) == 0);
    CHILD_CHECK(ReadVma(0, view.data())->HasFlag("um"));
    CHILD_CHECK(channel.Signal() && channel.Await());
    return 0;
  });
  ASSERT_TRUE(guest.channel().SendFd(device_.get()));
  ASSERT_TRUE(guest.channel().Await());
  EXPECT_FALSE(ReadVma(0, pager_.data())->HasFlag("um"));
  ASSERT_TRUE(guest.channel().Signal());
  EXPECT_EQ(guest.Wait(), 0);
}

// F3: fork events are for the privileged.
TEST_F(UffdPassingTest, ForkEventNeedsPrivilege) {
  EXPECT_TRUE(TestUffd::FromDevice(device_.get(), UFFD_FEATURE_EVENT_FORK).valid());
  Child nobody(Identity::kNobody, [](Channel& channel) {
    const ScopedFd device = channel.ReceiveFd();
    CHILD_CHECK(!TestUffd::FromDevice(device.get(), UFFD_FEATURE_EVENT_FORK).valid());
    CHILD_CHECK(errno == EPERM);
    return 0;
  });
  ASSERT_TRUE(nobody.channel().SendFd(device_.get()));
  EXPECT_EQ(nobody.Wait(), 0);
}

// F3: a fork child has the mapping but no registration: its holes fill natively.
TEST_F(UffdPassingTest, ForkChildIsNotRegistered) {
  const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBytes);
  const TestUffd uffd = TestUffd::FromDevice(device_.get());
  ASSERT_EQ(uffd.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING), 0);
  Child forked(Identity::kSame, [&](Channel&) {
    CHILD_CHECK(!ReadVma(0, view.data())->HasFlag("um"));
    WriteByte(view.block(1), 7);
    return 0;
  });
  EXPECT_EQ(forked.Wait(kWakeDeadline), 0);
  EXPECT_TRUE(uffd.Quiet());
  EXPECT_TRUE(ReadVma(0, view.data())->HasFlag("um"));
  EXPECT_EQ(ReadByte(pager_.block(1)), 7);
}

// F3: one range, one userfaultfd.
TEST_F(UffdPassingTest, SecondRegistrationIsBusy) {
  const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBytes);
  TestUffd first = TestUffd::FromDevice(device_.get());
  const TestUffd second = TestUffd::FromDevice(device_.get());
  ASSERT_EQ(first.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING), 0);
  EXPECT_EQ(second.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING), EBUSY);
  EXPECT_EQ(second.Register(view.block(1), kBlock, UFFDIO_REGISTER_MODE_MISSING), EBUSY);
  first.Close();
  EXPECT_EQ(second.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING), 0);
}

// A guest whose thread sleeps in a hole, its descriptor held by the pager alone.
class LastCopyTest : public UffdPassingTest {
 protected:
  enum class GuestCopy { kDropped, kKept };

  // The pager closes its copy while the guest's fault waits. RETURNS how the guest ends within that
  // time.
  int RunGuest(GuestCopy copy, std::chrono::milliseconds within) {
    Child guest(Identity::kNobody, [&](Channel& channel) {
      const ScopedFd device = channel.ReceiveFd();
      TestUffd uffd = TestUffd::FromDevice(device.get());
      const ScopedMapping view = ScopedMapping::SharedFile(file_.get(), kBytes);
      CHILD_CHECK(uffd.Register(view.data(), kBytes, UFFDIO_REGISTER_MODE_MISSING) == 0);
      CHILD_CHECK(channel.SendFd(uffd.fd()));
      if (copy == GuestCopy::kDropped) uffd.Close();
      return ReadByte(view.data());
    });
    EXPECT_TRUE(guest.channel().SendFd(device_.get()));
    TestUffd uffd(guest.channel().ReceiveFd());
    EXPECT_TRUE(uffd.WaitFault().has_value());
    uffd.Close();
    return guest.Wait(within);
  }
};

// F4: the pager is gone: the guest's hole becomes a zero page of the file, natively.
TEST_F(LastCopyTest, ClosingTheLastCopyWakesNatively) {
  EXPECT_EQ(RunGuest(GuestCopy::kDropped, kWakeDeadline), 0);
}

// F4: while the guest keeps a copy of its own, the fault waits for whoever adopts it (-1: it was
// still asleep at the deadline, and a signal could end it).
TEST_F(LastCopyTest, CopyInTheGuestKeepsTheFaultWaiting) {
  // A guest that is woken ends within milliseconds.
  constexpr std::chrono::milliseconds kLongEnough(500);
  EXPECT_EQ(RunGuest(GuestCopy::kKept, kLongEnough), -1);
}

}  // namespace
}  // namespace hostmm::test
