// Named regions through the C++ API: between unrelated processes, with permissions, and every way
// in which they refuse.
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "runtime/hostmm.h"
#include "tests/api/cpp_session.h"
#include "tests/testing/child.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kGranuleBytes = 2 * kMiB;
constexpr mode_t kOwnerOnly = S_IRUSR | S_IWUSR;
constexpr mode_t kAllRead = kOwnerOnly | S_IRGRP | S_IROTH;

MapOptions ReadOnly() {
  MapOptions options;
  options.protection = Protection::kRead;
  return options;
}

absl::StatusOr<Session> OpenAt(const TestPager& pager) {
  Options options;
  options.socket = pager.socket();
  return Session::Open(options);
}

class NamedTest : public testing::Test {
 protected:
  // After the children of the test, which are unrelated: they attach for themselves.
  void Attach() {
    absl::StatusOr<Session> session = OpenAt(pager_);
    ASSERT_TRUE(session.ok()) << session.status();
    session_ = *std::move(session);
  }
  Region Create(const std::string& name, size_t length, mode_t mode) {
    absl::StatusOr<Region> region = session_.CreateNamed(name, length, mode);
    if (region.ok()) return *std::move(region);
    ADD_FAILURE() << region.status();
    return Region();
  }

  TestPager pager_;
  Session session_;
};

TEST_F(NamedTest, UnrelatedProcessesShareDataAndProtection) {
  Child other(Identity::kSame, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    absl::StatusOr<Session> session = OpenAt(pager_);
    if (!session.ok()) return 2;
    absl::StatusOr<Region> region = session->OpenNamed("pool");
    if (!region.ok() || region->size() != 2 * kGranuleBytes) return 3;
    if (region->bytes()[5] != std::byte{5}) return 4;
    region->bytes()[6] = std::byte{6};
    if (!channel.Signal() || !channel.Await()) return 5;
    region->bytes()[7] = std::byte{7};
    return 0;
  });
  Attach();
  // A length that is no multiple of the granule is rounded up.
  Region region = Create("pool", kGranuleBytes + 1, kOwnerOnly);
  ASSERT_EQ(region.size(), 2 * kGranuleBytes);
  region.bytes()[5] = std::byte{5};
  ASSERT_TRUE(other.channel().Signal() && other.channel().Await());
  EXPECT_EQ(region.bytes()[6], std::byte{6});
  ASSERT_TRUE(region.Protect(Protection::kRead).ok());
  ASSERT_TRUE(other.channel().Signal());
  EXPECT_EQ(other.Wait(), 128 + SIGSEGV);
  EXPECT_EQ(region.bytes()[7], std::byte{0});
}

TEST_F(NamedTest, NameIsTakenUntilItIsUnlinked) {
  Attach();
  Region region = Create("name", kGranuleBytes, kOwnerOnly);
  region.bytes()[0] = std::byte{1};
  EXPECT_EQ(ErrnoOf(session_.CreateNamed("name", kGranuleBytes, kOwnerOnly).status()), EEXIST);
  EXPECT_TRUE(session_.UnlinkNamed("name").ok());
  EXPECT_EQ(ErrnoOf(session_.OpenNamed("name").status()), ENOENT);
  EXPECT_EQ(ErrnoOf(session_.UnlinkNamed("name")), ENOENT);
  // The memory stays with those who map it; the name is another's now.
  EXPECT_EQ(region.bytes()[0], std::byte{1});
  Region second = Create("name", kGranuleBytes, kOwnerOnly);
  EXPECT_EQ(second.bytes()[0], std::byte{0});
}

TEST_F(NamedTest, RegionOutlivesItsCreator) {
  Child creator(Identity::kSame, [&](Channel&) {
    absl::StatusOr<Session> session = OpenAt(pager_);
    if (!session.ok()) return 1;
    absl::StatusOr<Region> region = session->CreateNamed("left", kGranuleBytes, kOwnerOnly);
    if (!region.ok()) return 2;
    region->bytes()[1] = std::byte{42};
    return 0;
  });
  ASSERT_EQ(creator.Wait(), 0);
  Attach();
  absl::StatusOr<Region> region = session_.OpenNamed("left");
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_EQ(region->bytes()[1], std::byte{42});
}

