#include "runtime/huge_tmpfs.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"

namespace hostmm {
namespace {

// The new mount API, by system call: glibc 2.36 has it, its headers clash with <linux/mount.h>.
constexpr unsigned kSetString = 1;  // FSCONFIG_SET_STRING
constexpr unsigned kCreate = 6;     // FSCONFIG_CMD_CREATE
constexpr unsigned kCloexec = 1;    // FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC

// What the mount needs, as plain data: it is filled by a child that shares our memory.
struct MountResult {
  int fd = -1;
  int error = 0;
  const char* failed = "";
};

void Mount(MountResult* result) {
  const auto fail = [result](const char* what) {
    result->error = errno;
    result->failed = what;
  };
  const int context = static_cast<int>(syscall(SYS_fsopen, "tmpfs", kCloexec));
  if (context < 0) return fail("fsopen(tmpfs)");
  // No limit of its own (the default is half of memory): a region that is larger than memory is
  // refused before, with the answer that plain Linux gives.
  const char* const options[][2] = {{"huge", "within_size"}, {"size", "0"}, {"nr_inodes", "0"}};
  for (const auto& option : options) {
    if (syscall(SYS_fsconfig, context, kSetString, option[0], option[1], 0) != 0) {
      fail(option[0]);
      close(context);
      return;
    }
  }
  if (syscall(SYS_fsconfig, context, kCreate, nullptr, nullptr, 0) != 0) {
    fail("fsconfig(create)");
  } else {
    result->fd = static_cast<int>(syscall(SYS_fsmount, context, kCloexec, 0));
    if (result->fd < 0) fail("fsmount");
  }
  close(context);
}

bool WriteFile(const char* path, const char* text) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const auto length = static_cast<ssize_t>(strlen(text));
  const bool whole = write(fd, text, static_cast<size_t>(length)) == length;
  close(fd);
  return whole;
}

struct NamespaceChild {
  MountResult result;
  char uid_map[32];
  char gid_map[32];
};

// Runs in a child that shares our memory and our descriptors, so that the mount's descriptor is
// ours when it is gone. The maps are needed: without them opening a file there fails with
// EOVERFLOW.
int MountInUserNamespace(void* argument) {
  auto* child = static_cast<NamespaceChild*>(argument);
  const auto fail = [child](const char* what) {
    child->result.error = errno;
    child->result.failed = what;
    return 1;
  };
  prctl(PR_SET_DUMPABLE, 1);  // or /proc/self/uid_map belongs to root
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return fail("unshare(user namespace)");
  if (!WriteFile("/proc/self/setgroups", "deny")) return fail("setgroups");
  if (!WriteFile("/proc/self/uid_map", child->uid_map)) return fail("uid_map");
  if (!WriteFile("/proc/self/gid_map", child->gid_map)) return fail("gid_map");
  Mount(&child->result);
  return 0;
}

}  // namespace

absl::StatusOr<UniqueFd> MountHugeTmpfs() {
  MountResult direct;
  Mount(&direct);
  if (direct.fd >= 0) return UniqueFd(direct.fd);
  if (direct.error != EPERM) {
    return absl::UnavailableError(
        absl::StrCat(direct.failed, ": ", strerror(direct.error),
                     "; remedy: Linux 5.2 with CONFIG_TRANSPARENT_HUGEPAGE=y"));
  }
  NamespaceChild child = {};
  std::snprintf(child.uid_map, sizeof(child.uid_map), "0 %u 1", geteuid());
  std::snprintf(child.gid_map, sizeof(child.gid_map), "0 %u 1", getegid());
  std::vector<char> stack(64 << 10);  // arbitrary: a few frames of libc
  const int pid = clone(MountInUserNamespace, stack.data() + stack.size(),
                        CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, &child);
  if (pid < 0) {
    child.result = {-1, errno, "clone"};
  } else {
    waitpid(pid, nullptr, 0);
  }
  if (child.result.fd >= 0) return UniqueFd(child.result.fd);
  return absl::UnavailableError(absl::StrCat(
      child.result.failed, ": ", strerror(child.result.error),
      "; remedy: run as root, or allow user namespaces (sysctl user.max_user_namespaces=10000)"));
}

}  // namespace hostmm
