// A snapshot's view: a private mapping of the live file, registered for every mode, in which the
// pager decides for each page whether it is the live frame or a copy.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "tests/kernel/frozen_file.h"
#include "tests/testing/child.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"
#include "tests/testing/touch.h"

namespace hostmm::test {
namespace {

class SnapshotViewTest : public FrozenFileTest, public ::testing::WithParamInterface<Store> {
 protected:
  void SetUp() override {
    Open(GetParam());
    if (IsSkipped() || HasFatalFailure()) return;
    Fill();
    if (IsSkipped() || HasFatalFailure()) return;
    // A viewer gets no descriptor that could change the live file.
    const std::string path = "/proc/self/fd/" + std::to_string(file_.get());
    read_only_ = ScopedFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_TRUE(read_only_.valid()) << strerror(errno);
    view_ = NewView(PROT_READ | PROT_WRITE);
    ASSERT_TRUE(view_.ok()) << strerror(errno);
    // One unit as it was, that no unit of the live file is.
    preimage_ = std::string(unit(), '\x55');
  }

  // Not ok() if the kernel refuses a step.
  ScopedMapping NewView(int prot) {
    char* place = ReserveAligned(kBytes, kBlock);
    if (place == nullptr) return ScopedMapping();
    ScopedMapping view = ScopedMapping::Adopt(place, kBytes);
    const void* mapped =
        mmap(place, kBytes, prot, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, read_only_.get(), 0);
    const bool ok = mapped == place && uffd_.Register(place, kBytes, kTracked) == 0;
    return ok ? std::move(view) : ScopedMapping();
  }

  char* view(size_t index) const { return view_.data() + index * unit(); }
  int Zap(size_t index) const {
    return madvise(view(index), unit(), MADV_DONTNEED) == 0 ? 0 : errno;
  }
  int CopyPreimage(size_t index) const {
    return CopyAs(uffd_, view(index), preimage_.data(), unit(), MapAs::kWritable);
  }

  // Makes the view share the live frame of a unit, as a first read does.
  void Share(size_t index) {
    Touch read(&uffd_, view(index), Touch::Kind::kRead);
    ASSERT_TRUE(RaisedAt(view(index), kReadEvent));
    ASSERT_EQ(ContinueAs(uffd_, view(index), unit(), MapAs::kProtected), 0);
    ASSERT_TRUE(read.Finished());
  }

  int64_t FileBlocks() const {
    struct stat status = {};
    return fstat(file_.get(), &status) == 0 ? status.st_blocks : -1;
  }

