// Private copy-on-write memory (ShareMode::kCow, MAP_PRIVATE_COW): it must be what private
// anonymous memory is, to the parent, to the child that is its snapshot, and to the child's child;
// with the pager, without it, and when it goes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <functional>
#include <string>
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
constexpr size_t kBytes = 16 * kMiB;
constexpr size_t kPageBytes = 4096;
constexpr int kSegv = 128 + SIGSEGV;
// Views of a dead pager end in microseconds; far below how long writers would wait for them.
constexpr std::chrono::milliseconds kViewsEnd(5000);

std::byte Read(const std::byte* at) { return *const_cast<const volatile std::byte*>(at); }
void Write(std::byte* at, int value) {
  *const_cast<volatile std::byte*>(at) = static_cast<std::byte>(value);
}

MapOptions Cow() {
  MapOptions options;
  options.share = ShareMode::kCow;
  return options;
}

// The permissions in /proc/self/maps of what is mapped at `at`.
std::string PermissionsAt(const std::byte* at) {
  std::ifstream maps("/proc/self/maps");
  const auto wanted = reinterpret_cast<uintptr_t>(at);
  for (std::string line; std::getline(maps, line);) {
    size_t dash = 0;
    const uintptr_t start = std::stoull(line, &dash, 16);
    const uintptr_t end = std::stoull(line.substr(dash + 1), nullptr, 16);
    if (wanted >= start && wanted < end) return line.substr(line.find(' ') + 1, 4);
  }
  return "none";
}

class CowTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    session_ = OpenSession();
    ASSERT_TRUE(session_.is_open());
    region_ = Map(kBytes);
    ASSERT_EQ(region_.size(), kBytes);
    // Else all of this would test the kernel.
    ASSERT_EQ(PermissionsAt(region_.data()), "rw-s");
    for (size_t at = 0; at < kBytes / 2; at += kPageBytes) Write(region_.data() + at, 1);
  }

  Region Map(size_t bytes) {
    absl::StatusOr<Region> region = session_.MapAnonymous(bytes, Cow());
    if (region.ok()) return *std::move(region);
    ADD_FAILURE() << region.status();
    return Region();
  }

  std::byte* At(size_t page) const { return region_.data() + page * kPageBytes; }

  Session session_;
  Region region_;
};

TEST_F(CowTest, NeitherSideSeesTheOther) {
  Child child(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(PermissionsAt(At(0)) == "rw-p");
    CHILD_CHECK(Read(At(1)) == std::byte{1});  // shared by now
    CHILD_CHECK(channel.Signal() && channel.Await());
    for (size_t page = 0; page < 3; ++page) CHILD_CHECK(Read(At(page)) == std::byte{1});
    CHILD_CHECK(Read(region_.data() + kBytes - 1) == std::byte{0});
    Write(At(1), 3);
    Write(At(4), 3);
    CHILD_CHECK(Read(At(1)) == std::byte{3} && Read(At(4)) == std::byte{3});
    CHILD_CHECK(channel.Signal() && channel.Await());
    CHILD_CHECK(Read(At(4)) == std::byte{3});
    return 0;
  });
  ASSERT_TRUE(child.channel().Await());
  for (size_t page = 0; page < 3; ++page) Write(At(page), 2);
  Write(region_.data() + kBytes - 1, 2);
  ASSERT_TRUE(child.channel().Signal() && child.channel().Await());
  EXPECT_EQ(Read(At(1)), std::byte{2});
  EXPECT_EQ(Read(At(4)), std::byte{1});
  Write(At(4), 5);
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(Read(At(4)), std::byte{5});
}

