// Regions of the C++ API, function by function: what it does, each way in which it refuses, and
// that a refusal has changed nothing. What a shared mprotect does to many is tested elsewhere.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "runtime/hostmm.h"
#include "tests/api/cpp_session.h"
#include "tests/testing/child.h"
#include "tests/testing/scoped_fd.h"

namespace hostmm::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kGranuleBytes = 2 * kMiB;
constexpr size_t kPageBytes = 4096;

// What a child that was ended by this signal leaves (Child::Wait).
constexpr int kSegv = 128 + SIGSEGV;

MapOptions With(ShareMode share, Protection protection = Protection::kReadWrite) {
  MapOptions options;
  options.share = share;
  options.protection = protection;
  return options;
}

MapOptions At(void* address, Placement placement = Placement::kExactly) {
  MapOptions options;
  options.address = address;
  options.placement = placement;
  return options;
}

// A tmpfs file of `bytes`.
ScopedFd MakeMemfd(size_t bytes) {
  ScopedFd file(memfd_create("cpp_api", MFD_CLOEXEC));
  EXPECT_EQ(ftruncate(file.get(), static_cast<off_t>(bytes)), 0);
  return file;
}

ScopedFd ReopenReadOnly(const ScopedFd& file) {
  const std::string path = "/proc/self/fd/" + std::to_string(file.get());
  return ScopedFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
}

// How a child ends that writes (reads) one byte there.
int WriteInChild(const Region& region, size_t offset) {
  return Child(Identity::kSame,
               [&](Channel&) {
                 const_cast<volatile std::byte*>(region.data())[offset] = std::byte{1};
                 return 0;
               })
      .Wait();
}
int ReadInChild(const Region& region, size_t offset) {
  return Child(Identity::kSame,
               [&](Channel&) {
                 (void)const_cast<volatile std::byte*>(region.data())[offset];
                 return 0;
               })
      .Wait();
}

class ApiTest : public testing::Test {
 protected:
  void SetUp() override {
    session_ = OpenSession();
    ASSERT_TRUE(session_.is_open());
  }

  // Empty, with a failure, if it cannot be had.
  Region Map(size_t bytes, const MapOptions& options = {}) {
    return Must(session_.MapAnonymous(bytes, options));
  }
  static Region Must(absl::StatusOr<Region> region) {
    if (region.ok()) return *std::move(region);
    ADD_FAILURE() << region.status();
    return Region();
  }

  // Wants `make` to refuse with `error`, and to leave the shared mappings of the process as they
  // are.
  template <class Make>
  void ExpectRefused(int error, const std::string& name, Make make) {
    const std::string before = SharedMappings();
    EXPECT_TRUE(Refused(make().status(), error, name));
    EXPECT_EQ(SharedMappings(), before);
  }

  Session session_;
};

// ---- MapAnonymous

TEST_F(ApiTest, AnonymousIsZeroedSharedAndAligned) {
  Region region = Map(3 * kGranuleBytes);
  ASSERT_EQ(region.size(), 3 * kGranuleBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(region.data()) % kGranuleBytes, 0u);
  EXPECT_EQ(region.share_mode(), ShareMode::kSharedPt);
  EXPECT_TRUE(std::all_of(region.bytes().begin(), region.bytes().end(),
                          [](std::byte byte) { return byte == std::byte{0}; }));
  EXPECT_EQ(WriteInChild(region, 2 * kGranuleBytes), 0);
  EXPECT_EQ(region.bytes()[2 * kGranuleBytes], std::byte{1});
}

