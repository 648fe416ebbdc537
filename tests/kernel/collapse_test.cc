// MADV_COLLAPSE on files that others made: what can become huge after the fact, and what refuses
// (fact F10).

#include "tests/testing/collapse.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>

#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <functional>
#include <string>

#include "tests/testing/child.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {
namespace {

constexpr int64_t kBlockKib = kBlock >> 10;

// An unnamed file on /dev/shm, as programs make it with shm_open.
ScopedFd DevShmFile(size_t bytes) {
  ScopedFd fd(open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (fd.valid() && ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) fd.Close();
  return fd;
}

// SIGBUS as a value. One thread only: the jump target is one per process.
sigjmp_buf bus_error_return;
bool ReadRaisesBusError(const char* at) {
  struct sigaction action = {};
  struct sigaction old_action = {};
  action.sa_handler = [](int) { siglongjmp(bus_error_return, 1); };
  sigaction(SIGBUS, &action, &old_action);
  volatile bool raised = true;  // volatile: it changes between sigsetjmp and the jump back
  if (sigsetjmp(bus_error_return, 1) == 0) {
    ReadByte(at);
    raised = false;
  }
  sigaction(SIGBUS, &old_action, nullptr);
  return raised;
}

class CollapseTest : public ::testing::Test {
 protected:
  void SetUp() override { HOSTMM_SKIP_IF(WhyNoCollapse()); }
};

// Another process has every small page mapped; `attach` gives it its view. The tables that it
// built go when the block collapses, and its next touch maps the block whole.
void ExpectCollapseRetractsTheOtherProcess(char* mine, const std::function<char*()>& attach) {
  memset(mine, 7, kBlock);
  Child other(Identity::kSame, [&](Channel& channel) {
    char* view = attach();
    CHILD_CHECK(view != nullptr);
    ReadEvery(view, kBlock, kPage);
    const auto before = ReadVma(0, view);
    CHILD_CHECK(before && before->rss_kib == kBlockKib && before->shmem_pmd_mapped_kib == 0);
    CHILD_CHECK(channel.Signal() && channel.Await());
    CHILD_CHECK(RssKib(view) == 0);
    CHILD_CHECK(ReadByte(view + kBlock - 1) == 7);
    CHILD_CHECK(PmdMappedKib(view) == kBlockKib);
    return 0;
  });
  ASSERT_TRUE(other.channel().Await());
  EXPECT_EQ(Collapse(mine), 0);
  EXPECT_EQ(PmdMappedKib(mine), kBlockKib);
  ASSERT_TRUE(other.channel().Signal());
  EXPECT_EQ(other.Wait(), 0);
}

// F10.
TEST_F(CollapseTest, MemfdRetractsTablesOfAnotherProcess) {
  const ScopedFd file = MemfdFile(kBlock);
  const ScopedMapping mine = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(mine.ok());
  ExpectCollapseRetractsTheOtherProcess(mine.data(), [&] {
    return ScopedMapping::SharedFile(file.get(), kBlock, PROT_READ).Release();
  });
}

// F10 for a file of another program in /dev/shm.
TEST_F(CollapseTest, DevShmRetractsTablesOfAnotherProcess) {
  const ScopedFd file = DevShmFile(kBlock);
  if (!file.valid()) GTEST_SKIP() << "no usable /dev/shm: " << strerror(errno);
  const ScopedMapping mine = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(mine.ok());
  ExpectCollapseRetractsTheOtherProcess(mine.data(), [&] {
    return ScopedMapping::SharedFile(file.get(), kBlock, PROT_READ).Release();
  });
}

// F10 for a SysV segment, which no descriptor can name.
class SysvSegment {
 public:
  explicit SysvSegment(size_t bytes) : id_(shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600)) {}
  ~SysvSegment() {
    if (id_ >= 0) shmctl(id_, IPC_RMID, nullptr);
  }
  bool ok() const { return id_ >= 0; }
  char* Attach(int flags) const {
    void* at = shmat(id_, ReserveAligned(kBlock, kBlock), SHM_REMAP | flags);
    return at == reinterpret_cast<void*>(-1) ? nullptr : static_cast<char*>(at);
  }

 private:
  int id_;
};

TEST_F(CollapseTest, SysvSegmentRetractsTablesOfAnotherProcess) {
  const SysvSegment segment(kBlock);
  if (!segment.ok()) GTEST_SKIP() << "no SysV segment: " << strerror(errno);
  char* mine = segment.Attach(0);
  ASSERT_NE(mine, nullptr) << strerror(errno);
  ExpectCollapseRetractsTheOtherProcess(mine, [&] { return segment.Attach(SHM_RDONLY); });
  shmdt(mine);
}

TEST_F(CollapseTest, SysvSegmentThroughAReadOnlyAttach) {
  const SysvSegment segment(kBlock);
  if (!segment.ok()) GTEST_SKIP() << "no SysV segment: " << strerror(errno);
  char* writable = segment.Attach(0);
  char* read_only = segment.Attach(SHM_RDONLY);
  ASSERT_TRUE(writable != nullptr && read_only != nullptr);
  memset(writable, 7, kBlock);
  EXPECT_EQ(Collapse(read_only), 0);
  EXPECT_EQ(PmdMappedKib(read_only), kBlockKib);
  shmdt(writable);
  shmdt(read_only);
}

// A pager that may only read a file can still make it huge, for all.
TEST_F(CollapseTest, ThroughAReadOnlyDescriptor) {
  const ScopedFd file = MemfdFile(kBlock);
  const ScopedMapping writable = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(writable.ok());
  memset(writable.data(), 7, kBlock);
  const ScopedFd reader(
      open(("/proc/self/fd/" + std::to_string(file.get())).c_str(), O_RDONLY | O_CLOEXEC));
  const ScopedMapping view = ScopedMapping::SharedFile(reader.get(), kBlock, PROT_READ);
  ASSERT_TRUE(view.ok()) << strerror(errno);
  EXPECT_EQ(Collapse(view.data()), 0);
  EXPECT_EQ(PmdMappedKib(view.data()), kBlockKib);
}

TEST_F(CollapseTest, ThroughAnInaccessibleMapping) {
  const ScopedFd file = MemfdFile(kBlock);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(mapping.ok());
  memset(mapping.data(), 7, kBlock);
  ASSERT_EQ(mprotect(mapping.data(), kBlock, PROT_NONE), 0);
  EXPECT_EQ(Collapse(mapping.data()), 0);
}

// F10: holes are filled, unless someone watches for them (next test).
TEST_F(CollapseTest, BlockWithOnePageCollapses) {
  const ScopedFd file = MemfdFile(kBlock);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(mapping.ok());
  WriteByte(mapping.data() + kPage, 7);
  EXPECT_EQ(Collapse(mapping.data()), 0);
  EXPECT_EQ(PmdMappedKib(mapping.data()), kBlockKib);
  EXPECT_EQ(ReadByte(mapping.data() + kPage), 7);
}

TEST_F(CollapseTest, EmptyBlockIsInvalid) {
  const ScopedFd file = MemfdFile(kBlock);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(mapping.ok());
  EXPECT_EQ(Collapse(mapping.data()), EINVAL);
}

TEST_F(CollapseTest, MisalignedAndPartialRanges) {
  const ScopedFd file = MemfdFile(2 * kBlock);
  const ScopedMapping filler = ScopedMapping::SharedFile(file.get(), 2 * kBlock);
  ASSERT_TRUE(filler.ok());
  memset(filler.data(), 7, 2 * kBlock);

  // Address and offset disagree (mod 2 MiB): the aligned block inside holds halves of two.
  const ScopedMapping skewed =
      ScopedMapping::SharedFile(file.get(), 2 * kBlock, PROT_READ | PROT_WRITE, kBlock, kPage);
  ASSERT_TRUE(skewed.ok());
  EXPECT_EQ(Collapse(skewed.data() + kBlock - kPage), EINVAL);

  // Less than a block asked for "succeeds" and does nothing: the range is rounded inwards.
  EXPECT_EQ(madvise(filler.data(), kBlock / 2, kMadvCollapse), 0);
  EXPECT_EQ(PmdMappedKib(filler.data()), 0);

  // Less than a block mapped.
  const ScopedMapping half = ScopedMapping::SharedFile(file.get(), kBlock / 2);
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(madvise(half.data(), kBlock / 2, kMadvCollapse), -1);
  EXPECT_EQ(errno, EINVAL);
}

class WatchedCollapseTest : public CollapseTest {
 protected:
  void SetUp() override {
    CollapseTest::SetUp();
    if (!IsSkipped()) HOSTMM_SKIP_IF(WhyNoUserfaultfd());
  }
};

// F10: collapsing would fill holes behind the back of the monitor. Only the blocks that the
// registered VMA covers are refused, and only while they have holes.
TEST_F(WatchedCollapseTest, HolesAreRefusedWhileRegisteredMissing) {
  const ScopedFd file = MemfdFile(3 * kBlock);
  const ScopedMapping pager = ScopedMapping::SharedFile(file.get(), 3 * kBlock);
  const ScopedMapping guest = ScopedMapping::SharedFile(file.get(), 3 * kBlock);
  ASSERT_TRUE(pager.ok() && guest.ok());
  TestUffd uffd = TestUffd::Open();
  ASSERT_EQ(uffd.Register(guest.data(), 2 * kBlock, UFFDIO_REGISTER_MODE_MISSING), 0);
  WriteByte(pager.block(0), 7);
  memset(pager.block(1), 7, kBlock);
  WriteByte(pager.block(2), 7);

  EXPECT_EQ(Collapse(pager.block(0)), EBUSY) << "registered, holes";
  EXPECT_EQ(Collapse(pager.block(1)), 0) << "registered, full";
  EXPECT_EQ(Collapse(pager.block(2)), 0) << "holes, but outside of the registered range";

  ASSERT_EQ(uffd.Unregister(guest.data(), 2 * kBlock), 0);
  EXPECT_EQ(Collapse(pager.block(0)), 0) << "holes, no longer registered";
}

// F10 + F11: the collapse of a full block takes the small entries of a registered guest away, too,
// and the guest comes back at PMD level without any event.
TEST_F(WatchedCollapseTest, RegisteredGuestComesBackHugeWithoutEvent) {
  const ScopedFd file = MemfdFile(kBlock);
  const ScopedMapping pager = ScopedMapping::SharedFile(file.get(), kBlock);
  const ScopedMapping guest = ScopedMapping::SharedFile(file.get(), kBlock);
  ASSERT_TRUE(pager.ok() && guest.ok());
  memset(pager.data(), 7, kBlock);
  TestUffd uffd = TestUffd::Open();
  ASSERT_EQ(uffd.Register(guest.data(), kBlock, UFFDIO_REGISTER_MODE_MISSING), 0);
  ReadEvery(guest.data(), kBlock, kPage);
  ASSERT_EQ(RssKib(guest.data()), kBlockKib);
  ASSERT_EQ(PmdMappedKib(guest.data()), 0);

  ASSERT_EQ(Collapse(pager.data()), 0);
  EXPECT_EQ(RssKib(guest.data()), 0);
  ReadByte(guest.data());
  EXPECT_EQ(PmdMappedKib(guest.data()), kBlockKib);
  EXPECT_TRUE(uffd.Quiet());
}

// A block that holds the end of the file loses its SIGBUS when it becomes huge: the PMD maps all of
// it, in every mapping. So the tail of a file whose users expect SIGBUS must stay small.
TEST_F(CollapseTest, TailBlockLosesItsBusError) {
  const size_t bytes = kBlock + kBlock / 2;
  const ScopedFd file = MemfdFile(bytes);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), 3 * kBlock);
  const ScopedMapping other = ScopedMapping::SharedFile(file.get(), 3 * kBlock);
  ASSERT_TRUE(mapping.ok() && other.ok());
  memset(mapping.data(), 7, bytes);
  EXPECT_TRUE(ReadRaisesBusError(mapping.data() + bytes));

  ASSERT_EQ(Collapse(mapping.block(1)), 0);
  EXPECT_FALSE(ReadRaisesBusError(mapping.data() + bytes));
  ReadByte(other.block(1));
  EXPECT_FALSE(ReadRaisesBusError(other.data() + bytes));
  EXPECT_TRUE(ReadRaisesBusError(mapping.block(2))) << "the next block is beyond any page";
}

}  // namespace
}  // namespace hostmm::test