TEST_F(CowTest, ChildrenAreSnapshotsOfTheirMoments) {
  const auto sees = [&](int value) {
    return [this, value](hostmm::test::Channel& channel) {
      CHILD_CHECK(channel.Await());
      CHILD_CHECK(Read(At(0)) == static_cast<std::byte>(value));
      CHILD_CHECK(Read(At(1)) == std::byte{1});
      return 0;
    };
  };
  Child first(Identity::kSame, sees(1));
  Write(At(0), 2);
  Child second(Identity::kSame, sees(2));
  Write(At(0), 3);
  Child third(Identity::kSame, sees(3));
  Write(At(0), 4);
  Write(At(1), 4);
  ASSERT_TRUE(second.channel().Signal());
  EXPECT_EQ(second.Wait(), 0);
  ASSERT_TRUE(first.channel().Signal());
  EXPECT_EQ(first.Wait(), 0);
  ASSERT_TRUE(third.channel().Signal());
  EXPECT_EQ(third.Wait(), 0);
  EXPECT_EQ(Read(At(0)), std::byte{4});
}

TEST_F(CowTest, TheChildsChild) {
  Child child(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(Read(At(1)) == std::byte{1});  // mapped from the live file
    Write(At(2), 3);
    CHILD_CHECK(channel.Signal() && channel.Await());  // the parent writes to 1 .. 3
    Child grandchild(Identity::kSame, [&](hostmm::test::Channel& inner) {
      CHILD_CHECK(inner.Signal() && inner.Await());
      CHILD_CHECK(Read(At(1)) == std::byte{1});
      CHILD_CHECK(Read(At(2)) == std::byte{3});
      CHILD_CHECK(Read(At(3)) == std::byte{1});
      CHILD_CHECK(Read(At(4)) == std::byte{1});
      Write(At(5), 7);
      return 0;
    });
    CHILD_CHECK(grandchild.channel().Await());
    Write(At(2), 4);
    CHILD_CHECK(channel.Signal() && channel.Await());  // and to 4
    CHILD_CHECK(grandchild.channel().Signal());
    CHILD_CHECK(grandchild.Wait() == 0);
    CHILD_CHECK(Read(At(4)) == std::byte{1});
    CHILD_CHECK(Read(At(5)) == std::byte{1});
    return 0;
  });
  ASSERT_TRUE(child.channel().Await());
  for (size_t page = 1; page <= 3; ++page) Write(At(page), 2);
  ASSERT_TRUE(child.channel().Signal() && child.channel().Await());
  Write(At(4), 2);
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), 0);
}

TEST_F(CowTest, DontNeedGivesZerosOnEachSide) {
  ASSERT_EQ(madvise(At(0), kPageBytes, MADV_DONTNEED), 0);
  EXPECT_EQ(Read(At(0)), std::byte{0});
  EXPECT_EQ(Read(At(1)), std::byte{1});
  EXPECT_EQ(madvise(At(1), kPageBytes, MADV_REMOVE), -1);
  EXPECT_EQ(errno, EINVAL);
  Child child(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(channel.Signal() && channel.Await());
    CHILD_CHECK(Read(At(0)) == std::byte{0});
    CHILD_CHECK(Read(At(1)) == std::byte{1});
    CHILD_CHECK(madvise(At(2), kPageBytes, MADV_DONTNEED) == 0);
    CHILD_CHECK(Read(At(2)) == std::byte{0});
    CHILD_CHECK(Read(At(3)) == std::byte{1});
    Write(At(2), 6);
    CHILD_CHECK(Read(At(2)) == std::byte{6});
    return 0;
  });
  ASSERT_TRUE(child.channel().Await());
  // While the child has it as it was.
  ASSERT_EQ(madvise(At(1), kPageBytes, MADV_DONTNEED), 0);
  EXPECT_EQ(Read(At(1)), std::byte{0});
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(Read(At(2)), std::byte{1});
}

TEST_F(CowTest, ProtectionIsInherited) {
  ASSERT_EQ(mprotect(At(8), 4 * kPageBytes, PROT_READ), 0);
  Child child(Identity::kSame, [&](hostmm::test::Channel&) {
    CHILD_CHECK(Read(At(8)) == std::byte{1});
    Write(At(7), 2);
    Write(At(12), 2);
    CHILD_CHECK(mprotect(At(10), 2 * kPageBytes, PROT_READ | PROT_WRITE) == 0);
    Write(At(10), 2);
    Write(At(9), 2);  // the last thing that it does
    return 0;
  });
  EXPECT_EQ(child.Wait(), kSegv);
  EXPECT_EQ(Read(At(10)), std::byte{1});
}

