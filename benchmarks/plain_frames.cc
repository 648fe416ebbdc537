#include "benchmarks/plain_frames.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "benchmarks/driver_steps.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kTopBytes = uint64_t{1} << 30;

int MakeHugeTmpfsFile() {
  const long context = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
  if (context < 0) Fail("fsopen(tmpfs)");
  if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "huge", "always", 0) != 0 ||
      syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    Fail("fsconfig(tmpfs, huge=always)");
  }
  const long mount = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
  if (mount < 0) Fail("fsmount");
  const int file = openat(static_cast<int>(mount), "region", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (file < 0) Fail("openat in the new tmpfs");
  close(static_cast<int>(mount));
  close(static_cast<int>(context));
  return file;
}

}  // namespace

Frames FramesOption(std::string_view name) {
  if (name == "base") return Frames::kBase;
  if (name == "huge") return Frames::kHuge;
  if (name == "hugetlb") return Frames::kHugetlb;
  errno = EINVAL;
  Fail("--frames");
}

int MakeFile(Frames frames, uint64_t bytes) {
  int file = -1;
  switch (frames) {
    case Frames::kBase:
      file = memfd_create("region", MFD_CLOEXEC);
      break;
    case Frames::kHuge:
      file = MakeHugeTmpfsFile();
      break;
    case Frames::kHugetlb:
      file = memfd_create("region", MFD_CLOEXEC | MFD_HUGETLB);
      break;
  }
  if (file < 0) Fail("file of the region");
  if (ftruncate(file, static_cast<off_t>(bytes)) != 0) Fail("ftruncate of the region");
  return file;
}

uint8_t* MapFile(int file, uint64_t bytes) {
  // A reservation that is large enough to hold an aligned place; what is left of it costs nothing.
  void* reserved = mmap(nullptr, bytes + kTopBytes, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) Fail("mmap of a place for the region");
  const uint64_t at = (reinterpret_cast<uint64_t>(reserved) + kTopBytes - 1) & ~(kTopBytes - 1);
  void* mapped = mmap(reinterpret_cast<void*>(at), bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED, file, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  return static_cast<uint8_t*>(mapped);
}

}  // namespace hostmm::benchmarks