TEST_F(ApiTest, AnonymousRefusals) {
  const auto anonymous = [&](size_t length, const MapOptions& options) {
    return [=, this] { return session_.MapAnonymous(length, options); };
  };
  const std::string name = "Session::MapAnonymous";
  ExpectRefused(EINVAL, name, anonymous(0, {}));
  ExpectRefused(EINVAL, name, anonymous(kGranuleBytes + kPageBytes, {}));
  ExpectRefused(EINVAL, name, anonymous(kPageBytes, {}));
  ExpectRefused(EINVAL, name, anonymous(1, With(ShareMode::kDedicated)));
  ExpectRefused(ENOMEM, name, anonymous(size_t{1} << 62, {}));
  // The largest multiple of the granule: mmap would round it to 0.
  ExpectRefused(ENOMEM, name, anonymous(~size_t{0} - kGranuleBytes + 1, {}));
  ExpectRefused(
      EINVAL, name,
      anonymous(kGranuleBytes, At(reinterpret_cast<void*>(kPageBytes * 3), Placement::kHint)));
  ExpectRefused(EINVAL, name,
                anonymous(kGranuleBytes, At(reinterpret_cast<void*>(kGranuleBytes + 1))));
  MapOptions copy;
  copy.visibility = Visibility::kPrivate;
  ExpectRefused(EINVAL, name, anonymous(kGranuleBytes, copy));
  // The arguments are in the message.
  const absl::Status status = session_.MapAnonymous(12345).status();
  EXPECT_NE(status.message().find("12345"), absl::string_view::npos) << status;
}

TEST_F(ApiTest, ExactPlaceIsTakenOnlyIfFree) {
  Region first = Map(2 * kGranuleBytes);
  ASSERT_FALSE(first.empty());
  first.bytes()[kGranuleBytes] = std::byte{5};
  std::byte* second_half = first.data() + kGranuleBytes;
  ExpectRefused(EEXIST, "Session::MapAnonymous",
                [&] { return session_.MapAnonymous(kGranuleBytes, At(second_half)); });
  EXPECT_EQ(first.bytes()[kGranuleBytes], std::byte{5});
  ASSERT_TRUE(first.Unmap().ok());
  Region again = Map(kGranuleBytes, At(second_half));
  EXPECT_EQ(again.data(), second_half);
  EXPECT_EQ(again.bytes()[0], std::byte{0});
  // A hint over something goes elsewhere.
  Region hinted = Map(kGranuleBytes, At(second_half, Placement::kHint));
  EXPECT_NE(hinted.data(), again.data());
}

TEST_F(ApiTest, UnshareTakesAnyLength) {
  Region small = Map(3 * kPageBytes + 1, With(ShareMode::kUnshare));
  ASSERT_FALSE(small.empty());
  small.bytes()[3 * kPageBytes] = std::byte{1};
  EXPECT_EQ(WriteInChild(small, 0), 0);
  EXPECT_EQ(small.bytes()[0], std::byte{1});
}

TEST_F(ApiTest, PopulateFillsIt) {
  MapOptions options;
  options.populate = Populate::kYes;
  Region region = Map(kGranuleBytes, options);
  ASSERT_FALSE(region.empty());
  unsigned char resident[kGranuleBytes / kPageBytes] = {};
  ASSERT_EQ(mincore(region.data(), region.size(), resident), 0);
  EXPECT_TRUE(std::all_of(std::begin(resident), std::end(resident), [](int r) { return r & 1; }));
}

// ---- MapFile

TEST_F(ApiTest, FileWindowsShowTheFile) {
  const ScopedFd file = MakeMemfd(4 * kGranuleBytes);
  ASSERT_EQ(pwrite(file.get(), "x", 1, 3 * kGranuleBytes), 1);
  Region all = Must(session_.MapFile(file.get(), 0, 4 * kGranuleBytes));
  Region last = Must(session_.MapFile(file.get(), 3 * kGranuleBytes, kGranuleBytes));
  ASSERT_TRUE(!all.empty() && !last.empty());
  EXPECT_EQ(last.As<char>()[0], 'x');
  all.As<char>()[3 * kGranuleBytes + 1] = 'y';
  EXPECT_EQ(last.As<char>()[1], 'y');
}

TEST_F(ApiTest, FileOutlivesItsDescriptor) {
  ScopedFd file = MakeMemfd(kGranuleBytes);
  Region region = Must(session_.MapFile(file.get(), 0, kGranuleBytes));
  file.Close();
  region.bytes()[0] = std::byte{1};
  EXPECT_TRUE(region.Protect(Protection::kRead).ok());
}

