#include "tests/shared_pt/object.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "tests/process/guest_program.h"
#include "tests/shared_pt/calls.h"

namespace hostmm::test {
namespace {

// A file without a name, in `folder`.
int MakeFileIn(const std::string& folder) {
  std::string path = folder + "/hostmm-test.XXXXXX";
  const int fd = mkstemp(path.data());
  MUST(fd >= 0 && unlink(path.c_str()) == 0);
  return fd;
}

int MakeFileOnDisk() {
  const char* folder = getenv("TEST_TMPDIR");
  const int fd = MakeFileIn(folder == nullptr ? "/var/tmp" : folder);
  struct statfs info = {};
  MUST(fstatfs(fd, &info) == 0);
  if (info.f_type == TMPFS_MAGIC) {
    Say("skipped: the folder for temporary files is a tmpfs, not a disk");
    _exit(0);
  }
  return fd;
}

// Others open it through the descriptor of who made it.
std::string PathOf(int fd) {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd);
}

std::string MakeNamed(size_t bytes) {
  MUST(TheLibrary().shm_open != nullptr);
  const std::string name = "test-" + std::to_string(getpid());
  const int fd = TheLibrary().shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600, bytes);
  MUST(fd >= 0);
  close(fd);
  return name;
}

}  // namespace

const char* NameOf(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::kAnonymous:
      return "anonymous";
    case MemoryKind::kMemfd:
      return "memfd";
    case MemoryKind::kDevShm:
      return "devshm";
    case MemoryKind::kNamed:
      return "named";
    case MemoryKind::kDisk:
      return "disk";
  }
  return "?";
}

Object Object::Make(MemoryKind kind, size_t bytes) {
  if (kind == MemoryKind::kAnonymous) return {kind, bytes, "-"};
  if (kind == MemoryKind::kNamed) return {kind, bytes, MakeNamed(bytes)};
  int fd = -1;
  if (kind == MemoryKind::kMemfd) fd = memfd_create("hostmm-test", MFD_CLOEXEC);
  if (kind == MemoryKind::kDevShm) fd = MakeFileIn("/dev/shm");
  if (kind == MemoryKind::kDisk) fd = MakeFileOnDisk();
  MUST(fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return {kind, bytes, PathOf(fd)};
}

Object Object::FromWords(const std::vector<std::string>& words) {
  MUST(words.size() == 3);
  return {static_cast<MemoryKind>(std::stoi(words[0])), std::stoul(words[1]), words[2]};
}

std::vector<std::string> Object::Words() const {
  return {std::to_string(static_cast<int>(kind_)), std::to_string(bytes_), path_};
}

int Object::Open(int access) const {
  if (kind_ == MemoryKind::kAnonymous) return -1;
  const int fd = kind_ == MemoryKind::kNamed ? TheLibrary().shm_open(path_.c_str(), access, 0, 0)
                                             : open(path_.c_str(), access | O_CLOEXEC);
  MUST(fd >= 0);
  return fd;
}

void Object::Remove() const {
  // (Without its pager it is gone already.)
  if (kind_ == MemoryKind::kNamed) TheLibrary().shm_unlink(path_.c_str());
}

bool Object::MayExecute() const {
  if (IsOwn()) return true;
  const int fd = Open(O_RDONLY);
  struct statvfs info = {};
  MUST(fstatvfs(fd, &info) == 0);
  close(fd);
  return (info.f_flag & ST_NOEXEC) == 0;
}

}  // namespace hostmm::test
