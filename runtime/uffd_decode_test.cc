#include "runtime/uffd_decode.h"

#include <gtest/gtest.h>

namespace hostmm {
namespace {

uffd_msg PageFault(uint64_t flags) {
  uffd_msg message = {};
  message.event = UFFD_EVENT_PAGEFAULT;
  message.arg.pagefault.flags = flags;
  message.arg.pagefault.address = 0x7f00'1234'5678;
  return message;
}

TEST(UffdDecodeTest, TheFlagsSayKindAndAccess) {
  const struct {
    uint64_t flags;
    FaultKind kind;
    Access access;
  } cases[] = {
      {0, FaultKind::kMissing, Access::kRead},
      {UFFD_PAGEFAULT_FLAG_WRITE, FaultKind::kMissing, Access::kWrite},
      {UFFD_PAGEFAULT_FLAG_MINOR, FaultKind::kMinor, Access::kRead},
      {UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WRITE, FaultKind::kMinor, Access::kWrite},
      {UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE, FaultKind::kWriteProtect,
       Access::kWrite},
  };
  const GuestId guest{3, 9};
  for (const auto& c : cases) {
    const std::optional<FaultEvent> event = DecodeFault(guest, PageFault(c.flags));
    ASSERT_TRUE(event.has_value()) << c.flags;
    EXPECT_EQ(event->guest, guest);
    EXPECT_EQ(event->addr.value(), 0x7f00'1234'5678u) << "the byte, not the page";
    EXPECT_EQ(event->kind, c.kind) << c.flags;
    EXPECT_EQ(event->access, c.access) << c.flags;
  }
}

TEST(UffdDecodeTest, OtherEventsAreNoFaults) {
  for (int event = 0; event < 256; ++event) {
    uffd_msg message = PageFault(0);
    message.event = static_cast<uint8_t>(event);
    EXPECT_EQ(DecodeFault(GuestId{1, 1}, message).has_value(), event == UFFD_EVENT_PAGEFAULT);
  }
}

}  // namespace
}  // namespace hostmm
