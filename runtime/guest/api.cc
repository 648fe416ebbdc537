// The C functions of runtime/hostmm_c.h: each is the client's function, with libc's errno and one
// line of why.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/guest/agent.h"
#include "runtime/guest/api_call.h"
#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/opt_in.h"
#include "runtime/guest/own_pager.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/program_calls.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/hostmm_c.h"

namespace hostmm::guest {
namespace {

// What an open that comes without options asks for.
constexpr hostmm_options kNoOptions = {sizeof(hostmm_options), nullptr, nullptr, nullptr};

bool IsFrames(const char* frames) {
  if (frames == nullptr) return true;
  for (const char* known : {"auto", "huge", "hugetlb", "base"}) {
    if (strcmp(frames, known) == 0) return true;
  }
  return false;
}

// Attaches to the pager at `socket`. RETURNS an errno.
int AttachTo(const char* socket, char* why, size_t why_bytes) {
  // An earlier agent that still runs, because its pager has gone just now, would have its stack
  // taken.
  if (AwaitAgentEnd() == AgentEnd::kStillThere) {
    snprintf(why, why_bytes, "the agent of an earlier pager does not end");
    return EBUSY;
  }
  GuestLockHolder hold(g_client.lock);
  g_client.attach_error = ECONNREFUSED;
  strcpy(g_client.socket_path, socket);
  g_client.phase.store(Phase::kCold, std::memory_order_release);
  const bool quiet = g_client.quiet;
  g_client.quiet = true;  // the caller is told by errno
  const bool attached = EnsureAttachedLocked();
  g_client.quiet = quiet;
  if (attached) return 0;
  g_client.phase.store(Phase::kOff, std::memory_order_release);
  const int error = g_client.attach_error;
  snprintf(why, why_bytes, "%s: %s", socket,
           error == EPROTO ? "the pager is of another build" : "no pager serves it");
  return error;
}

int OpenLocked(const hostmm_options& options, char* why, size_t why_bytes) {
  if (!IsFrames(options.frames)) {
    snprintf(why, why_bytes, "frames: auto, huge, hugetlb or base");
    return EINVAL;
  }
  const char* socket = options.socket;
  if (socket == nullptr && !IsOn()) {
    socket = secure_getenv("HOSTMM_SOCKET");
    if (socket != nullptr && socket[0] == '\0') socket = nullptr;
  }
  if (socket != nullptr && strlen(socket) >= sizeof(g_client.socket_path)) {
    snprintf(why, why_bytes, "the socket's path is longer than %zu bytes",
             sizeof(g_client.socket_path) - 1);
    return ENAMETOOLONG;
  }
  // Under `hostmm run`, or opened before.
  if (IsOn()) {
    if (socket != nullptr && strcmp(socket, g_client.socket_path) != 0) {
      snprintf(why, why_bytes, "this process uses the pager at %s", g_client.socket_path);
      return EBUSY;
    }
    char same[sizeof(g_client.socket_path)];
    if (CurrentPhase() == Phase::kAttached) return 0;
    return AttachTo(strcpy(same, g_client.socket_path), why, why_bytes);
  }
  char own[sizeof(g_client.socket_path)];
  const char* named = socket;
  if (named == nullptr) {
    const int error =
        StartOwnPager({options.program, options.frames}, own, sizeof(own), why, why_bytes);
    if (error != 0) return error;
    named = own;
  }
  return AttachTo(named, why, why_bytes);
}

int Open(const hostmm_options& options) {
  char why[384] = "";
  GuestLockHolder hold(g_client.open_lock);
  const int error = OpenLocked(options, why, sizeof(why));
  if (error != 0) {
    Explain(error, "hostmm_open: %s", why);
    return error;
  }
  ++g_client.opens;
  return 0;
}

bool IsName(const char* name) {
  const size_t longest = sizeof(protocol::Message{}.text) - 1;
  const size_t length = name != nullptr ? strnlen(name, longest + 1) : 0;
  return length > 0 && length <= longest && strchr(name, '/') == nullptr;
}

// Asks about a name. RETURNS 0 or an errno; a descriptor goes to *file.
int AskName(protocol::Message ask, const char* name, protocol::Message* answer, int* file) {
  strncpy(ask.text, name, sizeof(ask.text) - 1);
  GuestLockHolder hold(g_client.lock);
  *answer = {};
  if (EnsureAttachedLocked() && AskLocked(ask, nullptr, 0, answer, file) == Io::kOk) return 0;
  return CurrentPhase() == Phase::kOff ? ENOTCONN : ErrnoOf(*answer);
}

long OpenName(const char* name, int oflag, mode_t mode, size_t length) {
  const int known = O_ACCMODE | O_CREAT | O_EXCL | O_CLOEXEC;
  const int access = oflag & O_ACCMODE;
  const bool sane = IsName(name) && (oflag & ~known) == 0 && access != O_WRONLY &&
                    access != O_ACCMODE && ((oflag & O_CREAT) == 0 || length != 0);
  if (!sane) return -EINVAL;
  if (!EnsureOpen()) return -ENOTCONN;
  protocol::Message ask = NewMessage(protocol::Kind::kOpenName);
  const bool creates = (oflag & O_CREAT) != 0;
  if (creates && length > ~size_t{0} - protocol::kGranule) return -EINVAL;
  ask.length = creates ? RoundUp(length, protocol::kGranule) : 0;
  ask.value[0] = static_cast<uint64_t>(oflag & ~O_CLOEXEC);
  ask.value[1] = mode & 07777;
  protocol::Message answer;
  int file = -1;
  const int error = AskName(ask, name, &answer, &file);
  if (error != 0) return -error;
  return file >= 0 ? file : -EMFILE;
}

}  // namespace

bool EnsureOpen() {
  if (CurrentPhase() == Phase::kAttached) return true;
  char why[384] = "";
  GuestLockHolder hold(g_client.open_lock);
  if (CurrentPhase() == Phase::kAttached) return true;
  const bool lost = g_client.opens != 0 && !IsOn();
  if (!lost && OpenLocked(kNoOptions, why, sizeof(why)) == 0) {
    // One close is enough for all mappings that have come without an open.
    if (g_client.opens == 0) g_client.opens = 1;
    return true;
  }
  Explain(ENOTCONN, "%s", lost ? "the pager is gone; remedy: hostmm_close and hostmm_open" : why);
  return false;
}

}  // namespace hostmm::guest

