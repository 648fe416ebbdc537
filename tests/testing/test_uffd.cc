#include "tests/testing/test_uffd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>

#include "tests/testing/scoped_mapping.h"

namespace hostmm::test {
namespace {

uffdio_range Range(const void* start, size_t bytes) {
  return uffdio_range{reinterpret_cast<uint64_t>(start), bytes};
}

int Result(int status) { return status == 0 ? 0 : errno; }

}  // namespace

TestUffd TestUffd::FromDevice(int device_fd, uint64_t features) {
  ScopedFd fd(ioctl(device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return TestUffd();
  uffdio_api api = {};
  api.api = UFFD_API;
  api.features = features;
  if (ioctl(fd.get(), UFFDIO_API, &api) != 0) return TestUffd();
  return TestUffd(std::move(fd));
}

TestUffd TestUffd::Open(uint64_t features) {
  const ScopedFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  return device.valid() ? FromDevice(device.get(), features) : TestUffd();
}

int TestUffd::Register(const void* start, size_t bytes, uint64_t mode) const {
  uffdio_register request = {};
  request.range = Range(start, bytes);
  request.mode = mode;
  return Result(ioctl(fd_.get(), UFFDIO_REGISTER, &request));
}

int TestUffd::Unregister(const void* start, size_t bytes) const {
  uffdio_range request = Range(start, bytes);
  return Result(ioctl(fd_.get(), UFFDIO_UNREGISTER, &request));
}

int TestUffd::Wake(const void* start, size_t bytes) const {
  uffdio_range request = Range(start, bytes);
  return Result(ioctl(fd_.get(), UFFDIO_WAKE, &request));
}

int TestUffd::WriteProtect(const void* start, size_t bytes, uint64_t mode) const {
  uffdio_writeprotect request = {};
  request.range = Range(start, bytes);
  request.mode = mode;
  return Result(ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request));
}

int TestUffd::Continue(const void* start, size_t bytes, int64_t* done) const {
  uffdio_continue request = {};
  request.range = Range(start, bytes);
  const int result = Result(ioctl(fd_.get(), UFFDIO_CONTINUE, &request));
  *done = request.mapped;
  return result;
}

int TestUffd::Copy(const void* target, const void* source, size_t bytes) const {
  uffdio_copy request = {};
  request.dst = reinterpret_cast<uint64_t>(target);
  request.src = reinterpret_cast<uint64_t>(source);
  request.len = bytes;
  return Result(ioctl(fd_.get(), UFFDIO_COPY, &request));
}

std::optional<SeenFault> TestUffd::WaitFault(Deadline deadline) const {
  pollfd waiting = {fd_.get(), POLLIN, 0};
  while (poll(&waiting, 1, deadline.remaining_ms()) > 0) {
    uffd_msg message = {};
    if (read(fd_.get(), &message, sizeof(message)) == sizeof(message)) {
      if (message.event != UFFD_EVENT_PAGEFAULT) return std::nullopt;
      const uint64_t address = message.arg.pagefault.address & ~uint64_t{kPage - 1};
      return SeenFault{address, message.arg.pagefault.flags};
    }
    // The waiter may have gone between poll and read (a signal, an exit): EAGAIN, look again.
    if (errno != EAGAIN || deadline.expired()) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace hostmm::test