  ScopedFd read_only_;
  ScopedMapping view_;
  std::string preimage_;
};

INSTANTIATE_TEST_SUITE_P(On, SnapshotViewTest,
                         ::testing::Values(Store::kHugeTmpfs, Store::kHugetlb),
                         [](const auto& info) { return NameOf(info.param); });

TEST_P(SnapshotViewTest, AReadSharesTheLiveFrame) {
  const int64_t blocks = FileBlocks();
  Share(3);
  EXPECT_EQ(ReadByte(view(3)), OriginalByte(3));
  WriteByte(pager(3), 77);
  EXPECT_EQ(ReadByte(view(3)), 77) << "one frame, which is why a writer must wait for a revoke";
  EXPECT_EQ(FileBlocks(), blocks);
  EXPECT_TRUE(IsSilent(view(3), Touch::Kind::kRead));
}

TEST_P(SnapshotViewTest, AWindowOfLiveFramesIsSharedAtOnce) {
  ASSERT_EQ(ContinueAs(uffd_, view(0), 4 * unit(), MapAs::kProtected), 0);
  for (size_t index = 0; index < 4; ++index) {
    ASSERT_TRUE(IsSilent(view(index), Touch::Kind::kRead));
    EXPECT_EQ(ReadByte(view(index)), OriginalByte(index));
  }
}

// What a writer's first write does to the views: the shared entry goes, the copy comes.
TEST_P(SnapshotViewTest, ASharedFrameIsReplacedByACopy) {
  Share(3);
  EXPECT_EQ(CopyPreimage(3), EEXIST) << "an entry is never replaced without a zap";
  ASSERT_EQ(Zap(3), 0);
  Touch read(&uffd_, view(3), Touch::Kind::kRead);
  ASSERT_TRUE(RaisedAt(view(3), kReadEvent));
  ASSERT_EQ(CopyPreimage(3), 0);
  ASSERT_TRUE(read.Finished());
  EXPECT_EQ(memcmp(view(3), preimage_.data(), unit()), 0);

  WriteByte(pager(3), 77);
  EXPECT_EQ(ReadByte(view(3)), 0x55) << "the view is apart from the live file";
  EXPECT_TRUE(IsSilent(view(3), Touch::Kind::kWrite)) << "a copy is the view's own";
  EXPECT_EQ(ReadByte(view(3)), 1);
  EXPECT_EQ(ReadByte(pager(3)), 77);
}

TEST_P(SnapshotViewTest, AFirstWriteIsServedByACopy) {
  Touch write(&uffd_, view(5), Touch::Kind::kWrite);
  ASSERT_TRUE(RaisedAt(view(5), kWriteEvent));
  ASSERT_EQ(CopyPreimage(5), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(view(5)), 1);
  EXPECT_EQ(ReadByte(view(5) + 1), 0x55);
  EXPECT_EQ(ReadByte(pager(5)), OriginalByte(5));
}

TEST_P(SnapshotViewTest, AWriteToASharedFrameIsAnEvent) {
  Share(4);
  Touch write(&uffd_, view(4), Touch::Kind::kWrite);
  ASSERT_TRUE(RaisedAt(view(4), kProtectedEvent));
  ASSERT_EQ(Zap(4), 0);
  ASSERT_EQ(CopyPreimage(4), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(view(4)), 1);
  EXPECT_EQ(ReadByte(pager(4)), OriginalByte(4));
}

// The same without a zap: the kernel then copies the live frame as it is at that moment.
TEST_P(SnapshotViewTest, AnUnprotectedSharedFrameIsCopiedByTheKernel) {
  Share(4);
  Touch write(&uffd_, view(4), Touch::Kind::kWrite);
  ASSERT_TRUE(RaisedAt(view(4), kProtectedEvent));
  ASSERT_EQ(uffd_.WriteProtect(view(4), unit(), 0), 0);
  ASSERT_TRUE(write.Finished());
  EXPECT_EQ(ReadByte(view(4)), 1);
  EXPECT_EQ(ReadByte(view(4) + 1), ReadByte(pager(4) + 1));
  EXPECT_EQ(ReadByte(pager(4)), OriginalByte(4));
}

// Even a CONTINUE that forgets the protection cannot let a view write the live file.
TEST_P(SnapshotViewTest, AnUnprotectedContinueIsStillCopyOnWrite) {
  ASSERT_EQ(ContinueAs(uffd_, view(6), unit(), MapAs::kWritable), 0);
  EXPECT_TRUE(IsSilent(view(6), Touch::Kind::kWrite));
  EXPECT_EQ(ReadByte(view(6) + 1), ReadByte(pager(6) + 1));
  EXPECT_EQ(ReadByte(view(6)), 1);
  EXPECT_EQ(ReadByte(pager(6)), OriginalByte(6));
}

TEST_P(SnapshotViewTest, AHoleIsAMissingEventAndTakesACopy) {
  ASSERT_EQ(madvise(pager_.block(1), kBlock, MADV_REMOVE), 0) << strerror(errno);
  const int64_t blocks = FileBlocks();
  char* at = view_.block(1);
  Touch read(&uffd_, at, Touch::Kind::kRead);
  ASSERT_TRUE(RaisedAt(at, 0));
  ASSERT_EQ(ContinueAs(uffd_, at, unit(), MapAs::kProtected), EFAULT) << "there is no frame";
  ASSERT_EQ(CopyAs(uffd_, at, preimage_.data(), unit(), MapAs::kProtected), 0);
  ASSERT_TRUE(read.Finished());
  EXPECT_EQ(ReadByte(at), 0x55);
  EXPECT_EQ(FileBlocks(), blocks) << "a view fills no hole of the live file";

  Touch write(&uffd_, at, Touch::Kind::kWrite);
  EXPECT_TRUE(RaisedAt(at, kProtectedEvent)) << "a copy may be protected, too";
  EXPECT_EQ(uffd_.WriteProtect(at, unit(), 0), 0);
  EXPECT_TRUE(write.Finished());
}

// A read-only view takes shared frames and copies just the same.
TEST_P(SnapshotViewTest, AReadOnlyViewIsServedTheSame) {
  view_ = NewView(PROT_READ);
  ASSERT_TRUE(view_.ok()) << strerror(errno);
  Share(3);
  EXPECT_EQ(ReadByte(view(3)), OriginalByte(3));
  Touch read(&uffd_, view(4), Touch::Kind::kRead);
  ASSERT_TRUE(RaisedAt(view(4), kReadEvent));
  ASSERT_EQ(CopyPreimage(4), 0);
  ASSERT_TRUE(read.Finished());
  EXPECT_EQ(ReadByte(view(4)), 0x55);
  Child writer(Identity::kSame, [this](Channel&) {
    WriteByte(view(4), 1);
    return 0;
  });
  EXPECT_EQ(writer.Wait(), 128 + SIGSEGV);
}

// A snapshot is mappable any number of times.
TEST_P(SnapshotViewTest, ViewsOfOneFileAreIndependent) {
  const ScopedMapping second = NewView(PROT_READ | PROT_WRITE);
  ASSERT_TRUE(second.ok()) << strerror(errno);
  Share(3);
  char* at = second.data() + 3 * unit();
  Touch read(&uffd_, at, Touch::Kind::kRead);
  ASSERT_TRUE(RaisedAt(at, kReadEvent));
  ASSERT_EQ(CopyAs(uffd_, at, preimage_.data(), unit(), MapAs::kWritable), 0);
  ASSERT_TRUE(read.Finished());
  EXPECT_EQ(ReadByte(at), 0x55);
  EXPECT_EQ(ReadByte(view(3)), OriginalByte(3));
}

// A child inherits entries of a view that holds a copy, but no registration: shared frames, and
// what it touches first, it sees live. A view must not be inherited (MADV_DONTFORK), or be mapped
// anew in the child.
TEST_P(SnapshotViewTest, AForkedChildsViewFollowsTheLiveFile) {
  ASSERT_EQ(CopyPreimage(2), 0);
  Share(3);
  Child forked(Identity::kSame, [this](Channel& channel) {
    const auto vma = ReadVma(0, view_.data());
    CHILD_CHECK(vma.has_value());
    CHILD_CHECK(!vma->HasFlag("um") && !vma->HasFlag("uw") && !vma->HasFlag("ui"));
    CHILD_CHECK(ReadByte(view(2)) == 0x55);
    CHILD_CHECK(channel.Signal() && channel.Await());
    CHILD_CHECK(ReadByte(view(3)) == 77);
    CHILD_CHECK(ReadByte(view_.block(4)) == 78);
    return 0;
  });
  ASSERT_TRUE(forked.channel().Await());
  WriteByte(pager(3), 77);
  WriteByte(pager_.block(4), 78);
  ASSERT_TRUE(forked.channel().Signal());
  EXPECT_EQ(forked.Wait(), 0);
  EXPECT_TRUE(uffd_.Quiet());
}

TEST_P(SnapshotViewTest, AViewMarkedDontForkIsNotInherited) {
  ASSERT_EQ(madvise(view_.data(), kBytes, MADV_DONTFORK), 0);
  ASSERT_EQ(CopyPreimage(2), 0);
  Child forked(Identity::kSame, [this](Channel&) {
    CHILD_CHECK(!ReadVma(0, view_.data()).has_value());
    return 0;
  });
  EXPECT_EQ(forked.Wait(), 0);
}

// How a lost snapshot ends: other memory in place of the view. Who waits in the old mapping is not
// woken by that: the one who replaces it must.
TEST_P(SnapshotViewTest, AReplacedViewsWaitersMustBeWoken) {
  Touch read(&uffd_, view(3), Touch::Kind::kRead);
  ASSERT_TRUE(RaisedAt(view(3), kReadEvent));
  ASSERT_EQ(mmap(view_.data(), kBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
            view_.data());
  EXPECT_FALSE(read.Finished(kQuietTime));
  ASSERT_EQ(uffd_.Wake(view_.data(), kBytes), 0) << "a wake needs no registration";
  EXPECT_TRUE(read.Finished());
}

}  // namespace
}  // namespace hostmm::test