using namespace hostmm;         // NOLINT: only the functions below
using namespace hostmm::guest;  // NOLINT

HOSTMM_API int hostmm_open(const hostmm_options* options) {
  if (options != nullptr && options->size != sizeof(hostmm_options)) {
    Explain(EINVAL, "hostmm_open: options->size is %zu, not %zu", options->size,
            sizeof(hostmm_options));
    return static_cast<int>(Finish(-EINVAL));
  }
  return static_cast<int>(Finish(-Open(options != nullptr ? *options : kNoOptions)));
}

HOSTMM_API int hostmm_close() {
  GuestLockHolder hold(g_client.open_lock);
  if (g_client.opens == 0) {
    Explain(ENOTCONN, "hostmm_close(): it is not open");
    return static_cast<int>(Finish(-ENOTCONN));
  }
  // Under `hostmm run` the process stays with its pager.
  if (--g_client.opens == 0 && !IsTransparent()) Leave();
  return 0;
}

HOSTMM_API void* hostmm_mmap(void* addr, size_t length, int prot, int flags, int fd, off_t offset) {
  long result = -EINVAL;
  if (ShareOf(flags) == 0) {
    // As the program's own mmap, which is ours where it can be managed.
    if ((flags & MAP_SHARED_DEDICATED) == 0) {
      result = MapAsProgram(addr, length, prot, flags, fd, offset);
    }
  } else if (!EnsureOpen()) {
    errno = ENOTCONN;
    return MAP_FAILED;
  } else {
    result = MapOptIn(Address(addr), length, prot, flags, fd, static_cast<uint64_t>(offset),
                      Asked::kApi);
  }
  if (raw::Failed(result)) {
    Explain(static_cast<int>(-result), "hostmm_mmap(%p, %zu, prot %d, flags 0x%x, fd %d, %lld)",
            addr, length, prot, static_cast<unsigned>(flags), fd, static_cast<long long>(offset));
  }
  return Pointer(result);
}

HOSTMM_API int hostmm_munmap(void* addr, size_t length) {
  const long result = Manages(Address(addr), length) ? Unmap(Address(addr), length)
                                                     : raw::Call(SYS_munmap, addr, length);
  if (result != 0) Explain(static_cast<int>(-result), "hostmm_munmap(%p, %zu)", addr, length);
  return static_cast<int>(Finish(result));
}

HOSTMM_API void* hostmm_mremap(void* old_addr, size_t old_length, size_t new_length, int flags,
                               void* new_addr) {
  const long result = RemapAsProgram(old_addr, old_length, new_length, flags, new_addr);
  if (raw::Failed(result)) {
    Explain(static_cast<int>(-result), "hostmm_mremap(%p, %zu, %zu, flags %d, %p)", old_addr,
            old_length, new_length, flags, new_addr);
  }
  return Pointer(result);
}

HOSTMM_API int hostmm_mprotect(void* addr, size_t length, int prot) {
  long result = -ENOTCONN;
  if (IsOn()) {
    result = Manages(Address(addr), length) ? Protect(Address(addr), length, prot, Asked::kApi)
                                            : raw::Call(SYS_mprotect, addr, length, prot);
  }
  if (result != 0) {
    Explain(static_cast<int>(-result), "hostmm_mprotect(%p, %zu, prot %d)", addr, length, prot);
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API int hostmm_madvise(void* addr, size_t length, int advice) {
  long result = -ENOTCONN;
  if (IsOn()) {
    result = Manages(Address(addr), length) ? Advise(Address(addr), length, advice, Asked::kApi)
                                            : raw::Call(SYS_madvise, addr, length, advice);
  }
  if (result != 0) {
    Explain(static_cast<int>(-result), "hostmm_madvise(%p, %zu, advice %d)", addr, length, advice);
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API size_t hostmm_granule() { return protocol::kGranule; }

HOSTMM_API int hostmm_is_shared(const void* addr) {
  const long result = IsOn() ? IsShared(Address(addr)) : -ENOTCONN;
  if (result < 0) Explain(static_cast<int>(-result), "hostmm_is_shared(%p)", addr);
  return static_cast<int>(Finish(result));
}

HOSTMM_API int hostmm_shm_open(const char* name, int oflag, mode_t mode, size_t length) {
  const long result = OpenName(name, oflag, mode, length);
  if (result < 0) {
    Explain(static_cast<int>(-result), "hostmm_shm_open(\"%.64s\", 0x%x, 0%o, %zu)",
            name != nullptr ? name : "", static_cast<unsigned>(oflag), mode, length);
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API int hostmm_shm_unlink(const char* name) {
  long result = -EINVAL;
  if (IsName(name)) {
    protocol::Message answer;
    result = EnsureOpen()
                 ? -AskName(NewMessage(protocol::Kind::kUnlinkName), name, &answer, nullptr)
                 : -ENOTCONN;
  }
  if (result < 0) {
    Explain(static_cast<int>(-result), "hostmm_shm_unlink(\"%.64s\")", name != nullptr ? name : "");
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API const char* hostmm_error() { return LastError(); }
