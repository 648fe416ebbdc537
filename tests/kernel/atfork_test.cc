// Re-attaching after fork: a pthread_atfork child handler makes the child's own userfaultfd and
// hands it to the pager before any application code runs in the child (fact F3, DESIGN section 6).

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "tests/testing/child.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {
namespace {

constexpr size_t kBytes = 8 * kBlock;

// What the handler finds in a process that was just forked. Static, as a preload library has it:
// the handler takes no argument. One generation at a time uses the channel, because the parent
// waits for each child below.
struct Attachment {
  int device = -1;
  const Channel* pager = nullptr;
  char* region = nullptr;
  int uffd = -1;  // of this process; closed with it
} attachment;

// In the child, before fork() returns there. The parent's userfaultfd came along as a descriptor,
// but it speaks for the parent's memory.
void AttachChild() {
  TestUffd uffd = TestUffd::FromDevice(attachment.device);
  CHILD_CHECK(uffd.valid());
  CHILD_CHECK(uffd.Register(attachment.region, kBytes, UFFDIO_REGISTER_MODE_MISSING) == 0);
  CHILD_CHECK(attachment.pager->SendFd(uffd.fd()));
  CHILD_CHECK(attachment.pager->Await());
  attachment.uffd = fcntl(uffd.fd(), F_DUPFD_CLOEXEC, 0);
}

// Forks down to `depth` generations; each touches a block of its own, which must be a hole.
int ForkChain(int depth) {
  WriteByte(attachment.region + depth * kBlock, static_cast<char>(depth));
  if (depth == 0) return 0;
  const pid_t pid = fork();
  if (pid == 0) _exit(ForkChain(depth - 1));
  int status = 0;
  CHILD_CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

class AtforkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoRoot());
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    HOSTMM_SKIP_IF(WhyNoHugeTmpfs());
    device_ = ScopedFd(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    file_ = HugeTmpfsFile(kBytes);
    pager_ = ScopedMapping::SharedFile(file_.get(), kBytes);
    ASSERT_TRUE(pager_.ok()) << strerror(errno);
  }

  // What a guest without privilege does: attach itself, then run `body`. The handler is installed
  // in the guest only, so that no other fork of this test program runs it.
  static int RunGuest(const ScopedFd& file, Channel& channel, int (*body)()) {
    const ScopedFd device = channel.ReceiveFd();
    CHILD_CHECK(device.valid());
    ScopedMapping view = ScopedMapping::SharedFile(file.get(), kBytes);
    CHILD_CHECK(view.ok() && channel.SendValue(reinterpret_cast<uint64_t>(view.data())));
    attachment = {device.get(), &channel, view.Release(), -1};
    CHILD_CHECK(pthread_atfork(nullptr, nullptr, AttachChild) == 0);
    AttachChild();
    return body();
  }

  // Receives the userfaultfd of the next process that attaches.
  TestUffd Attach(const Child& guest) {
    TestUffd uffd(guest.channel().ReceiveFd());
    guest.channel().Signal();
    return uffd;
  }

  // Answers the hole that the process behind `uffd` must raise at `block`.
  void ServeHole(const TestUffd& uffd, char* view, size_t block) {
    const auto fault = uffd.WaitFault();
    ASSERT_TRUE(fault.has_value()) << "block " << block << " raised no event";
    EXPECT_EQ(fault->address, reinterpret_cast<uint64_t>(view + block * kBlock));
    WriteByte(pager_.block(block), 0);
    ASSERT_EQ(uffd.Wake(view + block * kBlock, kBlock), 0);
  }

  ScopedFd device_;
  ScopedFd file_;
  ScopedMapping pager_;
};

TEST_F(AtforkTest, ChildOfNobodyIsServedFromItsFirstTouch) {
  Child guest(Identity::kNobody, [this](Channel& channel) {
    return RunGuest(file_, channel, [] { return ForkChain(1); });
  });
  ASSERT_TRUE(guest.channel().SendFd(device_.get()));
  uint64_t base = 0;
  ASSERT_TRUE(guest.channel().ReceiveValue(&base));
  char* view = reinterpret_cast<char*>(base);

  const TestUffd parent = Attach(guest);
  ASSERT_NO_FATAL_FAILURE(ServeHole(parent, view, 1));
  const TestUffd child = Attach(guest);
  ASSERT_NO_FATAL_FAILURE(ServeHole(child, view, 0));
  EXPECT_TRUE(parent.Quiet()) << "the child's fault comes through the child's userfaultfd only";
  EXPECT_EQ(guest.Wait(), 0);
  EXPECT_EQ(ReadByte(pager_.block(1)), 1) << "the parent's data is in the file";
}

TEST_F(AtforkTest, ForkChainAttachesEveryGeneration) {
  constexpr size_t kGenerations = 5;
  Child guest(Identity::kNobody, [this](Channel& channel) {
    return RunGuest(file_, channel, [] { return ForkChain(kGenerations); });
  });
  ASSERT_TRUE(guest.channel().SendFd(device_.get()));
  uint64_t base = 0;
  ASSERT_TRUE(guest.channel().ReceiveValue(&base));
  for (size_t depth = kGenerations + 1; depth-- > 0;) {
    const TestUffd uffd = Attach(guest);
    ASSERT_TRUE(uffd.valid());
    ASSERT_NO_FATAL_FAILURE(ServeHole(uffd, reinterpret_cast<char*>(base), depth));
  }
  EXPECT_EQ(guest.Wait(), 0);
  for (size_t depth = 0; depth <= kGenerations; ++depth) {
    EXPECT_EQ(ReadByte(pager_.block(depth)), static_cast<char>(depth));
  }
}

// What the parent had present is right in the child at once, before and without any event.
TEST_F(AtforkTest, PresentDataNeedsNoEventInTheChild) {
  WriteByte(pager_.block(0), 42);
  WriteByte(pager_.block(1), 43);
  Child guest(Identity::kNobody, [this](Channel& channel) {
    return RunGuest(file_, channel, [] {
      const pid_t pid = fork();
      if (pid == 0) {
        const bool right = ReadByte(attachment.region) == 42 &&
                           ReadByte(attachment.region + kBlock) == 43 &&
                           PmdMappedKib(attachment.region) == 2 * int64_t{kBlock >> 10};
        _exit(right ? 0 : 1);
      }
      int status = 0;
      return waitpid(pid, &status, 0) == pid && status == 0 ? 0 : 1;
    });
  });
  ASSERT_TRUE(guest.channel().SendFd(device_.get()));
  uint64_t base = 0;
  ASSERT_TRUE(guest.channel().ReceiveValue(&base));
  const TestUffd parent = Attach(guest);
  const TestUffd child = Attach(guest);
  ASSERT_TRUE(parent.valid() && child.valid());
  EXPECT_EQ(guest.Wait(), 0);
  EXPECT_TRUE(parent.Quiet());
  EXPECT_TRUE(child.Quiet());
}

}  // namespace
}  // namespace hostmm::test