TEST_F(ApiTest, FileRefusals) {
  const ScopedFd file = MakeMemfd(2 * kGranuleBytes);
  const auto map = [&](int fd, off_t offset, size_t length, const MapOptions& options = {}) {
    return [=, this] { return session_.MapFile(fd, offset, length, options); };
  };
  const std::string name = "Session::MapFile";
  ExpectRefused(EINVAL, name, map(file.get(), kPageBytes, kGranuleBytes));
  ExpectRefused(EINVAL, name, map(file.get(), 0, kGranuleBytes - kPageBytes));
  ExpectRefused(EINVAL, name, map(file.get(), 0, 0));
  ExpectRefused(EOVERFLOW, name,
                map(file.get(), INT64_MAX / kGranuleBytes * kGranuleBytes, 2 * kGranuleBytes));
  ExpectRefused(EBADF, name, map(-1, 0, kGranuleBytes));
  ExpectRefused(EBADF, name, map(1 << 20, 0, kGranuleBytes));
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const ScopedFd reader(ends[0]);
  const ScopedFd writer(ends[1]);
  const MapOptions read = With(ShareMode::kSharedPt, Protection::kRead);
  ExpectRefused(ENODEV, name, map(reader.get(), 0, kGranuleBytes, read));
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const ScopedFd one(ends[0]);
  const ScopedFd other(ends[1]);
  ExpectRefused(ENODEV, name, map(one.get(), 0, kGranuleBytes));
  const ScopedFd folder(open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  ExpectRefused(ENODEV, name, map(folder.get(), 0, kGranuleBytes, read));
  MapOptions copy;
  copy.visibility = Visibility::kPrivate;
  ExpectRefused(EINVAL, name, map(file.get(), 0, kGranuleBytes, copy));
}

TEST_F(ApiTest, ReadOnlyDescriptorNeverWrites) {
  const ScopedFd file = MakeMemfd(kGranuleBytes);
  const ScopedFd read_only = ReopenReadOnly(file);
  ASSERT_GE(read_only.get(), 0);
  ExpectRefused(EACCES, "Session::MapFile",
                [&] { return session_.MapFile(read_only.get(), 0, kGranuleBytes); });
  Region reads = Must(session_.MapFile(read_only.get(), 0, kGranuleBytes,
                                       With(ShareMode::kSharedPt, Protection::kRead)));
  ASSERT_FALSE(reads.empty());
  EXPECT_TRUE(Refused(reads.Protect(Protection::kReadWrite), EACCES, "Region::Protect"));
  EXPECT_EQ(ReadInChild(reads, 0), 0);
  EXPECT_EQ(WriteInChild(reads, 0), kSegv);
  // A writer beside it does not make it writable.
  Region writes = Must(session_.MapFile(file.get(), 0, kGranuleBytes));
  ASSERT_TRUE(writes.Protect(Protection::kReadWrite).ok());
  EXPECT_EQ(WriteInChild(writes, 0), 0);
  EXPECT_EQ(WriteInChild(reads, 0), kSegv);
}

TEST_F(ApiTest, FileOfADiskSharesItsProtection) {
  char path[] = "/var/tmp/hostmm-api.XXXXXX";
  const ScopedFd file(mkstemp(path));
  ASSERT_GE(file.get(), 0);
  unlink(path);
  ASSERT_EQ(ftruncate(file.get(), kGranuleBytes), 0);
  Region first = Must(session_.MapFile(file.get(), 0, kGranuleBytes));
  Region second = Must(session_.MapFile(file.get(), 0, kGranuleBytes));
  ASSERT_TRUE(!first.empty() && !second.empty());
  first.bytes()[0] = std::byte{3};
  EXPECT_EQ(second.bytes()[0], std::byte{3});
  ASSERT_TRUE(first.Protect(Protection::kRead).ok());
  EXPECT_EQ(WriteInChild(second, 0), kSegv);
  ASSERT_TRUE(second.Protect(Protection::kReadWrite).ok());
  EXPECT_EQ(WriteInChild(first, 0), 0);
}

TEST_F(ApiTest, PrivateReadOnlyMayShare) {
  const ScopedFd file = MakeMemfd(kGranuleBytes);
  ASSERT_EQ(pwrite(file.get(), "x", 1, 0), 1);
  MapOptions copy = With(ShareMode::kSharedPt, Protection::kRead);
  copy.visibility = Visibility::kPrivate;
  Region region = Must(session_.MapFile(file.get(), 0, kGranuleBytes, copy));
  ASSERT_FALSE(region.empty());
  EXPECT_EQ(region.As<char>()[0], 'x');
}

// ---- Protect

TEST_F(ApiTest, ProtectReachesAllWhoOptedInAndNobodyElse) {
  const ScopedFd file = MakeMemfd(2 * kGranuleBytes);
  Region first = Must(session_.MapFile(file.get(), 0, 2 * kGranuleBytes));
  Region second = Must(session_.MapFile(file.get(), 0, 2 * kGranuleBytes));
  Region plain =
      Must(session_.MapFile(file.get(), 0, 2 * kGranuleBytes, With(ShareMode::kUnshare)));
  ASSERT_TRUE(!first.empty() && !second.empty() && !plain.empty());
  Child child(Identity::kSame, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    second.bytes()[0] = std::byte{1};
    return 0;
  });
  ASSERT_TRUE(first.Protect(Protection::kRead).ok());
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), kSegv);
  EXPECT_EQ(WriteInChild(second, kGranuleBytes), kSegv);
  EXPECT_EQ(WriteInChild(plain, 0), 0);
  // Who comes later has it too; the plain one's own change is its own.
  Region later = Must(session_.MapFile(file.get(), 0, 2 * kGranuleBytes));
  EXPECT_EQ(WriteInChild(later, 0), kSegv);
  ASSERT_TRUE(plain.Protect(Protection::kNone).ok());
  EXPECT_EQ(ReadInChild(first, 0), 0);
  EXPECT_EQ(ReadInChild(plain, 0), kSegv);
  ASSERT_TRUE(later.Protect(Protection::kReadWrite).ok());
  EXPECT_EQ(WriteInChild(first, 0), 0);
}

