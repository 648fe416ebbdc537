#include "tests/testing/frame_files.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace hostmm::test {
namespace {

bool SetOption(int context, const char* key, const std::string& value) {
  return value.empty() || fsconfig(context, FSCONFIG_SET_STRING, key, value.c_str(), 0) == 0;
}

// Returns the mount descriptor, or -errno.
int MountRaw(const TmpfsOptions& options) {
  ScopedFd context(fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!context.valid()) return -errno;
  if (!SetOption(context.get(), "huge", options.huge) ||
      !SetOption(context.get(), "size", options.size) ||
      !SetOption(context.get(), "nr_inodes", options.nr_inodes) ||
      fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return -errno;
  }
  const int mount_fd = fsmount(context.get(), FSMOUNT_CLOEXEC, 0);
  return mount_fd >= 0 ? mount_fd : -errno;
}

int WriteWhole(const char* path, const char* text) {
  ScopedFd fd(open(path, O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return -errno;
  const ssize_t length = static_cast<ssize_t>(strlen(text));
  return write(fd.get(), text, length) == length ? 0 : -errno;
}

struct NamespaceJob {
  const TmpfsOptions* options;
  char uid_map[64];
  char gid_map[64];
  int result;  // descriptor or -errno
};

int EnterUserNamespace(const NamespaceJob& job) {
  // A process that changed its uid is not dumpable, and then root owns its /proc/self files.
  if (prctl(PR_SET_DUMPABLE, 1) != 0) return -errno;
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return -errno;
  // gid_map may only be written once setgroups is denied. Without maps, creating a file fails
  // with EOVERFLOW: the new superblock cannot express who owns it.
  int status = WriteWhole("/proc/self/setgroups", "deny");
  if (status == 0) status = WriteWhole("/proc/self/uid_map", job.uid_map);
  if (status == 0) status = WriteWhole("/proc/self/gid_map", job.gid_map);
  return status;
}

int RunNamespaceJob(void* argument) {
  auto* job = static_cast<NamespaceJob*>(argument);
  const int status = EnterUserNamespace(*job);
  job->result = status < 0 ? status : MountRaw(*job->options);
  return 0;
}

ScopedFd FromResult(int result) {
  if (result >= 0) return ScopedFd(result);
  errno = -result;
  return ScopedFd();
}

ScopedFd Sized(int raw_fd, size_t bytes) {
  ScopedFd fd(raw_fd);
  if (fd.valid() && ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) fd.Close();
  return fd;
}

}  // namespace

ScopedFd MountDetachedTmpfs(const TmpfsOptions& options) { return FromResult(MountRaw(options)); }

ScopedFd MountDetachedTmpfsInUserNamespace(const TmpfsOptions& options) {
  NamespaceJob job = {};
  job.options = &options;
  snprintf(job.uid_map, sizeof(job.uid_map), "0 %u 1", geteuid());
  snprintf(job.gid_map, sizeof(job.gid_map), "0 %u 1", getegid());
  // CLONE_FILES brings the descriptor home, CLONE_VM the result, CLONE_VFORK stops this thread
  // meanwhile. The child is a process of one thread, which unshare(CLONE_NEWUSER) insists on.
  alignas(16) static char stack[256 << 10];
  const int pid = clone(RunNamespaceJob, stack + sizeof(stack),
                        CLONE_FILES | CLONE_VM | CLONE_VFORK | SIGCHLD, &job);
  if (pid < 0) return ScopedFd();
  int wait_status = 0;
  while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {
  }
  return FromResult(job.result);
}

ScopedFd UnnamedFileOn(int mount_fd, size_t bytes) {
  return Sized(openat(mount_fd, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), bytes);
}

ScopedFd HugeTmpfsFile(size_t bytes, const TmpfsOptions& options) {
  ScopedFd mount_fd = MountDetachedTmpfs(options);
  if (!mount_fd.valid() && errno == EPERM) mount_fd = MountDetachedTmpfsInUserNamespace(options);
  // The file keeps the superblock alive: the mount descriptor may go.
  return mount_fd.valid() ? UnnamedFileOn(mount_fd.get(), bytes) : ScopedFd();
}

ScopedFd MemfdFile(size_t bytes) { return Sized(memfd_create("hostmm-test", MFD_CLOEXEC), bytes); }

ScopedFd HugetlbFile(size_t bytes) {
  return Sized(memfd_create("hostmm-test", MFD_CLOEXEC | MFD_HUGETLB | MFD_HUGE_2MB), bytes);
}

}  // namespace hostmm::test
