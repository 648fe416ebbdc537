/* Every function of runtime/hostmm_c.h from plain C, with a pager of the program's own. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "runtime/hostmm_c.h"
#include "tests/api/c_checks.h"

#define GRANULE ((size_t)2 << 20)

static const int kReadWrite = PROT_READ | PROT_WRITE;
static const int kOptIn = MAP_SHARED | MAP_SHARED_PT;

static volatile sig_atomic_t ended_children;
static void on_child(int number) {
  (void)number;
  ++ended_children;
}

static void before_open(void) {
  struct hostmm_options options = {sizeof(options), NULL, NULL, NULL};
  CHECK(hostmm_granule() == GRANULE);
  CHECK(strlen(hostmm_error()) < 1000);
  CHECK(hostmm_close() == -1 && errno == ENOTCONN);
  CHECK(hostmm_mprotect(&options, 1, PROT_READ) == -1 && errno == ENOTCONN);
  CHECK(hostmm_is_shared(&options) == -1 && errno == ENOTCONN);
  options.size = 1;
  CHECK(hostmm_open(&options) == -1 && errno == EINVAL);
  options.size = sizeof(options);
  options.frames = "large";
  CHECK(hostmm_open(&options) == -1 && errno == EINVAL);
  options.frames = NULL;
  options.socket = "/nowhere/socket";
  CHECK(hostmm_open(&options) == -1 && errno == ECONNREFUSED);
  CHECK(strstr(hostmm_error(), "/nowhere/socket") != NULL);
  char path[200];
  memset(path, 'a', sizeof(path) - 1);
  path[0] = '/';
  path[sizeof(path) - 1] = '\0';
  options.socket = path;
  CHECK(hostmm_open(&options) == -1 && errno == ENAMETOOLONG);
  options.socket = NULL;
  options.program = "/nowhere/hostmm";
  CHECK(hostmm_open(&options) == -1 && errno == ENOENT);
  options.program = "/bin/false";
  CHECK(hostmm_open(&options) == -1 && errno == ECHILD);
}

/* A pager of our own is started, and the program does not learn of a child. */
static void open_starts_a_pager(void) {
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_handler = on_child;
  CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
  CHECK(hostmm_open(NULL) == 0);
  CHECK(ended_children == 0);
  CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
  action.sa_handler = SIG_DFL;
  CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
  const struct hostmm_options other = {sizeof(other), "/elsewhere/socket", NULL, NULL};
  CHECK(hostmm_open(&other) == -1 && errno == EBUSY);
}

static void shared_protection(void) {
  char* at = hostmm_mmap(NULL, 2 * GRANULE, kReadWrite, kOptIn | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  if (at == MAP_FAILED) return;
  CHECK((uintptr_t)at % GRANULE == 0);
  CHECK(hostmm_is_shared(at) == 1);
  CHECK(child_can_write(at + 5) == 1);
  CHECK(at[5] == 1);
  /* A child forbids it for the parent. */
  int status = -1;
  const pid_t child = fork();
  if (child == 0) _exit(hostmm_mprotect(at, GRANULE, PROT_READ) == 0 ? 0 : 1);
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(child_can_write(at) == 0);
  CHECK(child_can_write(at + GRANULE) == 1);
  /* Plain mprotect is the library's in a program that is linked with it. */
  CHECK(mprotect(at, GRANULE, kReadWrite) == 0);
  CHECK(child_can_write(at) == 1);
  CHECK(hostmm_mprotect(at + 1, 4096, PROT_READ) == -1 && errno == EINVAL);
  CHECK(strstr(hostmm_error(), "hostmm_mprotect") != NULL);
  CHECK(hostmm_madvise(at, GRANULE, MADV_DONTNEED) == 0);
  CHECK(at[5] == 1);
  CHECK(hostmm_madvise(at, GRANULE, 102) == -1 && errno == EINVAL);
  char* shorter = hostmm_mremap(at, 2 * GRANULE, GRANULE, 0, NULL);
  CHECK(shorter == at);
  CHECK(hostmm_is_shared(at + GRANULE) == -1 && errno == ENOMEM);
  CHECK(hostmm_munmap(at, GRANULE) == 0);
}

static void refused_mappings(void) {
  const int flags = kOptIn | MAP_ANONYMOUS;
  CHECK(hostmm_mmap(NULL, 4096, kReadWrite, flags, -1, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(hostmm_mmap((void*)4096, GRANULE, kReadWrite, flags, -1, 0) == MAP_FAILED &&
        errno == EINVAL);
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite, MAP_SHARED | MAP_SHARED_DEDICATED | MAP_ANONYMOUS,
                    -1, 0) == MAP_FAILED &&
        errno == EINVAL);
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite, kOptIn, 9999, 0) == MAP_FAILED && errno == EBADF);
  const int fd = memfd_create("c_api_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  CHECK(fd >= 0 && ftruncate(fd, (off_t)GRANULE) == 0);
  const int private_flags = MAP_PRIVATE | MAP_SHARED_PT;
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite, private_flags, fd, 0) == MAP_FAILED &&
        errno == EINVAL);
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite, kOptIn, fd, 4096) == MAP_FAILED && errno == EINVAL);
  /* Sealed against writers to come: such a mapping can be read, and never be made writable. */
  CHECK(fcntl(fd, F_ADD_SEALS, 0x10 /* F_SEAL_FUTURE_WRITE */) == 0);
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite, kOptIn, fd, 0) == MAP_FAILED && errno == EPERM);
  char* at = hostmm_mmap(NULL, GRANULE, PROT_READ, kOptIn, fd, 0);
  CHECK(at != MAP_FAILED);
  CHECK(hostmm_mprotect(at, GRANULE, kReadWrite) == -1 && errno == EACCES);
  CHECK(hostmm_munmap(at, GRANULE) == 0);
  close(fd);
}

