#include "tests/kernel/freeze_resolver.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "tests/kernel/frozen_file.h"

namespace hostmm::test {

FreezeResolver::FreezeResolver(const TestUffd* uffd, const Region& region)
    : uffd_(uffd), region_(region), stop_(eventfd(0, EFD_CLOEXEC)) {
  thread_ = std::thread([this] { Run(); });
}

void FreezeResolver::Stop() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_.get(), 1);
  thread_.join();
}

void FreezeResolver::Run() {
  pollfd waiting[] = {{uffd_->fd(), POLLIN, 0}, {stop_.get(), POLLIN, 0}};
  while (poll(waiting, 2, -1) > 0) {
    // Events first: what was raised before the stop is counted.
    const auto fault = uffd_->WaitFault(Deadline(std::chrono::milliseconds(0)));
    if (fault) {
      if (const int error = Answer(*fault); error != 0) {
        error_ = "flags " + std::to_string(fault->flags) + ": " + strerror(error);
        return;
      }
    } else if (waiting[1].revents != 0) {
      return;
    }
  }
}

// RETURNS 0 or errno. EEXIST is no error: the unit was mapped between the event and its answer.
int FreezeResolver::Answer(const SeenFault& fault) {
  const size_t offset = fault.address - reinterpret_cast<uint64_t>(region_.guest);
  if (offset >= region_.bytes) return ERANGE;
  const size_t index = offset / region_.unit;
  const char* unit = region_.guest + index * region_.unit;
  if ((fault.flags & (UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WP)) == 0) return ENXIO;
  if ((fault.flags & UFFD_PAGEFAULT_FLAG_WRITE) == 0) {
    ++read_events_;
    const int error = ContinueAs(*uffd_, unit, region_.unit, MapAs::kProtected);
    return error == EEXIST ? uffd_->Wake(unit, region_.unit) : error;
  }
  ++write_events_;
  preimages_.try_emplace(index, region_.pager + index * region_.unit, region_.unit);
  if ((fault.flags & UFFD_PAGEFAULT_FLAG_MINOR) != 0) {
    const int error = ContinueAs(*uffd_, unit, region_.unit, MapAs::kWritable);
    if (error != EEXIST) return error;
  }
  return uffd_->WriteProtect(unit, region_.unit, 0);
}

}  // namespace hostmm::test
