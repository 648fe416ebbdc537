// Snapshots through the C++ API: what each function does, how it refuses, and what is left of a
// view when its snapshot or its pager is not there any more. That a snapshot is one state under
// writers is tested elsewhere.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/hostmm.h"
#include "tests/api/cpp_session.h"
#include "tests/testing/child.h"
#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kBytes = 8 * kMiB;
constexpr size_t kPageBytes = 4096;
constexpr int kBus = 128 + SIGBUS;
constexpr int kSegv = 128 + SIGSEGV;
// Views of a dead pager end in microseconds; far below how long writers would wait for them.
constexpr std::chrono::milliseconds kViewsEnd(5000);

// What a child leaves that reads (writes) one byte there, in memory that it inherits.
int ReadInChild(const std::byte* at) {
  return Child(Identity::kSame,
               [&](hostmm::test::Channel&) {
                 (void)*const_cast<const volatile std::byte*>(at);
                 return 0;
               })
      .Wait();
}

std::byte Read(const std::byte* at) { return *const_cast<const volatile std::byte*>(at); }
void Write(std::byte* at, int value) {
  *const_cast<volatile std::byte*>(at) = static_cast<std::byte>(value);
}

class SnapshotTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    session_ = OpenSession();
    ASSERT_TRUE(session_.is_open());
    MapOptions options;
    options.share = ShareMode::kSharedPt;
    region_ = Must(session_.MapAnonymous(kBytes, options));
    ASSERT_FALSE(region_.empty());
    for (size_t at = 0; at < kBytes / 2; at += kPageBytes) Write(region_.data() + at, 1);
  }

  template <class T>
  static T Must(absl::StatusOr<T> value) {
    if (value.ok()) return *std::move(value);
    ADD_FAILURE() << value.status();
    return T();
  }

  Snapshot Take() { return Must(region_.Snapshot()); }

  Session session_;
  Region region_;
};

// ---- Region::Snapshot, Snapshot::Map

TEST_F(SnapshotTest, ViewsKeepWhatWasThere) {
  const Snapshot snapshot = Take();
  Write(region_.data(), 2);
  Write(region_.data() + kBytes - 1, 3);
  const SnapshotView view = Must(snapshot.Map());
  ASSERT_EQ(view.size(), kBytes);
  EXPECT_EQ(Read(view.data()), std::byte{1});
  EXPECT_EQ(Read(view.data() + kBytes - 1), std::byte{0});
  // What is shared until it is written: read first, then written.
  EXPECT_EQ(Read(view.data() + kPageBytes), std::byte{1});
  Write(region_.data() + kPageBytes, 4);
  EXPECT_EQ(Read(view.data() + kPageBytes), std::byte{1});
  EXPECT_EQ(Read(region_.data() + kPageBytes), std::byte{4});
  EXPECT_TRUE(snapshot.Check().ok()) << snapshot.Check();
}

TEST_F(SnapshotTest, OneAfterTheOther) {
  const Snapshot first = Take();
  Write(region_.data(), 2);
  const Snapshot second = Take();
  Write(region_.data(), 3);
  const SnapshotView of_first = Must(first.Map());
  const SnapshotView of_second = Must(second.Map());
  EXPECT_EQ(Read(of_first.data()), std::byte{1});
  EXPECT_EQ(Read(of_second.data()), std::byte{2});
  EXPECT_EQ(Read(region_.data()), std::byte{3});
}

TEST_F(SnapshotTest, ViewOutlivesItsSnapshot) {
  SnapshotView view;
  {
    const Snapshot snapshot = Take();
    view = Must(snapshot.Map());
  }
  Write(region_.data(), 2);
  EXPECT_EQ(Read(view.data()), std::byte{1});
}