TEST_F(NamedTest, WrongNamesAndLengths) {
  Attach();
  const std::string before = SharedMappings();
  for (const std::string& name : {std::string(), std::string("a/b"), std::string("/"),
                                  std::string(64, 'n'), std::string(1000, 'n')}) {
    EXPECT_EQ(ErrnoOf(session_.CreateNamed(name, kGranuleBytes, kOwnerOnly).status()), EINVAL)
        << name;
    EXPECT_EQ(ErrnoOf(session_.OpenNamed(name).status()), EINVAL) << name;
    EXPECT_EQ(ErrnoOf(session_.UnlinkNamed(name)), EINVAL) << name;
  }
  EXPECT_EQ(ErrnoOf(session_.CreateNamed("zero", 0, kOwnerOnly).status()), EINVAL);
  EXPECT_FALSE(session_.CreateNamed("large", ~size_t{0} - kMiB, kOwnerOnly).ok());
  EXPECT_EQ(ErrnoOf(session_.OpenNamed("zero").status()), ENOENT);
  EXPECT_EQ(ErrnoOf(session_.OpenNamed("large").status()), ENOENT);
  EXPECT_EQ(SharedMappings(), before);
  EXPECT_FALSE(Create(std::string(63, 'n'), kGranuleBytes, kOwnerOnly).empty());
}

TEST_F(NamedTest, NameOfAMappingThatFailedIsFree) {
  Attach();
  Region taken = Create("taken", kGranuleBytes, kOwnerOnly);
  MapOptions there;
  there.address = taken.data();
  there.placement = Placement::kExactly;
  EXPECT_EQ(ErrnoOf(session_.CreateNamed("failed", kGranuleBytes, kOwnerOnly, there).status()),
            EEXIST);
  EXPECT_EQ(ErrnoOf(session_.OpenNamed("failed").status()), ENOENT);
  EXPECT_EQ(ErrnoOf(session_.OpenNamed("taken", there).status()), EEXIST);
  EXPECT_TRUE(session_.OpenNamed("taken").ok());
}

TEST_F(NamedTest, ReadOnlyOpenNeverWrites) {
  Attach();
  Region region = Create("read", kGranuleBytes, kOwnerOnly);
  absl::StatusOr<Region> reads = session_.OpenNamed("read", ReadOnly());
  ASSERT_TRUE(reads.ok()) << reads.status();
  EXPECT_EQ(ErrnoOf(reads->Protect(Protection::kReadWrite)), EACCES);
  region.bytes()[0] = std::byte{1};
  EXPECT_EQ(reads->bytes()[0], std::byte{1});
  Child writer(Identity::kSame, [&](Channel&) {
    reads->bytes()[0] = std::byte{2};
    return 0;
  });
  EXPECT_EQ(writer.Wait(), 128 + SIGSEGV);
}

TEST_F(NamedTest, UnshareMapsAreTheirOwn) {
  Attach();
  Region region = Create("plain", 8 * kMiB, kOwnerOnly);
  MapOptions options;
  options.share = ShareMode::kUnshare;
  absl::StatusOr<Region> plain = session_.OpenNamed("plain", options);
  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_TRUE(region.Protect(Protection::kNone).ok());
  plain->bytes()[0] = std::byte{3};
  ASSERT_TRUE(region.Protect(Protection::kReadWrite).ok());
  EXPECT_EQ(region.bytes()[0], std::byte{3});
}

TEST_F(NamedTest, PermissionsAreThoseOfFiles) {
  HOSTMM_SKIP_IF(WhyNoRoot());
  Child nobody(Identity::kNobody, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    absl::StatusOr<Session> session = OpenAt(pager_);
    if (!session.ok()) return 2;
    if (ErrnoOf(session->OpenNamed("secret", ReadOnly()).status()) != EACCES) return 3;
    if (ErrnoOf(session->OpenNamed("notice").status()) != EACCES) return 4;
    absl::StatusOr<Region> notice = session->OpenNamed("notice", ReadOnly());
    if (!notice.ok() || notice->bytes()[0] != std::byte{1}) return 5;
    if (ErrnoOf(notice->Protect(Protection::kReadWrite)) != EACCES) return 6;
    if (ErrnoOf(session->UnlinkNamed("notice")) != EACCES) return 7;
    absl::StatusOr<Region> board = session->OpenNamed("board");
    if (!board.ok()) return 8;
    board->bytes()[0] = std::byte{2};
    absl::StatusOr<Region> own = session->CreateNamed("own", kGranuleBytes, kOwnerOnly);
    if (!own.ok()) return 9;
    if (!channel.Signal() || !channel.Await()) return 10;
    return 0;
  });
  Attach();
  Region secret = Create("secret", kGranuleBytes, kOwnerOnly);
  Region notice = Create("notice", kGranuleBytes, kAllRead);
  Region board = Create("board", kGranuleBytes, kAllRead | S_IWGRP | S_IWOTH);
  notice.bytes()[0] = std::byte{1};
  ASSERT_TRUE(nobody.channel().Signal());
  const bool reached = nobody.channel().Await();
  EXPECT_EQ(board.bytes()[0], std::byte{2});
  // Root may open what is others', and remove it.
  EXPECT_TRUE(session_.OpenNamed("own").ok());
  EXPECT_TRUE(session_.UnlinkNamed("own").ok());
  if (reached) nobody.channel().Signal();
  EXPECT_EQ(nobody.Wait(), 0);
}

}  // namespace
}  // namespace hostmm::test
