/* Opt-in sharing from plain C: one flag of mmap. Each process keeps its own mapping; page tables
 * and protection are everybody's.
 *
 *   opt_in                     with a pager of its own
 *
 * Shows that a page table is shared, that a mapping that did not opt in keeps its own protection,
 * and that one mprotect reaches the child. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/hostmm_c.h"

static void check(int holds, const char *what) {
  printf("%s: %s\n", what, holds ? "yes" : "NO");
  if (!holds) {
    fprintf(stderr, "%s\n", hostmm_error());
    exit(1);
  }
}

/* 1 if a child can write there, 0 if it is ended by a signal. */
static int child_can_write(volatile char *at) {
  int status = 0;
  const pid_t child = fork();
  if (child == 0) {
    *at = 1;
    _exit(0);
  }
  return waitpid(child, &status, 0) == child && WIFEXITED(status);
}

int main(void) {
  const size_t bytes = 8 * hostmm_granule();
  const int rw = PROT_READ | PROT_WRITE;
  const int file = memfd_create("example", MFD_CLOEXEC);
  check(file >= 0 && ftruncate(file, (off_t)bytes) == 0, "a file of 16 MiB");

  char *shared = hostmm_mmap(NULL, bytes, rw, MAP_SHARED | MAP_SHARED_PT, file, 0);
  check(shared != MAP_FAILED, "mapped with MAP_SHARED_PT");
  char *plain = hostmm_mmap(NULL, bytes, rw, MAP_SHARED, file, 0);
  check(plain != MAP_FAILED, "mapped again without it");
  shared[0] = 'x';
  check(plain[0] == 'x', "both show the same memory");
  check(hostmm_is_shared(shared) == 1, "the first has page tables to share");

  /* The library's mprotect: hostmm_mprotect is the same by a name of its own. */
  check(mprotect(shared, bytes, PROT_READ) == 0, "mprotect to read-only");
  check(!child_can_write(shared), "no process can write through the first");
  check(child_can_write(plain), "the second is as it was");
  check(hostmm_mprotect(shared, bytes, rw) == 0, "and back");
  check(child_can_write(shared), "writable again");

  check(hostmm_munmap(shared, bytes) == 0 && hostmm_munmap(plain, bytes) == 0, "unmapped");
  return 0;
}
