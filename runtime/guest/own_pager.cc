#include "runtime/guest/own_pager.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/guest/guest_lock.h"

extern char** environ;

namespace hostmm::guest {
namespace {

// A pager is ready within milliseconds; arbitrary, for a machine that is busy.
constexpr int kReadyMilliseconds = 20'000;

bool IsProgram(const char* path) {
  struct stat info;
  return stat(path, &info) == 0 && S_ISREG(info.st_mode) && access(path, X_OK) == 0;
}

// Whether DIR/`rest` is a program; then it is in `path`.
bool Try(const char* dir, size_t dir_length, const char* rest, char* path) {
  const int length = snprintf(path, PATH_MAX, "%.*s/%s", static_cast<int>(dir_length), dir, rest);
  return length > 0 && length < PATH_MAX && IsProgram(path);
}

bool FindBesideLibrary(char* path) {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&FindBesideLibrary), &info) == 0) return false;
  const char* slash = info.dli_fname != nullptr ? strrchr(info.dli_fname, '/') : nullptr;
  if (slash == nullptr) return false;
  const auto length = static_cast<size_t>(slash - info.dli_fname);
  return Try(info.dli_fname, length, "../bin/hostmm", path) ||
         Try(info.dli_fname, length, "hostmm", path) ||
         Try(info.dli_fname, length, "../hostmm", path);
}

bool FindInPath(char* path) {
  const char* list = secure_getenv("PATH");
  while (list != nullptr && *list != '\0') {
    const char* end = strchrnul(list, ':');
    if (end != list && Try(list, static_cast<size_t>(end - list), "hostmm", path)) return true;
    list = *end == ':' ? end + 1 : end;
  }
  return false;
}

bool FindProgram(const char* asked, char* path) {
  const char* named = asked != nullptr ? asked : secure_getenv("HOSTMM_PROGRAM");
  if (named != nullptr && *named != '\0') {
    return strlen(named) < PATH_MAX && IsProgram(strcpy(path, named));
  }
  return FindBesideLibrary(path) || FindInPath(path);
}

// A new folder that only this user can enter, in the first of the usual places that lets us.
bool MakeFolder(char* folder, size_t bytes) {
  const char* const places[] = {secure_getenv("XDG_RUNTIME_DIR"), secure_getenv("TMPDIR"), "/tmp"};
  for (const char* place : places) {
    if (place == nullptr || *place != '/') continue;
    const int length = snprintf(folder, bytes, "%s/hostmm-XXXXXX", place);
    if (length < 0 || static_cast<size_t>(length) >= bytes) continue;
    if (mkdtemp(folder) != nullptr) return true;
  }
  return false;
}

struct Start {
  char* const* arguments;
  int ready_write;
};

// A program that has closed a standard file gives its number to whatever the pager opens next.
void OpenStandardFiles() {
  int null = 0;
  while (null >= 0 && null <= STDERR_FILENO) null = open("/dev/null", O_RDWR);
  if (null >= 0) close(null);
}

// In a new process, which shares the memory of its parent: nothing but system calls. It makes the
// pager and ends, so that the pager is nobody's child that the program would have to reap.
int Exec(void* argument) {
  const auto* start = static_cast<const Start*>(argument);
  if (vfork() == 0) {
    OpenStandardFiles();
    fcntl(start->ready_write, F_SETFD, 0);
    setsid();
    execve(start->arguments[0], start->arguments, environ);
    _exit(127);
  }
  _exit(0);
}

// Runs the program. The exit signal of what is started here is none, so that the program never
// learns of it. RETURNS 0 or an errno.
int Spawn(const Start& start) {
  constexpr size_t kStackBytes = 64 << 10;
  void* stack =
      mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED) return errno;
  // A handler of the program must not run there; the pager unblocks what it wants.
  const uint64_t mask = BlockSignals();
  const int pid = clone(Exec, static_cast<char*>(stack) + kStackBytes, CLONE_VM | CLONE_VFORK,
                        const_cast<Start*>(&start));
  const int error = errno;
  RestoreSignals(mask);
  if (pid > 0) {
    while (waitpid(pid, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }
  munmap(stack, kStackBytes);
  return pid > 0 ? 0 : error;
}

int64_t NowMilliseconds() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

// The pager's first line ("mode=..." or "error=..."), without its end. Empty: it ended, or says
// nothing.
void ReadLine(int fd, char* line, size_t bytes) {
  size_t used = 0;
  const int64_t until = NowMilliseconds() + kReadyMilliseconds;
  while (used + 1 < bytes) {
    pollfd wait = {fd, POLLIN, 0};
    const int64_t left = until - NowMilliseconds();
    const int ready = left > 0 ? poll(&wait, 1, static_cast<int>(left)) : 0;
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) break;
    const ssize_t got = read(fd, line + used, bytes - 1 - used);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    used += static_cast<size_t>(got);
    if (memchr(line, '\n', used) != nullptr) break;
  }
  line[used] = '\0';
  line[strcspn(line, "\n")] = '\0';
}

int Fail(int error, char* why, size_t bytes, const char* what) {
  snprintf(why, bytes, "%s", what);
  return error;
}

int Run(const char* program, const char* frames, const char* folder, char* why, size_t why_bytes) {
  int ready[2];
  if (pipe2(ready, O_CLOEXEC) != 0) return Fail(errno, why, why_bytes, "no descriptor for a pipe");
  // Not the number of a standard file that the program has closed.
  const int write_end = fcntl(ready[1], F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  const int no_number = errno;
  close(ready[1]);
  if (write_end < 0) {
    close(ready[0]);
    return Fail(no_number, why, why_bytes, "no descriptor for a pipe");
  }
  char socket_argument[160];
  char ready_argument[24];
  char frames_argument[24];
  snprintf(socket_argument, sizeof(socket_argument), "--socket=%s/socket", folder);
  snprintf(ready_argument, sizeof(ready_argument), "--ready-fd=%d", write_end);
  snprintf(frames_argument, sizeof(frames_argument), "--frames=%s", frames);
  const char* arguments[] = {program,        "pager",         socket_argument, "--until-last-guest",
                             ready_argument, frames_argument, nullptr};
  const int failed = Spawn({const_cast<char* const*>(arguments), write_end});
  close(write_end);
  if (failed != 0) {
    close(ready[0]);
    return Fail(failed, why, why_bytes, "the pager could not be started");
  }
  char line[512];
  ReadLine(ready[0], line, sizeof(line));
  close(ready[0]);
  if (strncmp(line, "mode=", 5) == 0) return 0;
  const char* reason = strncmp(line, "error=", 6) == 0 ? line + 6 : "the pager ended at once";
  snprintf(why, why_bytes, "%s: %s", program, reason);
  return ECHILD;
}

}  // namespace

int StartOwnPager(const OwnPager& ask, char* socket, size_t socket_bytes, char* why,
                  size_t why_bytes) {
  char program[PATH_MAX];
  if (!FindProgram(ask.program, program)) {
    return Fail(ENOENT, why, why_bytes,
                "no hostmm program was found; remedy: set HOSTMM_PROGRAM or options.program");
  }
  char folder[96];
  if (!MakeFolder(folder, sizeof(folder))) {
    return Fail(errno, why, why_bytes, "no folder for a socket; remedy: set XDG_RUNTIME_DIR");
  }
  const int error =
      Run(program, ask.frames != nullptr ? ask.frames : "auto", folder, why, why_bytes);
  if (error != 0) {
    rmdir(folder);
    return error;
  }
  snprintf(socket, socket_bytes, "%s/socket", folder);
  return 0;
}

}  // namespace hostmm::guest
