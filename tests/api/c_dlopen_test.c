/* A program that knows the library by dlopen only: its own mmap and mprotect stay what they are.
 *
 *   c_dlopen_test LIBRARY */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "runtime/hostmm_c.h"
#include "tests/api/c_checks.h"

#define GRANULE ((size_t)2 << 20)

/* ISO C has no cast from an object pointer to a function pointer. */
#define FIND(library, name, function)           \
  do {                                          \
    void* found = dlsym(library, name);         \
    CHECK(found != NULL);                       \
    if (found == NULL) return 1;                \
    memcpy(&(function), &found, sizeof(found)); \
  } while (0)

int main(int count, char** arguments) {
  CHECK(count == 2);
  void* library = dlopen(arguments[count - 1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) printf("%s\n", dlerror());
  CHECK(library != NULL);
  if (library == NULL) return 1;
  int (*open_it)(const struct hostmm_options*);
  int (*close_it)(void);
  void* (*map)(void*, size_t, int, int, int, off_t);
  int (*protect)(void*, size_t, int);
  const char* (*why)(void);
  FIND(library, "hostmm_open", open_it);
  FIND(library, "hostmm_close", close_it);
  FIND(library, "hostmm_mmap", map);
  FIND(library, "hostmm_mprotect", protect);
  FIND(library, "hostmm_error", why);
  CHECK(open_it(NULL) == 0);
  char* at =
      map(NULL, GRANULE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  if (at == MAP_FAILED) {
    printf("%s\n", why());
    return 1;
  }
  CHECK(child_can_write(at) == 1);
  CHECK(protect(at, GRANULE, PROT_READ) == 0);
  CHECK(child_can_write(at) == 0);
  CHECK(protect(at, GRANULE, PROT_READ | PROT_WRITE) == 0);
  /* libc's call is one process's own: the child changes nothing for us. Under `hostmm run` it is
   * the library's. */
  const int left = getenv("HOSTMM_SOCKET") == NULL ? 1 : 0;
  int status = -1;
  const pid_t child = fork();
  if (child == 0) _exit(mprotect(at, GRANULE, PROT_READ) == 0 ? 0 : 1);
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(child_can_write(at) == left);
  CHECK(close_it() == 0);
  CHECK(at[0] == 1);
  /* The library stays (it has handlers of fork), so this is allowed and does nothing. */
  CHECK(dlclose(library) == 0);
  CHECK(child_can_write(at) == left);
  if (failed_checks == 0) printf("all checks hold\n");
  return failed_checks == 0 ? 0 : 1;
}
