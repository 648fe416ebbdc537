// What a guest said before it died counts: above all the children that it announced, which live on.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "runtime/packet.h"
#include "tests/pager/pager_child.h"
#include "tests/pager/raw_guest.h"
#include "tests/testing/child.h"
#include "tests/testing/deadline.h"

namespace hostmm::test {
namespace {

using protocol::Kind;

constexpr size_t kRegionBytes = size_t{8} << 20;
// More than the pager takes in one turn of a guest, less than a channel holds.
constexpr int kNotes = 100;

// The pager is stopped meanwhile, so that it finds the packets and the death at once.
TEST(LastWordsTest, ChildrenAnnouncedBeforeTheEndAreKnown) {
  const PagerChild pager(PagerChild::Setup{});
  ASSERT_TRUE(pager.ok()) << pager.ready();
  int first[2];
  int second[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, first), 0);
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, second), 0);
  Child parent(Identity::kSame, [&](Channel& channel) {
    RawGuest guest(pager.socket_path());
    CHILD_CHECK(guest.Enter());
    const ScopedMapping region = guest.NewRegion(kRegionBytes);
    CHILD_CHECK(region.ok());
    CHILD_CHECK(channel.Signal());
    CHILD_CHECK(channel.Await());
    for (int i = 0; i < kNotes; ++i) CHILD_CHECK(guest.Send(NewPacket(Kind::kFlags)));
    for (const int channel_of_child : {first[1], second[1]}) {
      CHILD_CHECK(guest.Send(NewPacket(Kind::kForkIntent), {channel_of_child}));
    }
    return 0;
  });
  ASSERT_TRUE(parent.channel().Await());
  ASSERT_EQ(kill(pager.pid(), SIGSTOP), 0);
  ASSERT_TRUE(parent.channel().Signal());
  EXPECT_EQ(parent.Wait(), 0);
  ASSERT_EQ(kill(pager.pid(), SIGCONT), 0);
  for (const int end : {first[1], second[1]}) close(end);

  // The parent is gone, and each of its two children has what it had.
  std::optional<Census> census;
  EXPECT_TRUE(PollUntil(Deadline(kStepDeadline),
                        [&] {
                          census = pager.Take();
                          return census.has_value() && census->guests == 2 && census->regions == 2;
                        }))
      << "guests " << (census.has_value() ? census->guests : 0);
  for (const int end : {first[0], second[0]}) close(end);
}

}  // namespace
}  // namespace hostmm::test