TEST_F(SnapshotTest, RegionGoesOnWhenTheSnapshotHasGone) {
  {
    const Snapshot snapshot = Take();
    Write(region_.data(), 2);
  }
  for (size_t at = 0; at < kBytes; at += kPageBytes) Write(region_.data() + at, 5);
  EXPECT_EQ(Read(region_.data()), std::byte{5});
  const Snapshot again = Take();
  Write(region_.data(), 6);
  EXPECT_EQ(Read(Must(again.Map()).data()), std::byte{5});
}

TEST_F(SnapshotTest, PartsOfASnapshot) {
  const Snapshot snapshot = Take();
  ViewOptions part;
  part.offset = kBytes / 2 - kPageBytes;
  part.length = 2 * kPageBytes;
  const SnapshotView view = Must(snapshot.Map(part));
  ASSERT_EQ(view.size(), 2 * kPageBytes);
  EXPECT_EQ(Read(view.data()), std::byte{1});
  EXPECT_EQ(Read(view.data() + kPageBytes), std::byte{0});
  ViewOptions exactly;
  exactly.length = kPageBytes;
  exactly.address = view.data();
  EXPECT_TRUE(Refused(snapshot.Map(exactly).status(), EEXIST, "Map"));
}

TEST_F(SnapshotTest, AReadOnlyViewIsNeverWritten) {
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  // In this process: a child has no such mapping.
  EXPECT_EQ(mprotect(view.data(), kPageBytes, PROT_READ | PROT_WRITE), -1);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(mprotect(view.data(), kPageBytes, PROT_NONE), 0);
  EXPECT_EQ(mprotect(view.data(), kPageBytes, PROT_READ), 0);
  EXPECT_EQ(Read(view.data()), std::byte{1});
}

TEST_F(SnapshotTest, AWritableViewsChangesAreItsOwn) {
  const Snapshot snapshot = Take();
  ViewOptions writable;
  writable.protection = Protection::kReadWrite;
  const SnapshotView mine = Must(snapshot.Map(writable));
  const SnapshotView other = Must(snapshot.Map(writable));
  Write(mine.data() + 1, 7);  // never read
  EXPECT_EQ(Read(mine.data() + kPageBytes), std::byte{1});
  Write(mine.data() + kPageBytes + 1, 7);  // shared by then
  Write(region_.data() + 2 * kPageBytes, 9);
  Write(mine.data() + 2 * kPageBytes + 1, 7);  // written in the live region by then
  for (size_t page = 0; page < 3; ++page) {
    EXPECT_EQ(Read(mine.data() + page * kPageBytes), std::byte{1}) << page;
    EXPECT_EQ(Read(mine.data() + page * kPageBytes + 1), std::byte{7}) << page;
    EXPECT_EQ(Read(other.data() + page * kPageBytes + 1), std::byte{0}) << page;
    EXPECT_EQ(Read(region_.data() + page * kPageBytes + 1), std::byte{0}) << page;
  }
  // And stay when the live page changes.
  Write(region_.data() + kPageBytes, 8);
  EXPECT_EQ(Read(mine.data() + kPageBytes + 1), std::byte{7});
}

TEST_F(SnapshotTest, MapRefusals) {
  const Snapshot snapshot = Take();
  const std::string before = SharedMappings();
  const auto refused = [&](const ViewOptions& options, int error) {
    return Refused(snapshot.Map(options).status(), error, "Map");
  };
  ViewOptions options;
  options.offset = 1;
  options.length = kPageBytes;
  EXPECT_TRUE(refused(options, EINVAL));
  options.offset = kBytes;
  EXPECT_TRUE(refused(options, EINVAL));
  options.offset = 0;
  options.length = kBytes + kPageBytes;
  EXPECT_TRUE(refused(options, EINVAL));
  options.length = ~size_t{0} - kPageBytes + 1;
  EXPECT_TRUE(refused(options, ENOMEM));
  options.length = kPageBytes + 1;
  EXPECT_TRUE(refused(options, EINVAL));
  options.length = kPageBytes;
  options.address = reinterpret_cast<void*>(kPageBytes + 1);
  EXPECT_TRUE(refused(options, EINVAL));
  options.address = nullptr;
  for (const Protection bad : {Protection::kNone, Protection::kReadExec}) {
    options.protection = bad;
    EXPECT_TRUE(refused(options, EINVAL));
  }
  EXPECT_EQ(SharedMappings(), before);
}

