#include "runtime/uffd_decode.h"

namespace hostmm {

std::optional<FaultEvent> DecodeFault(GuestId guest, const uffd_msg& message) {
  if (message.event != UFFD_EVENT_PAGEFAULT) return std::nullopt;
  const uint64_t flags = message.arg.pagefault.flags;
  FaultEvent event;
  event.guest = guest;
  event.addr = GuestAddr(message.arg.pagefault.address);
  event.access = (flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0 ? Access::kWrite : Access::kRead;
  // WP and MINOR exclude each other; neither means MISSING.
  if ((flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
    event.kind = FaultKind::kWriteProtect;
  } else if ((flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0) {
    event.kind = FaultKind::kMinor;
  } else {
    event.kind = FaultKind::kMissing;
  }
  return event;
}

}  // namespace hostmm
