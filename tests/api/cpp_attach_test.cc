// Sessions of the C++ API: opening, closing, each way in which that fails, and what is left when a
// session is closed or its pager is gone.
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "runtime/hostmm.h"
#include "tests/api/cpp_session.h"
#include "tests/testing/scoped_fd.h"

namespace hostmm::test {
namespace {

constexpr size_t kGranuleBytes = size_t{2} << 20;
constexpr size_t kPageBytes = 4096;

TEST(SessionTest, CloseEndsIt) {
  Session session = OpenSession();
  EXPECT_TRUE(session.is_open());
  EXPECT_TRUE(session.Close().ok());
  EXPECT_FALSE(session.is_open());
  const absl::Status again = session.Close();
  EXPECT_EQ(again.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Refused(again, ENOTCONN, "Session::Close"));
}

TEST(SessionTest, MovedFromAndDefaultAreClosed) {
  Session first = OpenSession();
  Session second = std::move(first);
  EXPECT_FALSE(first.is_open());  // NOLINT(bugprone-use-after-move): what is tested
  EXPECT_TRUE(second.is_open());
  EXPECT_FALSE(Session().is_open());
  EXPECT_FALSE(Session().Close().ok());
}

TEST(SessionTest, EachOpenWantsItsClose) {
  Session first = OpenSession();
  Session second = OpenSession();
  ASSERT_TRUE(first.is_open() && second.is_open());
  EXPECT_TRUE(first.Close().ok());
  absl::StatusOr<Region> region = second.MapAnonymous(kGranuleBytes);
  ASSERT_TRUE(region.ok()) << region.status();
  EXPECT_TRUE(region->Protect(Protection::kRead).ok());
  EXPECT_TRUE(second.Close().ok());
  EXPECT_EQ(hostmm_close(), -1);
  EXPECT_EQ(errno, ENOTCONN);
}

TEST(SessionTest, AssignmentClosesTheOldOne) {
  Session session = OpenSession();
  session = Session();
  EXPECT_FALSE(session.is_open());
  EXPECT_EQ(hostmm_close(), -1);
}

TEST(SessionTest, OpenNamesWhatIsWrong) {
  Options options;
  options.socket = "/tmp/hostmm-no-such-folder/socket";
  absl::Status status = Session::Open(options).status();
  EXPECT_TRUE(ErrnoOf(status) == ECONNREFUSED || ErrnoOf(status) == ENOENT) << status;
  EXPECT_NE(status.message().find(options.socket), absl::string_view::npos) << status;
  options.socket = "/tmp/" + std::string(200, 'x');
  EXPECT_TRUE(Refused(Session::Open(options).status(), ENAMETOOLONG, "Session::Open"));
  options.socket.clear();
  options.program = "/tmp/hostmm-no-such-program";
  EXPECT_TRUE(Refused(Session::Open(options).status(), ENOENT, "Session::Open"));
  options.program.clear();
  options.frames = static_cast<Frames>(9);
  EXPECT_TRUE(Refused(Session::Open(options).status(), EINVAL, "Session::Open"));
  // None of them has left an attachment behind.
  EXPECT_EQ(hostmm_close(), -1);
  EXPECT_TRUE(OpenSession().is_open());
}

TEST(SessionTest, ProgramThatIsNoPagerIsReported) {
  Options options;
  options.program = "/bin/false";
  EXPECT_TRUE(Refused(Session::Open(options).status(), ECHILD, "Session::Open"));
}

TEST(SessionTest, OneProcessHasOnePager) {
  const TestPager other;
  Session session = OpenSession();
  Options options;
  options.socket = other.socket();
  EXPECT_TRUE(Refused(Session::Open(options).status(), EBUSY, "Session::Open"));
  EXPECT_TRUE(session.Close().ok());
  absl::StatusOr<Session> then = Session::Open(options);
  EXPECT_TRUE(then.ok()) << then.status();
}

TEST(SessionTest, EveryFunctionOfAClosedSessionRefuses) {
  Session session = OpenSession();
  absl::StatusOr<Region> made = session.MapAnonymous(2 * kGranuleBytes);
  ASSERT_TRUE(made.ok()) << made.status();
  Region region = *std::move(made);
  region.bytes()[0] = std::byte{7};
  ASSERT_TRUE(session.Close().ok());
  const std::string before = SharedMappings();
  const ScopedFd file(memfd_create("cpp_api", MFD_CLOEXEC));
  EXPECT_TRUE(
      Refused(session.MapAnonymous(kGranuleBytes).status(), ENOTCONN, "Session::MapAnonymous"));
  EXPECT_TRUE(Refused(session.MapFile(file.get(), 0, kGranuleBytes).status(), ENOTCONN,
                      "Session::MapFile"));
  EXPECT_TRUE(Refused(session.CreateNamed("name", kGranuleBytes, 0600).status(), ENOTCONN,
                      "Session::CreateNamed"));
  EXPECT_TRUE(Refused(session.OpenNamed("name").status(), ENOTCONN, "Session::OpenNamed"));
  EXPECT_TRUE(Refused(session.UnlinkNamed("name"), ENOTCONN, "Session::UnlinkNamed"));
  EXPECT_TRUE(Refused(region.Protect(Protection::kNone), ENOTCONN, "Region::Protect"));
  EXPECT_TRUE(Refused(region.Advise(Advice::kRemove), ENOTCONN, "Region::Advise"));
  EXPECT_TRUE(Refused(region.IsShared(0).status(), ENOTCONN, "Region::IsShared"));
  EXPECT_TRUE(Refused(region.Resize(kGranuleBytes), ENOTCONN, "Region::Resize"));
  EXPECT_TRUE(Refused(region.MoveTo(nullptr), ENOTCONN, "Region::MoveTo"));
  EXPECT_EQ(region.Protect(Protection::kNone).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(SharedMappings(), before);
  // The memory is what it was, and can be given up.
  EXPECT_EQ(region.bytes()[0], std::byte{7});
  region.bytes()[1] = std::byte{8};
  EXPECT_TRUE(region.Unmap().ok());
}

TEST(SessionTest, PagerThatIsGoneIsReported) {
  TestPager pager;
  Options options;
  options.socket = pager.socket();
  absl::StatusOr<Session> session = Session::Open(options);
  ASSERT_TRUE(session.ok()) << session.status();
  absl::StatusOr<Region> region = session->MapAnonymous(kGranuleBytes);
  ASSERT_TRUE(region.ok()) << region.status();
  region->bytes()[0] = std::byte{7};
  pager.Kill();
  EXPECT_TRUE(Refused(region->Protect(Protection::kRead), ENOTCONN, "Region::Protect"));
  EXPECT_TRUE(
      Refused(session->MapAnonymous(kGranuleBytes).status(), ENOTCONN, "Session::MapAnonymous"));
  EXPECT_TRUE(Refused(session->OpenNamed("name").status(), ENOTCONN, "Session::OpenNamed"));
  EXPECT_EQ(region->bytes()[0], std::byte{7});
  region->bytes()[kPageBytes] = std::byte{8};
}

}  // namespace
}  // namespace hostmm::test
