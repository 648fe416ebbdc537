// The functions of libc that change a process's user or groups. They are libc's own, found at run
// time; afterwards the agent is replaced (client.h, CredentialsChanged), because libc changes the
// threads that it made and the agent is not one of them: it would keep what the program has just
// given up.
#include <dlfcn.h>
#include <errno.h>
#include <grp.h>
#include <sys/types.h>
#include <unistd.h>

#include "runtime/guest/client.h"

#define HOSTMM_HOOK extern "C" __attribute__((visibility("default")))

namespace hostmm::guest {
namespace {

// Calls the next `name` with the same arguments, and replaces the agent if it did something.
template <typename... Args>
int CallNext(const char* name, Args... args) {
  const auto next = reinterpret_cast<int (*)(Args...)>(dlsym(RTLD_NEXT, name));
  if (next == nullptr) {
    errno = ENOSYS;
    return -1;
  }
  const int result = next(args...);
  if (result == 0) {
    const int kept = errno;
    CredentialsChanged();
    errno = kept;
  }
  return result;
}

}  // namespace
}  // namespace hostmm::guest

using hostmm::guest::CallNext;

HOSTMM_HOOK int setuid(uid_t uid) noexcept { return CallNext("setuid", uid); }
HOSTMM_HOOK int setgid(gid_t gid) noexcept { return CallNext("setgid", gid); }
HOSTMM_HOOK int seteuid(uid_t uid) noexcept { return CallNext("seteuid", uid); }
HOSTMM_HOOK int setegid(gid_t gid) noexcept { return CallNext("setegid", gid); }
HOSTMM_HOOK int setreuid(uid_t real, uid_t effective) noexcept {
  return CallNext("setreuid", real, effective);
}
HOSTMM_HOOK int setregid(gid_t real, gid_t effective) noexcept {
  return CallNext("setregid", real, effective);
}
HOSTMM_HOOK int setresuid(uid_t real, uid_t effective, uid_t saved) noexcept {
  return CallNext("setresuid", real, effective, saved);
}
HOSTMM_HOOK int setresgid(gid_t real, gid_t effective, gid_t saved) noexcept {
  return CallNext("setresgid", real, effective, saved);
}
HOSTMM_HOOK int setgroups(size_t count, const gid_t* groups) noexcept {
  return CallNext("setgroups", count, groups);
}
HOSTMM_HOOK int initgroups(const char* user, gid_t group) {
  return CallNext("initgroups", user, group);
}