static void dedicated(void) {
  const int flags = kOptIn | MAP_SHARED_DEDICATED | MAP_ANONYMOUS;
  char* at = hostmm_mmap(NULL, GRANULE, kReadWrite, flags, -1, 0);
  CHECK(at != MAP_FAILED);
  CHECK(mprotect(at, GRANULE, PROT_READ) == -1 && errno == EPERM);
  CHECK(child_can_write(at) == 1);
  CHECK(hostmm_mprotect(at, GRANULE, PROT_READ) == 0);
  CHECK(child_can_write(at) == 0);
  CHECK(hostmm_munmap(at, GRANULE) == 0);
}

static void named(void) {
  CHECK(hostmm_shm_open("pool", O_RDWR, 0, 0) == -1 && errno == ENOENT);
  const int fd = hostmm_shm_open("pool", O_RDWR | O_CREAT | O_EXCL, 0600, 1);
  struct stat info;
  CHECK(fd >= 0 && fstat(fd, &info) == 0 && (size_t)info.st_size == GRANULE);
  CHECK(hostmm_shm_open("pool", O_RDWR | O_CREAT | O_EXCL, 0600, 1) == -1 && errno == EEXIST);
  CHECK(hostmm_shm_open("a/b", O_RDWR, 0, 0) == -1 && errno == EINVAL);
  const int reader = hostmm_shm_open("pool", O_RDONLY, 0, 0);
  CHECK(reader >= 0);
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite, kOptIn, reader, 0) == MAP_FAILED && errno == EACCES);
  char* one = hostmm_mmap(NULL, GRANULE, kReadWrite, kOptIn, fd, 0);
  const char* two = hostmm_mmap(NULL, GRANULE, PROT_READ, kOptIn, reader, 0);
  CHECK(one != MAP_FAILED && two != MAP_FAILED);
  if (one == MAP_FAILED || two == MAP_FAILED) return;
  one[7] = 7;
  CHECK(two[7] == 7);
  CHECK(hostmm_shm_unlink("pool") == 0);
  CHECK(hostmm_shm_unlink("pool") == -1 && errno == ENOENT);
  CHECK(two[7] == 7);
  close(fd);
  close(reader);
}

static void closing(void) {
  char* at = hostmm_mmap(NULL, GRANULE, kReadWrite, kOptIn | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  at[9] = 9;
  CHECK(hostmm_open(NULL) == 0);
  CHECK(hostmm_close() == 0);
  CHECK(hostmm_mprotect(at, GRANULE, PROT_READ) == 0);
  CHECK(hostmm_mprotect(at, GRANULE, kReadWrite) == 0);
  CHECK(hostmm_close() == 0);
  CHECK(hostmm_close() == -1 && errno == ENOTCONN);
  CHECK(hostmm_mprotect(at, GRANULE, PROT_READ) == -1 && errno == ENOTCONN);
  CHECK(at[9] == 9);
  CHECK(child_can_write(at) == 1);
  /* Plain memory of this process now. */
  CHECK(mprotect(at, GRANULE, PROT_READ) == 0);
  CHECK(child_can_write(at) == 0);
  CHECK(munmap(at, GRANULE) == 0);
}

int main(void) {
  before_open();
  open_starts_a_pager();
  shared_protection();
  refused_mappings();
  dedicated();
  named();
  closing();
  /* And again, with another pager, which the first mapping starts. */
  shared_protection();
  CHECK(hostmm_close() == 0);
  if (failed_checks == 0) printf("all checks hold\n");
  return failed_checks == 0 ? 0 : 1;
}
