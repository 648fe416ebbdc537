/* The functions of snapshots from plain C: what they do, what they refuse, and what they say of it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "runtime/hostmm_c.h"
#include "tests/api/c_checks.h"

#define BYTES ((size_t)8 << 20)

static const int kReadWrite = PROT_READ | PROT_WRITE;

static int says(const char* text) { return strstr(hostmm_error(), text) != NULL; }

static void before_open(void) {
  int local = 0;
  CHECK(hostmm_snapshot(&local) == -1 && errno == ENOTCONN && says("hostmm_snapshot("));
  CHECK(hostmm_snapshot_info(-1, NULL) == -1 && errno == EBADF && says("hostmm_snapshot_info(-1)"));
  CHECK(hostmm_snapshot_map(-1, NULL, BYTES, PROT_READ, 0) == MAP_FAILED && errno == EBADF);
  CHECK(says("hostmm_snapshot_map(-1"));
  CHECK(hostmm_snapshot_export(-1, 1, NULL) == -1 && errno == EBADF);
  CHECK(says("hostmm_snapshot_export(-1, 1)"));
  /* Copy-on-write memory is plain private memory. */
  char* at = mmap(NULL, BYTES, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_PRIVATE_COW, -1, 0);
  CHECK(at != MAP_FAILED);
  at[0] = 1;
  CHECK(child_can_write(at) == 1);
  CHECK(at[0] == 1);
  CHECK(munmap(at, BYTES) == 0);
}

static void one_snapshot(void) {
  char* at =
      hostmm_mmap(NULL, BYTES, kReadWrite, MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  if (at == MAP_FAILED) return;
  at[0] = 1;
  at[4096] = 1;
  const int snapshot = hostmm_snapshot(at + 5);
  CHECK(snapshot >= 0);
  CHECK((fcntl(snapshot, F_GETFD) & FD_CLOEXEC) != 0);
  at[0] = 2;
  char* view = hostmm_snapshot_map(snapshot, NULL, BYTES, PROT_READ, 0);
  CHECK(view != MAP_FAILED);
  if (view == MAP_FAILED) return;
  CHECK(view[0] == 1 && view[4096] == 1 && view[8192] == 0);
  CHECK(hostmm_mprotect(view, 4096, kReadWrite) == -1 && errno == EACCES &&
        says("hostmm_mprotect"));

  struct hostmm_snapshot_info info;
  memset(&info, 0, sizeof(info));
  CHECK(hostmm_snapshot_info(snapshot, &info) == -1 && errno == EINVAL);
  info.size = sizeof(info);
  CHECK(hostmm_snapshot_info(snapshot, &info) == 0);
  CHECK(info.length == BYTES && info.views == 1 && info.pages_copied == 1);
  CHECK(info.unit == 4096 && info.copied_bytes == 4096);

  CHECK(hostmm_snapshot_map(snapshot, view, 4096, PROT_READ, 0) == MAP_FAILED && errno == EEXIST);
  CHECK(hostmm_snapshot_map(snapshot, NULL, 4096, PROT_READ, 1) == MAP_FAILED && errno == EINVAL);
  CHECK(hostmm_snapshot_map(snapshot, NULL, 0, PROT_READ, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(hostmm_snapshot_map(snapshot, NULL, 4096, PROT_NONE, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(hostmm_snapshot_map(snapshot, NULL, 4096, PROT_WRITE, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(hostmm_snapshot_map(snapshot, NULL, 4096, PROT_READ, -4096) == MAP_FAILED &&
        errno == EINVAL);
  CHECK(hostmm_snapshot_map(snapshot, NULL, BYTES + 4096, PROT_READ, 0) == MAP_FAILED &&
        errno == EINVAL);

  /* The handle may go before the view. */
  CHECK(close(snapshot) == 0);
  at[4096] = 2;
  CHECK(view[4096] == 1);
  CHECK(munmap(view, BYTES) == 0);
  CHECK(hostmm_munmap(at, BYTES) == 0);
}

static void refused_exports(void) {
  char* at =
      hostmm_mmap(NULL, BYTES, kReadWrite, MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  const int snapshot = hostmm_snapshot(at);
  CHECK(snapshot >= 0);
  const int read_only = open("/dev/null", O_RDONLY);
  const int null = open("/dev/null", O_WRONLY);
  struct hostmm_export options;
  memset(&options, 0, sizeof(options));
  options.size = 1;
  options.earlier = -1;
  CHECK(hostmm_snapshot_export(snapshot, null, &options) == -1 && errno == EINVAL);
  options.size = sizeof(options);
  options.resume = 1; /* no file */
  CHECK(hostmm_snapshot_export(snapshot, null, &options) == -1 && errno == EINVAL);
  options.resume = 0;
  options.earlier = null; /* no handle */
  CHECK(hostmm_snapshot_export(snapshot, null, &options) == -1 && errno == EBADF);
  CHECK(hostmm_snapshot_export(snapshot, read_only, NULL) == -1 && errno == EBADF);
  CHECK(hostmm_snapshot_export(snapshot, 9999, NULL) == -1 && errno == EBADF);
  CHECK(hostmm_snapshot_export(null, null, NULL) == -1 && errno == EBADF);
  close(read_only);
  close(null);
  close(snapshot);
  CHECK(hostmm_munmap(at, BYTES) == 0);
}

static void refused_images(void) {
  static char memory[8192];
  memset(memory, 7, sizeof(memory));
  const int fd = memfd_create("c_snapshot_test", MFD_CLOEXEC);
  CHECK(fd >= 0);
  CHECK(hostmm_image_load(9999, memory, sizeof(memory)) == -1 && errno == EBADF);
  CHECK(hostmm_image_load(fd, memory, sizeof(memory)) == -1 && errno == EINVAL);
  CHECK(says("hostmm_image_load("));
  CHECK(write(fd, memory, sizeof(memory)) == (ssize_t)sizeof(memory));
  CHECK(lseek(fd, 0, SEEK_SET) == 0);
  CHECK(hostmm_image_load(fd, memory, sizeof(memory)) == -1 && errno == EINVAL);
  CHECK(memory[0] == 7 && memory[sizeof(memory) - 1] == 7);
  close(fd);
}

/* A handle of a pager that has gone. */
static void after_close(void) {
  char* at =
      hostmm_mmap(NULL, BYTES, kReadWrite, MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  const int snapshot = hostmm_snapshot(at);
  CHECK(snapshot >= 0);
  CHECK(hostmm_close() == 0);
  CHECK(hostmm_snapshot_info(snapshot, NULL) == -1 && errno == EIO);
  CHECK(hostmm_snapshot(at) == -1 && errno == ENOTCONN);
  at[0] = 3;
  close(snapshot);
  CHECK(munmap(at, BYTES) == 0);
}

int main(void) {
  before_open();
  CHECK(hostmm_open(NULL) == 0);
  one_snapshot();
  refused_exports();
  refused_images();
  after_close();
  if (failed_checks == 0) printf("all checks hold\n");
  return failed_checks == 0 ? 0 : 1;
}
