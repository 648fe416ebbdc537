#include "runtime/frame_store.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/huge_tmpfs.h"
#include "runtime/mapping.h"
#include "runtime/sys_error.h"
#include "runtime/uapi_compat.h"
#include "vmm/units.h"

namespace hostmm {
namespace {

absl::StatusOr<UniqueFd> SizedFile(UniqueFd file, uint64_t bytes) {
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    const char* remedy = error == EFBIG ? "; remedy: raise ulimit -f" : "";
    return absl::ErrnoToStatus(error, absl::StrCat("ftruncate(", bytes, ")", remedy));
  }
  return file;
}

absl::StatusOr<UniqueFd> NewMemfd(const char* name, unsigned flags, uint64_t bytes) {
  UniqueFd file(memfd_create(name, MFD_CLOEXEC | flags));
  if (!file.ok()) return SysError(absl::StrCat("memfd_create(", name, ")"));
  return SizedFile(std::move(file), bytes);
}

absl::StatusOr<UniqueFd> NewHugetlbFile(uint64_t bytes) {
  absl::StatusOr<UniqueFd> file = NewMemfd("hostmm-hugetlb", MFD_HUGETLB | MFD_HUGE_2MB, bytes);
  if (!file.ok()) return file;
  // A shared hugetlb mapping reserves all of its frames: better told now than with a SIGBUS later.
  // The reservation belongs to the file and stays when this mapping goes.
  Mapping reservation(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file->get(), 0),
                      bytes);
  if (!reservation.ok()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no ", bytes >> 21,
        " hugetlb pages of 2 MiB; remedy: sysctl vm.nr_overcommit_hugepages=", bytes >> 21));
  }
  return file;
}

// A tmpfs gives huge frames unless shmem_enabled is "deny": look at what the kernel really does.
absl::Status ProveHuge(const FrameStore& store) {
  absl::StatusOr<UniqueFd> file = store.NewFile(kBlockSize);
  if (!file.ok()) return file.status();
  const size_t span = 2 * kBlockSize;
  Mapping room(mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
               span);
  if (!room.ok()) return SysError("mmap(probe)");
  const auto start = reinterpret_cast<uintptr_t>(room.data());
  const uintptr_t block = (start + kBlockSize - 1) / kBlockSize * kBlockSize;
  void* view = mmap(reinterpret_cast<void*>(block), kBlockSize, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_FIXED, file->get(), 0);
  if (view == MAP_FAILED) return SysError("mmap(probe)");
  if (madvise(view, kPageSize, MADV_POPULATE_WRITE) != 0) return SysError("madvise(populate)");
  struct stat info = {};
  if (fstat(file->get(), &info) != 0) return SysError("fstat(probe)");
  if (static_cast<uint64_t>(info.st_blocks) * 512 < kBlockSize) {
    return absl::UnavailableError(
        "the kernel gives no 2 MiB shmem frames; remedy: echo never > "
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled (it is 'deny'), or free memory");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<FrameStore> FrameStore::Open(FrameKind kind) {
  UniqueFd mount;
  if (kind == FrameKind::kHuge) {
    absl::StatusOr<UniqueFd> made = MountHugeTmpfs();
    if (!made.ok()) return made.status();
    mount = *std::move(made);
  }
  FrameStore store(kind, std::move(mount));
  if (kind == FrameKind::kHuge) {
    if (absl::Status huge = ProveHuge(store); !huge.ok()) return huge;
  }
  if (kind == FrameKind::kHugetlb) {
    if (absl::StatusOr<UniqueFd> one = store.NewFile(kBlockSize); !one.ok()) return one.status();
  }
  return store;
}

absl::StatusOr<UniqueFd> FrameStore::NewFile(uint64_t bytes) const {
  switch (kind_) {
    case FrameKind::kHuge: {
      UniqueFd file(openat(mount_.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
      if (!file.ok()) return SysError("openat(huge tmpfs, O_TMPFILE)");
      return SizedFile(std::move(file), bytes);
    }
    case FrameKind::kHugetlb:
      return NewHugetlbFile(bytes);
    case FrameKind::kBase:
      return NewMemfd("hostmm-base", 0, bytes);
    case FrameKind::kAdopted:
    case FrameKind::kForeign:
    case FrameKind::kSnapshot:
      break;
  }
  return absl::InternalError("adopted files have no store");
}

}  // namespace hostmm
