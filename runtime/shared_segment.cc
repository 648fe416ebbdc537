#include "runtime/shared_segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "runtime/sys_error.h"

namespace hostmm {

absl::StatusOr<SharedSegment> SharedSegment::Create(size_t bytes) {
  SharedSegment segment;
  segment.fd.reset(memfd_create("hostmm-segment", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!segment.fd.ok()) return SysError("memfd_create(hostmm-segment)");
  if (ftruncate(segment.fd.get(), static_cast<off_t>(bytes)) != 0) {
    return SysError(absl::StrCat("ftruncate(segment, ", bytes, ")"));
  }
  segment.memory =
      Mapping(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd.get(), 0), bytes);
  if (!segment.memory.ok()) return SysError(absl::StrCat("mmap(segment, ", bytes, ")"));
  const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  if (fcntl(segment.fd.get(), F_ADD_SEALS, seals) != 0) return SysError("fcntl(F_ADD_SEALS)");
  return segment;
}

}  // namespace hostmm