TEST_F(ApiTest, ProtectOfOnePage) {
  Region region = Map(kGranuleBytes);
  ASSERT_FALSE(region.empty());
  ASSERT_TRUE(region.Protect(5 * kPageBytes, kPageBytes, Protection::kNone).ok());
  EXPECT_EQ(WriteInChild(region, 5 * kPageBytes - 1), 0);
  EXPECT_EQ(ReadInChild(region, 5 * kPageBytes), kSegv);
  EXPECT_EQ(ReadInChild(region, 6 * kPageBytes - 1), kSegv);
  EXPECT_EQ(WriteInChild(region, 6 * kPageBytes), 0);
}

TEST_F(ApiTest, ProtectRefusals) {
  Region region = Map(2 * kGranuleBytes);
  ASSERT_FALSE(region.empty());
  const std::string name = "Region::Protect";
  const Protection none = Protection::kNone;
  EXPECT_TRUE(Refused(region.Protect(1, kPageBytes, none), EINVAL, name));
  EXPECT_TRUE(Refused(region.Protect(2 * kGranuleBytes + kPageBytes, 0, none), ERANGE, name));
  EXPECT_TRUE(Refused(region.Protect(kPageBytes, 2 * kGranuleBytes, none), ERANGE, name));
  EXPECT_TRUE(Refused(region.Protect(kPageBytes, ~size_t{0}, none), ERANGE, name));
  EXPECT_TRUE(Refused(region.Protect(static_cast<Protection>(0x100)), EINVAL, name));
  EXPECT_TRUE(Refused(Region().Protect(none), ERANGE, name));
  EXPECT_EQ(Region().Protect(none).code(), absl::StatusCode::kOutOfRange);
  for (size_t at = 0; at < region.size(); at += kPageBytes) region.bytes()[at] = std::byte{1};
}