TEST_F(SnapshotTest, TakeRefusals) {
  EXPECT_TRUE(Refused(Region().Snapshot().status(), ERANGE, "Snapshot"));
  int local = 0;
  EXPECT_EQ(hostmm_snapshot(&local), -1);
  EXPECT_EQ(errno, ENOMEM);
  // A file that is the program's own.
  const ScopedFd file(memfd_create("cpp_snapshot", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(file.get(), static_cast<off_t>(kBytes)), 0);
  const Region adopted = Must(session_.MapFile(file.get(), 0, kBytes));
  EXPECT_TRUE(Refused(adopted.Snapshot().status(), ENOTSUP, "Snapshot"));
  // A view is none of live memory.
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  EXPECT_EQ(hostmm_snapshot(view.data()), -1);
  EXPECT_EQ(errno, ENOTSUP);
  ASSERT_TRUE(session_.Close().ok());
  EXPECT_TRUE(Refused(region_.Snapshot().status(), ENOTCONN, "Snapshot"));
}

// ---- Handles

TEST_F(SnapshotTest, InfoCounts) {
  const Snapshot snapshot = Take();
  SnapshotInfo info = Must(snapshot.Info());
  EXPECT_EQ(info.length, kBytes);
  EXPECT_EQ(info.unit, kPageBytes);
  EXPECT_EQ(info.pages_copied, 0u);
  EXPECT_EQ(info.views, 0u);
  for (size_t page = 0; page < 5; ++page) Write(region_.data() + page * kPageBytes, 2);
  const SnapshotView view = Must(snapshot.Map());
  info = Must(snapshot.Info());
  EXPECT_EQ(info.pages_copied, 5u);
  EXPECT_EQ(info.copied_bytes, 5 * kPageBytes);
  EXPECT_EQ(info.views, 1u);
}

TEST_F(SnapshotTest, HandlesOfNothing) {
  EXPECT_TRUE(Refused(Snapshot().Check(), EBADF, "Check"));
  EXPECT_TRUE(Refused(Snapshot().Info().status(), EBADF, "Info"));
  EXPECT_TRUE(Refused(Snapshot().Map().status(), EBADF, "Map"));
  EXPECT_TRUE(Refused(Snapshot().ExportTo(1), EBADF, "ExportTo"));
  EXPECT_TRUE(Refused(Snapshot::Duplicate(-1).status(), EBADF, "Duplicate"));
  const ScopedFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  const Snapshot file = Must(Snapshot::Duplicate(null.get()));
  EXPECT_TRUE(Refused(file.Check(), EBADF, "Check"));
  struct hostmm_snapshot_info raw = {};
  raw.size = 1;
  EXPECT_EQ(hostmm_snapshot_info(0, &raw), -1);
  EXPECT_EQ(errno, EINVAL);
}

TEST_F(SnapshotTest, AHandleOfAnotherKindOfSocket) {
  int pair[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
  const ScopedFd near(pair[0]);
  const ScopedFd far(pair[1]);
  const Snapshot snapshot = Must(Snapshot::Duplicate(near.get()));
  ViewOptions options;
  options.length = kPageBytes;
  EXPECT_TRUE(Refused(snapshot.Map(options).status(), EBADF, "Map"));
}

TEST_F(SnapshotTest, AnotherProcessMapsIt) {
  const Snapshot snapshot = Take();
  Write(region_.data(), 2);
  Child reader(Identity::kSame, [&](hostmm::test::Channel&) {
    const absl::StatusOr<SnapshotView> view = snapshot.Map();
    CHILD_CHECK(view.ok());
    CHILD_CHECK(Read(view->data()) == std::byte{1});
    CHILD_CHECK(Read(view->data() + kPageBytes) == std::byte{1});
    CHILD_CHECK(snapshot.Check().ok());
    return 0;
  });
  EXPECT_EQ(reader.Wait(), 0);
}

TEST_F(SnapshotTest, AForkedChildHasNoView) {
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  EXPECT_EQ(Read(view.data()), std::byte{1});
  EXPECT_EQ(madvise(view.data(), kPageBytes, MADV_DOFORK), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(ReadInChild(view.data()), kSegv);
  EXPECT_EQ(Read(view.data()), std::byte{1});
}

// ---- Writers of frozen memory

TEST_F(SnapshotTest, AForkedWriterIsSeen) {
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  EXPECT_EQ(Read(view.data() + kPageBytes), std::byte{1});
  Child writer(Identity::kSame, [&](hostmm::test::Channel&) {
    for (size_t at = 0; at < kBytes; at += kPageBytes) Write(region_.data() + at, 9);
    return 0;
  });
  EXPECT_EQ(writer.Wait(), 0);
  EXPECT_EQ(Read(region_.data() + kPageBytes), std::byte{9});
  for (size_t at = 0; at < kBytes / 2; at += kPageBytes) {
    ASSERT_EQ(Read(view.data() + at), std::byte{1}) << at;
  }
  EXPECT_TRUE(snapshot.Check().ok()) << snapshot.Check();
}

TEST_F(SnapshotTest, RemovingFrozenMemoryKeepsTheSnapshot) {
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  EXPECT_EQ(Read(view.data()), std::byte{1});  // shared
  ASSERT_TRUE(region_.Advise(0, 2 * kMiB, Advice::kRemove).ok());
  EXPECT_EQ(Read(region_.data()), std::byte{0});
  EXPECT_EQ(Read(view.data()), std::byte{1});
  EXPECT_EQ(Read(view.data() + kPageBytes), std::byte{1});
  EXPECT_TRUE(snapshot.Check().ok()) << snapshot.Check();
}

TEST_F(SnapshotTest, MovedFrozenMemoryIsStillSeen) {
  const Snapshot snapshot = Take();
  Write(region_.data() + kPageBytes, 2);          // mapped writable when it moves
  EXPECT_EQ(Read(region_.data()), std::byte{1});  // mapped write-protected
  void* place = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(place, MAP_FAILED);
  ASSERT_TRUE(region_.MoveTo(place).ok());
  Write(region_.data(), 3);
  Write(region_.data() + 2 * kPageBytes, 3);
  const SnapshotView view = Must(snapshot.Map());
  for (size_t page = 0; page < 3; ++page) {
    EXPECT_EQ(Read(view.data() + page * kPageBytes), std::byte{1}) << page;
  }
}

// ---- mremap, munmap and advice of views

TEST_F(SnapshotTest, ViewsDoNotMoveOrGrow) {
  const Snapshot snapshot = Take();
  ViewOptions half;
  half.length = kBytes / 2;
  SnapshotView view = Must(snapshot.Map(half));
  EXPECT_EQ(mremap(view.data(), kBytes / 2, kBytes, MREMAP_MAYMOVE), MAP_FAILED);
  EXPECT_EQ(errno, ENOMEM);
  void* place = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_EQ(mremap(view.data(), kBytes / 2, kBytes / 2, MREMAP_MAYMOVE | MREMAP_FIXED, place),
            MAP_FAILED);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(mremap(view.data(), kBytes / 2, kMiB, 0), view.data());
  EXPECT_EQ(Read(view.data() + kMiB - 1), std::byte{0});
  EXPECT_EQ(munmap(view.data(), kPageBytes), 0);
  EXPECT_EQ(Read(view.data() + kPageBytes), std::byte{1});
}

// ---- Lost

TEST_F(SnapshotTest, ClosingTheSessionLosesViews) {
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  EXPECT_EQ(Read(view.data()), std::byte{1});
  Child closer(Identity::kSame, [&](hostmm::test::Channel&) {
    const absl::StatusOr<SnapshotView> own = snapshot.Map();
    CHILD_CHECK(own.ok());
    CHILD_CHECK(Read(own->data()) == std::byte{1});
    CHILD_CHECK(session_.Close().ok());
    (void)Read(own->data());
    return 0;
  });
  EXPECT_EQ(closer.Wait(), kBus);
}

TEST(SnapshotLostTest, NobodyWritesFrozenMemoryUnseenWhenThePagerIsKilled) {
  HOSTMM_SKIP_IF(WhyNoUserfaultfd());
  TestPager pager;
  Options options;
  options.socket = pager.socket();
  absl::StatusOr<Session> session = Session::Open(options);
  ASSERT_TRUE(session.ok()) << session.status();
  absl::StatusOr<Region> region = session->CreateNamed("lost", kBytes, 0600);
  ASSERT_TRUE(region.ok()) << region.status();
  for (size_t at = 0; at < kBytes; at += kPageBytes) Write(region->data() + at, 1);
  absl::StatusOr<Snapshot> snapshot = region->Snapshot();
  ASSERT_TRUE(snapshot.ok()) << snapshot.status();
  // Reads one page after the other until it is SIGBUS; whatever it reads must be the snapshot.
  Child reader(Identity::kSame, [&](hostmm::test::Channel& channel) {
    const absl::StatusOr<SnapshotView> view = snapshot->Map();
    CHILD_CHECK(view.ok());
    CHILD_CHECK(channel.Signal());
    for (;;) {
      for (size_t at = 0; at < kBytes; at += kPageBytes) {
        if (Read(view->data() + at) != std::byte{1}) return 3;
      }
    }
  });
  ASSERT_TRUE(reader.channel().Await());
  std::thread writer([&] {
    for (int round = 2; round < 200; ++round) {
      for (size_t at = 0; at < kBytes; at += kPageBytes) Write(region->data() + at, round);
    }
  });
  pager.Kill();
  const Deadline soon(kViewsEnd);
  writer.join();
  EXPECT_FALSE(soon.expired()) << "writes have waited for views that had gone";
  EXPECT_EQ(reader.Wait(), kBus);
  EXPECT_EQ(Read(region->data()), std::byte{199});
  EXPECT_TRUE(Refused(snapshot->Check(), EIO, "Check"));
  EXPECT_TRUE(Refused(snapshot->ExportTo(2), ENOTCONN, "ExportTo"));
}

TEST_F(SnapshotTest, AWriterThatLeavesLosesTheSnapshot) {
  const Snapshot snapshot = Take();
  const SnapshotView view = Must(snapshot.Map());
  EXPECT_EQ(Read(view.data()), std::byte{1});
  Child leaver(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(session_.Close().ok());
    Write(region_.data(), 9);
    CHILD_CHECK(channel.Signal());
    return 0;
  });
  ASSERT_TRUE(leaver.channel().Await());
  EXPECT_EQ(leaver.Wait(), 0);
  EXPECT_TRUE(Refused(snapshot.Check(), EIO, "Check"));
  const std::byte* at = view.data();
  int pipe_ends[2];
  ASSERT_EQ(pipe2(pipe_ends, O_CLOEXEC), 0);
  const ScopedFd near(pipe_ends[0]);
  const ScopedFd far(pipe_ends[1]);
  // A system call says by EFAULT what user code says by SIGBUS.
  EXPECT_EQ(write(far.get(), at, 1), -1);
  EXPECT_EQ(errno, EFAULT);
  Write(region_.data(), 3);
  const Snapshot next = Take();
  EXPECT_EQ(Read(Must(next.Map()).data()), std::byte{3});
}

}  // namespace
}  // namespace hostmm::test
