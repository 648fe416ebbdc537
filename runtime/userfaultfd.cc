#include "runtime/userfaultfd.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <utility>

#include "runtime/uapi_compat.h"

namespace hostmm {
namespace {

UffdResult FromErrno(int error) {
  switch (error) {
    case EEXIST:
      return UffdResult::kAlreadyMapped;
    case EAGAIN:
      return UffdResult::kRetry;
    case ESRCH:
    case ENOENT:
      return UffdResult::kGuestGone;
    case EBUSY:
      return UffdResult::kBusy;
    default:
      return UffdResult::kRefused;
  }
}

UffdResult RangeIoctl(int uffd, unsigned long request, uint64_t va, uint64_t bytes) {
  uffdio_range range = {.start = va, .len = bytes};
  return ioctl(uffd, request, &range) == 0 ? UffdResult::kDone : FromErrno(errno);
}

// What UFFDIO_API offers on a fresh userfaultfd, or 0.
uint64_t Features(int uffd) {
  uffdio_api api = {.api = UFFD_API, .features = 0, .ioctls = 0};
  return ioctl(uffd, UFFDIO_API, &api) == 0 ? api.features : 0;
}

}  // namespace

UffdResult UffdRegister(int uffd, uint64_t va, uint64_t bytes, uint64_t modes) {
  uffdio_register request = {.range = {.start = va, .len = bytes}, .mode = modes, .ioctls = 0};
  return ioctl(uffd, UFFDIO_REGISTER, &request) == 0 ? UffdResult::kDone : FromErrno(errno);
}

UffdResult UffdUnregister(int uffd, uint64_t va, uint64_t bytes) {
  return RangeIoctl(uffd, UFFDIO_UNREGISTER, va, bytes);
}

UffdResult UffdWake(int uffd, uint64_t va, uint64_t bytes) {
  return RangeIoctl(uffd, UFFDIO_WAKE, va, bytes);
}

UffdResult UffdContinue(int uffd, uint64_t va, uint64_t bytes, WriteProtected protect) {
  const uint64_t mode = protect == WriteProtected::kYes ? UFFDIO_CONTINUE_MODE_WP : 0;
  uffdio_continue request = {.range = {.start = va, .len = bytes}, .mode = mode, .mapped = 0};
  if (ioctl(uffd, UFFDIO_CONTINUE, &request) == 0) return UffdResult::kDone;
  if (errno == EAGAIN && request.mapped > 0) return UffdResult::kPartial;
  return FromErrno(errno);
}

UffdResult UffdContinueWindow(int uffd, uint64_t va, uint64_t bytes, uint64_t unit,
                              WriteProtected protect) {
  const UffdResult result = UffdContinue(uffd, va, bytes, protect);
  if (result != UffdResult::kGuestGone || bytes <= unit) return result;
  return UffdContinue(uffd, va, unit, protect);
}

UffdResult UffdWriteProtect(int uffd, uint64_t va, uint64_t bytes, WriteProtected protect) {
  const uint64_t mode = protect == WriteProtected::kYes ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  uffdio_writeprotect request = {.range = {.start = va, .len = bytes}, .mode = mode};
  return ioctl(uffd, UFFDIO_WRITEPROTECT, &request) == 0 ? UffdResult::kDone : FromErrno(errno);
}

UffdResult UffdCopy(int uffd, uint64_t va, const void* from, uint64_t bytes) {
  uffdio_copy request = {
      .dst = va, .src = reinterpret_cast<uintptr_t>(from), .len = bytes, .mode = 0, .copy = 0};
  if (ioctl(uffd, UFFDIO_COPY, &request) == 0) return UffdResult::kDone;
  if (errno == EAGAIN && request.copy > 0) return UffdResult::kPartial;
  return FromErrno(errno);
}

UffdResult UffdZero(int uffd, uint64_t va, uint64_t bytes) {
  uffdio_zeropage request = {.range = {.start = va, .len = bytes}, .mode = 0, .zeropage = 0};
  if (ioctl(uffd, UFFDIO_ZEROPAGE, &request) == 0) return UffdResult::kDone;
  if (errno == EAGAIN && request.zeropage > 0) return UffdResult::kPartial;
  return FromErrno(errno);
}

Alive UffdAddressSpace(int uffd, uint64_t va, uint64_t bytes) {
  // A wake asks nothing of the address space; this does, and says ESRCH. (ENOENT: not registered
  // so.)
  uffdio_writeprotect request = {.range = {.start = va, .len = bytes},
                                 .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  return ioctl(uffd, UFFDIO_WRITEPROTECT, &request) != 0 && errno == ESRCH ? Alive::kNo
                                                                           : Alive::kYes;
}

UffdAccess ProbeUserfaultfd() {
  UffdAccess access;
  UniqueFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  const int device_error = errno;
  if (device.ok()) {
    UniqueFd uffd(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
    if (uffd.ok()) access.features = Features(uffd.get());
  }
  if (access.features != 0) {
    access.source = UffdAccess::Source::kDevice;
    access.device = std::move(device);
    return access;
  }
  // Without UFFD_USER_MODE_ONLY: a userfaultfd that does not see system calls would make pread into
  // a hole fail.
  UniqueFd uffd(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (uffd.ok()) access.features = Features(uffd.get());
  if (access.features != 0) {
    access.source = UffdAccess::Source::kSyscall;
    return access;
  }
  if (uffd.ok()) {
    access.why_not = "userfaultfd lacks its API; remedy: Linux 5.7 or later";
  } else if (errno == ENOSYS) {
    access.why_not = "the kernel has no userfaultfd; remedy: CONFIG_USERFAULTFD=y";
  } else if (device_error == ENOENT) {
    access.why_not =
        "no /dev/userfaultfd and userfaultfd(2) is for root; remedy: Linux 6.1, or sysctl "
        "vm.unprivileged_userfaultfd=1";
  } else {
    access.why_not =
        "no permission for /dev/userfaultfd; remedy: run the pager as root, or give its group "
        "access "
        "(chgrp, chmod 660 /dev/userfaultfd)";
  }
  return access;
}

}  // namespace hostmm