TEST_F(CowTest, PartsAreUnmappedAndMoved) {
  ASSERT_EQ(munmap(At(16), 4 * kPageBytes), 0);
  void* place = mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(place, MAP_FAILED);
  ASSERT_EQ(mremap(At(20), 4 * kPageBytes, 4 * kPageBytes, MREMAP_MAYMOVE | MREMAP_FIXED, place),
            place);
  auto* moved = static_cast<std::byte*>(place);
  EXPECT_EQ(mremap(moved, 4 * kPageBytes, 8 * kPageBytes, MREMAP_MAYMOVE), MAP_FAILED);
  EXPECT_EQ(errno, ENOMEM);
  Child child(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(channel.Signal() && channel.Await());
    CHILD_CHECK(Read(At(15)) == std::byte{1});
    CHILD_CHECK(Read(At(24)) == std::byte{1});
    CHILD_CHECK(Read(moved) == std::byte{1});
    Write(moved + kPageBytes, 3);
    CHILD_CHECK(munmap(At(24), kPageBytes) == 0);
    (void)Read(At(17));
    return 0;
  });
  ASSERT_TRUE(child.channel().Await());
  Write(At(15), 2);
  Write(At(24), 2);
  Write(moved, 2);
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), kSegv);
  EXPECT_EQ(Read(moved + kPageBytes), std::byte{1});
}

TEST_F(CowTest, DontForkIsHonoured) {
  ASSERT_EQ(madvise(At(0), kBytes / 2, MADV_DONTFORK), 0);
  Child child(Identity::kSame, [&](hostmm::test::Channel&) {
    CHILD_CHECK(Read(region_.data() + kBytes / 2) == std::byte{0});
    (void)Read(At(0));
    return 0;
  });
  EXPECT_EQ(child.Wait(), kSegv);
  ASSERT_EQ(madvise(At(0), kBytes / 2, MADV_DOFORK), 0);
  Child other(Identity::kSame, [&](hostmm::test::Channel&) {
    CHILD_CHECK(Read(At(0)) == std::byte{1});
    return 0;
  });
  EXPECT_EQ(other.Wait(), 0);
}

TEST_F(CowTest, ShortAndManyAndClosedIsPlainPrivateMemory) {
  const Region short_one = Map(4 * kMiB);
  EXPECT_EQ(PermissionsAt(short_one.data()), "rw-p");
  std::vector<Region> many;
  for (int i = 0; i < 20; ++i) many.push_back(Map(8 * kMiB));
  EXPECT_EQ(PermissionsAt(many.front().data()), "rw-s");
  EXPECT_EQ(PermissionsAt(many.back().data()), "rw-p");
  Write(many.back().data(), 1);
  // What has gone makes room.
  many.front() = Region();
  EXPECT_EQ(PermissionsAt(Map(8 * kMiB).data()), "rw-s");
  const ScopedFd file(memfd_create("cpp_cow", MFD_CLOEXEC));
  EXPECT_TRUE(Refused(session_.MapFile(file.get(), 0, kBytes, Cow()).status(), EINVAL, "MapFile"));
}

// How private memory behaves over a fork, whoever serves it.
void ExpectPrivate(std::byte* at) {
  Write(at, 1);
  Write(at + kPageBytes, 1);
  Child child(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(channel.Signal() && channel.Await());
    CHILD_CHECK(Read(at) == std::byte{1});
    Write(at + kPageBytes, 3);
    CHILD_CHECK(madvise(at, kPageBytes, MADV_DONTNEED) == 0 && Read(at) == std::byte{0});
    return 0;
  });
  ASSERT_TRUE(child.channel().Await());
  Write(at, 2);
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(Read(at), std::byte{2});
  EXPECT_EQ(Read(at + kPageBytes), std::byte{1});
  // As ever: what is given back is zero, not what its file has.
  ASSERT_EQ(madvise(at, 2 * kPageBytes, MADV_DONTNEED), 0);
  EXPECT_EQ(Read(at), std::byte{0});
  EXPECT_EQ(Read(at + kPageBytes), std::byte{0});
}