TEST_F(ApiTest, DedicatedRefusesPlainMprotect) {
  Region region = Map(kGranuleBytes, With(ShareMode::kDedicated));
  ASSERT_FALSE(region.empty());
  EXPECT_EQ(region.share_mode(), ShareMode::kDedicated);
  EXPECT_EQ(mprotect(region.data(), kPageBytes, PROT_NONE), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(WriteInChild(region, 0), 0);
  ASSERT_TRUE(region.Protect(Protection::kRead).ok());
  EXPECT_EQ(WriteInChild(region, 0), kSegv);
}

// ---- Advise, IsShared

TEST_F(ApiTest, AdviceKeepsOrDropsData) {
  Region region = Map(2 * kGranuleBytes);
  ASSERT_FALSE(region.empty());
  std::memset(region.data(), 6, region.size());
  for (Advice keeping :
       {Advice::kDontNeed, Advice::kWillNeed, Advice::kPopulateRead, Advice::kPopulateWrite,
        Advice::kPageOut, Advice::kCold, Advice::kNoHugePage, Advice::kHugePage}) {
    const absl::Status status = region.Advise(keeping);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(std::count(region.bytes().begin(), region.bytes().end(), std::byte{6}),
              static_cast<ptrdiff_t>(region.size()))
        << "after " << static_cast<int>(keeping);
  }
  ASSERT_TRUE(region.Advise(0, kGranuleBytes, Advice::kRemove).ok());
  EXPECT_EQ(region.bytes()[kGranuleBytes - 1], std::byte{0});
  EXPECT_EQ(region.bytes()[kGranuleBytes], std::byte{6});
}

TEST_F(ApiTest, DontForkKeepsItFromChildren) {
  Region region = Map(kGranuleBytes);
  ASSERT_FALSE(region.empty());
  ASSERT_TRUE(region.Advise(Advice::kDontFork).ok());
  EXPECT_EQ(ReadInChild(region, 0), kSegv);
  ASSERT_TRUE(region.Advise(Advice::kDoFork).ok());
  EXPECT_EQ(ReadInChild(region, 0), 0);
}

TEST_F(ApiTest, AdviseRefusals) {
  Region region = Map(kGranuleBytes);
  ASSERT_FALSE(region.empty());
  region.bytes()[0] = std::byte{4};
  const std::string name = "Region::Advise";
  constexpr auto kGuardInstall = static_cast<Advice>(102);  // MADV_GUARD_INSTALL, Linux 6.13
  constexpr auto kGuardRemove = static_cast<Advice>(103);
  EXPECT_TRUE(Refused(region.Advise(kGuardInstall), EINVAL, name));
  EXPECT_TRUE(Refused(region.Advise(kGuardRemove), EINVAL, name));
  EXPECT_TRUE(Refused(region.Advise(static_cast<Advice>(9999)), EINVAL, name));
  EXPECT_TRUE(Refused(region.Advise(1, kPageBytes, Advice::kRemove), EINVAL, name));
  EXPECT_TRUE(Refused(region.Advise(0, kGranuleBytes + 1, Advice::kRemove), ERANGE, name));
  EXPECT_EQ(region.bytes()[0], std::byte{4});
}

TEST_F(ApiTest, IsSharedTellsOptInFromPlain) {
  Region region = Map(kGranuleBytes);
  Region plain = Map(kGranuleBytes, With(ShareMode::kUnshare));
  ASSERT_TRUE(!region.empty() && !plain.empty());
  absl::StatusOr<bool> shared = region.IsShared(kGranuleBytes - 1);
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_TRUE(*shared);
  EXPECT_TRUE(Refused(plain.IsShared(0).status(), ENOMEM, "Region::IsShared"));
  EXPECT_TRUE(Refused(region.IsShared(kGranuleBytes).status(), ERANGE, "Region::IsShared"));
  EXPECT_EQ(Granule(), kGranuleBytes);
}

// ---- Resize, MoveTo, SplitAt, Unmap

TEST_F(ApiTest, ResizeKeepsDataAndProtection) {
  const ScopedFd file = MakeMemfd(4 * kGranuleBytes);
  Region region = Must(session_.MapFile(file.get(), 0, 2 * kGranuleBytes));
  Region other = Must(session_.MapFile(file.get(), 0, 4 * kGranuleBytes));
  ASSERT_TRUE(!region.empty() && !other.empty());
  region.bytes()[0] = std::byte{1};
  other.bytes()[3 * kGranuleBytes] = std::byte{2};
  ASSERT_TRUE(other.Protect(3 * kGranuleBytes, kGranuleBytes, Protection::kRead).ok());
  const absl::Status grown = region.Resize(4 * kGranuleBytes);
  ASSERT_TRUE(grown.ok()) << grown;
  EXPECT_EQ(region.size(), 4 * kGranuleBytes);
  EXPECT_EQ(region.bytes()[0], std::byte{1});
  EXPECT_EQ(region.bytes()[3 * kGranuleBytes], std::byte{2});
  EXPECT_EQ(WriteInChild(region, 3 * kGranuleBytes), kSegv);
  EXPECT_EQ(WriteInChild(region, 2 * kGranuleBytes), 0);
  std::byte* tail = region.data() + kGranuleBytes;
  ASSERT_TRUE(region.Resize(kGranuleBytes, Move::kMayNot).ok());
  EXPECT_EQ(region.size(), kGranuleBytes);
  unsigned char resident = 0;
  EXPECT_EQ(mincore(tail, kPageBytes, &resident), -1);
  EXPECT_EQ(errno, ENOMEM);
}

TEST_F(ApiTest, ResizeRefusals) {
  Region place = Map(3 * kGranuleBytes);
  ASSERT_FALSE(place.empty());
  absl::StatusOr<Region> rest = place.SplitAt(2 * kGranuleBytes);
  ASSERT_TRUE(rest.ok());
  place.bytes()[0] = std::byte{1};
  rest->bytes()[0] = std::byte{2};
  const std::string name = "Region::Resize";
  const std::string before = SharedMappings();
  EXPECT_TRUE(Refused(place.Resize(0), EINVAL, name));
  EXPECT_TRUE(Refused(place.Resize(3 * kGranuleBytes, Move::kMayNot), ENOMEM, name));
  EXPECT_TRUE(Refused(place.Resize(size_t{1} << 62), EINVAL, name));
  EXPECT_TRUE(Refused(place.Resize((size_t{1} << 47) - kGranuleBytes), ENOMEM, name));
  EXPECT_TRUE(Refused(Region().Resize(kGranuleBytes), ERANGE, name));
  EXPECT_EQ(place.size(), 2 * kGranuleBytes);
  EXPECT_EQ(SharedMappings(), before);
  EXPECT_EQ(place.bytes()[0], std::byte{1});
  EXPECT_EQ(rest->bytes()[0], std::byte{2});
}

TEST_F(ApiTest, MoveToTakesDataAndSharingAlong) {
  Region region = Map(kGranuleBytes);
  Region target = Map(2 * kGranuleBytes);
  ASSERT_TRUE(!region.empty() && !target.empty());
  region.bytes()[9] = std::byte{9};
  ASSERT_TRUE(region.Protect(Protection::kRead).ok());
  const std::string name = "Region::MoveTo";
  EXPECT_TRUE(Refused(region.MoveTo(target.data() + 1), EINVAL, name));
  EXPECT_TRUE(Refused(region.MoveTo(region.data()), EINVAL, name));
  EXPECT_TRUE(Refused(Region().MoveTo(target.data()), ERANGE, name));
  std::byte* place = target.release().data();
  // Where a page table would not fit, then where it does.
  absl::Status moved = region.MoveTo(place + kPageBytes);
  ASSERT_TRUE(moved.ok()) << moved;
  EXPECT_EQ(region.bytes()[9], std::byte{9});
  absl::StatusOr<bool> shared = region.IsShared(0);
  EXPECT_TRUE(shared.ok() && !*shared) << shared.status();
  std::byte* const free_place = place + 4 * kGranuleBytes;
  Region hole = Map(kGranuleBytes, At(free_place, Placement::kHint));
  ASSERT_FALSE(hole.empty());
  place = hole.release().data();
  moved = region.MoveTo(place);
  ASSERT_TRUE(moved.ok()) << moved;
  EXPECT_EQ(region.data(), place);
  EXPECT_EQ(region.bytes()[9], std::byte{9});
  EXPECT_EQ(WriteInChild(region, 9), kSegv);
  shared = region.IsShared(0);
  EXPECT_TRUE(shared.ok() && *shared) << shared.status();
  // It is still one of those whom a shared mprotect reaches.
  ASSERT_TRUE(region.Protect(Protection::kReadWrite).ok());
  EXPECT_EQ(WriteInChild(region, 9), 0);
}

TEST_F(ApiTest, PartsAreUnmappedByDroppingThem) {
  Region region = Map(2 * kGranuleBytes);
  ASSERT_FALSE(region.empty());
  std::byte* base = region.data();
  EXPECT_TRUE(Refused(region.SplitAt(0).status(), ERANGE, "Region::SplitAt"));
  EXPECT_TRUE(Refused(region.SplitAt(region.size()).status(), ERANGE, "Region::SplitAt"));
  EXPECT_TRUE(Refused(region.SplitAt(7).status(), EINVAL, "Region::SplitAt"));
  absl::StatusOr<Region> middle = region.SplitAt(kPageBytes);
  ASSERT_TRUE(middle.ok());
  absl::StatusOr<Region> rest = middle->SplitAt(kPageBytes);
  ASSERT_TRUE(rest.ok());
  EXPECT_EQ(rest->data(), base + 2 * kPageBytes);
  EXPECT_EQ(rest->size(), 2 * kGranuleBytes - 2 * kPageBytes);
  ASSERT_TRUE(middle->Unmap().ok());
  unsigned char resident = 0;
  EXPECT_EQ(mincore(base + kPageBytes, kPageBytes, &resident), -1);
  region.bytes()[kPageBytes - 1] = std::byte{1};
  rest->bytes()[0] = std::byte{1};
  // What is left is still opt-in.
  ASSERT_TRUE(rest->Protect(0, kPageBytes, Protection::kRead).ok());
  EXPECT_EQ(WriteInChild(*rest, 0), kSegv);
  EXPECT_EQ(WriteInChild(*rest, kPageBytes), 0);
}

TEST_F(ApiTest, DestructorUnmapsAndReleaseDoesNot) {
  Region kept = Map(kGranuleBytes);
  std::byte* place = nullptr;
  unsigned char resident = 0;
  {
    Region region = Map(kGranuleBytes);
    place = region.data();
    ASSERT_EQ(mincore(place, kPageBytes, &resident), 0);
  }
  EXPECT_EQ(mincore(place, kPageBytes, &resident), -1);
  const std::span<std::byte> bytes = kept.release();
  EXPECT_TRUE(kept.empty());
  EXPECT_EQ(kept.address(), nullptr);
  EXPECT_TRUE(kept.Unmap().ok());
  bytes[0] = std::byte{1};
  EXPECT_EQ(hostmm_munmap(bytes.data(), bytes.size()), 0);
}

TEST_F(ApiTest, MoveOfARegionMovesTheMapping) {
  Region first = Map(kGranuleBytes);
  Region second = Map(kGranuleBytes);
  std::byte* first_place = first.data();
  std::byte* second_place = second.data();
  first = std::move(second);
  EXPECT_EQ(first.data(), second_place);
  EXPECT_TRUE(second.empty());  // NOLINT(bugprone-use-after-move): what is tested
  unsigned char resident = 0;
  EXPECT_EQ(mincore(first_place, kPageBytes, &resident), -1);
  first.bytes()[0] = std::byte{1};
}

TEST_F(ApiTest, TypedSpans) {
  Region region = Map(kGranuleBytes);
  ASSERT_FALSE(region.empty());
  EXPECT_EQ(region.As<uint64_t>().size(), kGranuleBytes / 8);
  absl::StatusOr<std::span<uint32_t>> words = region.At<uint32_t>(16, 4);
  ASSERT_TRUE(words.ok()) << words.status();
  (*words)[3] = 7;
  EXPECT_EQ(region.As<uint32_t>()[7], 7u);
  EXPECT_TRUE(Refused(region.At<uint32_t>(2, 1).status(), EINVAL, "Region::At"));
  EXPECT_TRUE(Refused(region.At<uint32_t>(kGranuleBytes - 4, 2).status(), ERANGE, "Region::At"));
  EXPECT_TRUE(Refused(region.At<uint64_t>(0, ~size_t{0} / 4).status(), ERANGE, "Region::At"));
  EXPECT_TRUE(region.At<uint64_t>(kGranuleBytes, 0).ok());
}

}  // namespace
}  // namespace hostmm::test
