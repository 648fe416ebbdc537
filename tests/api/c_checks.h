/* What the C tests of the API share: a check that names its line, and a child that is asked one
 * thing.
 *
 * Errors: a check that fails is printed; FailedChecks() is the exit status of the program. */
#ifndef HOSTMM_TESTS_API_C_CHECKS_H_
#define HOSTMM_TESTS_API_C_CHECKS_H_

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed_checks;

#define CHECK(condition)                                                                          \
  do {                                                                                            \
    if (!(condition)) {                                                                           \
      printf("%s:%d: %s is false (errno %s)\n", __FILE__, __LINE__, #condition, strerror(errno)); \
      ++failed_checks;                                                                            \
    }                                                                                             \
  } while (0)

/* 1 if a child can write to `at`, 0 if SIGSEGV ends it, -1 for anything else. */
static int child_can_write(volatile char* at) {
  int status = 0;
  const pid_t child = fork();
  if (child == 0) {
    *at = 1;
    _exit(0);
  }
  if (child < 0 || waitpid(child, &status, 0) != child) return -1;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return 1;
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV ? 0 : -1;
}

#endif /* HOSTMM_TESTS_API_C_CHECKS_H_ */