TEST_F(CowTest, StaysPrivateWhenTheSessionIsClosed) {
  ExpectPrivate(region_.data());
  Write(At(8), 8);
  ASSERT_TRUE(session_.Close().ok());
  EXPECT_EQ(PermissionsAt(region_.data()), "rw-p");
  EXPECT_EQ(Read(At(8)), std::byte{8});
  ExpectPrivate(region_.data());
  EXPECT_EQ(Read(At(8)), std::byte{8});
}

TEST(CowLostTest, StaysPrivateWhenThePagerIsKilled) {
  HOSTMM_SKIP_IF(WhyNoUserfaultfd());
  TestPager pager;
  Options options;
  options.socket = pager.socket();
  absl::StatusOr<Session> session = Session::Open(options);
  ASSERT_TRUE(session.ok()) << session.status();
  absl::StatusOr<Region> region = session->MapAnonymous(kBytes, Cow());
  ASSERT_TRUE(region.ok()) << region.status();
  ASSERT_EQ(PermissionsAt(region->data()), "rw-s");
  Write(region->data() + 8 * kPageBytes, 8);
  pager.Kill();
  // The fork is the first that hears of it.
  ExpectPrivate(region->data());
  EXPECT_EQ(Read(region->data() + 8 * kPageBytes), std::byte{8});
}

TEST(CowLostTest, AChildWhosePagerIsKilledReadsNothingWrong) {
  HOSTMM_SKIP_IF(WhyNoUserfaultfd());
  TestPager pager;
  Options options;
  options.socket = pager.socket();
  absl::StatusOr<Session> session = Session::Open(options);
  ASSERT_TRUE(session.ok()) << session.status();
  absl::StatusOr<Region> region = session->MapAnonymous(kBytes, Cow());
  ASSERT_TRUE(region.ok()) << region.status();
  for (size_t at = 0; at < kBytes; at += kPageBytes) Write(region->data() + at, 1);
  Child reader(Identity::kSame, [&](hostmm::test::Channel& channel) {
    CHILD_CHECK(channel.Signal());
    for (;;) {
      for (size_t at = 0; at < kBytes; at += kPageBytes) {
        if (Read(region->data() + at) != std::byte{1}) return 3;
      }
    }
  });
  ASSERT_TRUE(reader.channel().Await());
  pager.Kill();
  const Deadline soon(kViewsEnd);
  for (size_t at = 0; at < kBytes; at += kPageBytes) Write(region->data() + at, 2);
  EXPECT_FALSE(soon.expired()) << "writes have waited for views that had gone";
  EXPECT_EQ(reader.Wait(), 128 + SIGBUS);
  EXPECT_EQ(Read(region->data()), std::byte{2});
}

// The program closes what it does not know.
TEST_F(CowTest, ClosedDescriptorsAreNeverAParentsMemory) {
  Child program(Identity::kSame, [&](hostmm::test::Channel&) {
    // Memory of this process, of which a view would not do.
    absl::StatusOr<Region> own = session_.MapAnonymous(kBytes, Cow());
    CHILD_CHECK(own.ok());
    CHILD_CHECK(PermissionsAt(own->data()) == "rw-s");
    Write(own->data(), 1);
    CHILD_CHECK(close_range(3, ~0U, 0) == 0);
    const pid_t child = fork();
    if (child == 0) {
      (void)Read(own->data());
      _exit(3);
    }
    Write(own->data(), 2);
    int status = 0;
    CHILD_CHECK(waitpid(child, &status, 0) == child);
    CHILD_CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    CHILD_CHECK(Read(own->data()) == std::byte{2});
    return 0;
  });
  EXPECT_EQ(program.Wait(), 0);
}

}  // namespace
}  // namespace hostmm::test
