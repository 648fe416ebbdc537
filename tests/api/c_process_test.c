/* What a pager of its own does not do to a program: closed standard files, children that it waits
 * for, handlers that fork, a pager that is gone, pagers one after another. Each case is a process
 * of its own. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>

#include "runtime/hostmm_c.h"
#include "tests/api/c_checks.h"

#define GRANULE ((size_t)2 << 20)

static const int kReadWrite = PROT_READ | PROT_WRITE;

/* Where pagers of the program's own have their sockets. */
static char places[] = "/tmp/c-process-XXXXXX";

static char* map_opt_in(size_t bytes) {
  return hostmm_mmap(NULL, bytes, kReadWrite, MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS, -1, 0);
}

/* The first socket below `places`; 0 if there is none. */
static int find_socket(struct sockaddr_un* address) {
  int found = 0;
  DIR* folder = opendir(places);
  for (struct dirent* entry; folder != NULL && !found && (entry = readdir(folder)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    address->sun_family = AF_UNIX;
    found = snprintf(address->sun_path, sizeof(address->sun_path), "%s/%.40s/socket", places,
                     entry->d_name) < (int)sizeof(address->sun_path);
  }
  if (folder != NULL) closedir(folder);
  return found;
}

/* The process that serves it, -1 if nobody does. */
static pid_t find_pager(void) {
  struct sockaddr_un address;
  struct ucred server = {-1, 0, 0};
  socklen_t bytes = sizeof(server);
  memset(&address, 0, sizeof(address));
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (find_socket(&address) && connect(fd, (struct sockaddr*)&address, sizeof(address)) == 0) {
    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &server, &bytes);
  }
  close(fd);
  return server.pid;
}

static void works(void) {
  char* at = map_opt_in(GRANULE);
  CHECK(at != MAP_FAILED);
  if (at == MAP_FAILED) return;
  CHECK(child_can_write(at) == 1);
  CHECK(hostmm_mprotect(at, GRANULE, PROT_READ) == 0);
  CHECK(child_can_write(at) == 0);
}

static void standard_files_are_closed(void) {
  const int kept = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 20);
  for (int fd = 0; fd <= STDERR_FILENO; ++fd) close(fd);
  const int opened = hostmm_open(NULL);
  const int error = errno;
  dup2(kept, STDOUT_FILENO);
  errno = error;
  CHECK(opened == 0);
  works();
}

/* The pager must not keep what the program has open. */
static void a_pipe_is_not_held(void) {
  int ends[2];
  char byte;
  CHECK(pipe(ends) == 0);
  for (int i = 0; i < 300; ++i) CHECK(dup(ends[1]) >= 0);
  CHECK(hostmm_open(NULL) == 0);
  for (int fd = ends[1]; fd < 400; ++fd) {
    if (fd != ends[0] && fcntl(fd, F_GETFD) >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0) {
      close(fd);
    }
  }
  struct pollfd wait = {ends[0], POLLIN, 0};
  CHECK(poll(&wait, 1, 10000) == 1 && read(ends[0], &byte, 1) == 0);
}

static void no_child_is_seen(void) {
  signal(SIGCHLD, SIG_IGN);
  CHECK(hostmm_open(NULL) == 0);
  CHECK(waitpid(-1, NULL, __WALL) == -1 && errno == ECHILD);
  signal(SIGCHLD, SIG_DFL);
  works();
}

static void an_empty_name_is_none(void) {
  const struct hostmm_options options = {sizeof(options), "", NULL, NULL};
  CHECK(hostmm_open(&options) == -1 && errno == ECONNREFUSED);
  CHECK(setenv("HOSTMM_SOCKET", "", 1) == 0);
  CHECK(hostmm_open(NULL) == 0);
  works();
}

static void a_long_name_is_refused(void) {
  char path[300];
  memset(path, 'a', sizeof(path) - 1);
  path[0] = '/';
  path[sizeof(path) - 1] = '\0';
  CHECK(setenv("HOSTMM_SOCKET", path, 1) == 0);
  CHECK(hostmm_open(NULL) == -1 && errno == ENAMETOOLONG);
}

/* A child must not tell the second pager of memory that was the first one's. */
static void another_pager(void) {
  CHECK(hostmm_open(NULL) == 0);
  char* old = map_opt_in(4 * GRANULE);
  CHECK(old != MAP_FAILED);
  old[0] = 3;
  CHECK(hostmm_close() == 0);
  CHECK(hostmm_open(NULL) == 0);
  CHECK(hostmm_is_shared(old) == -1 && errno == ENOMEM);
  works();
  CHECK(child_can_write(old) == 1 && child_can_write(old + 3 * GRANULE) == 1);
  CHECK(old[0] == 1 && old[3 * GRANULE] == 1);
}

/* As many files as an agent can watch, and not one more. */
static void too_many_files(void) {
  char* at[200];
  int count = 0;
  while (count < 200 && (at[count] = map_opt_in(GRANULE)) != MAP_FAILED) ++count;
  CHECK(count > 1 && count < 200 && errno == ENOSPC);
  CHECK(hostmm_mprotect(at[count - 1], GRANULE, PROT_READ) == 0);
  CHECK(hostmm_munmap(at[0], GRANULE) == 0);
  works();
}

/* What cannot be had leaves what stands there. */
static void refused_in_place(void) {
  char* room = mmap(NULL, 2 * GRANULE, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char* at = room + (GRANULE - (size_t)room % GRANULE) % GRANULE;
  at[0] = 7;
  CHECK(hostmm_mmap(at, GRANULE, kReadWrite,
                    MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
                    0) == MAP_FAILED &&
        errno == EEXIST);
  CHECK(hostmm_mmap(NULL, GRANULE, kReadWrite,
                    MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED &&
        errno == EPERM);
  CHECK(at[0] == 7);
}

static void the_pager_is_killed(void) {
  char* at = map_opt_in(GRANULE);
  CHECK(at != MAP_FAILED);
  at[0] = 5;
  const pid_t pager = find_pager();
  CHECK(pager > 0 && kill(pager, SIGKILL) == 0);
  CHECK(hostmm_mprotect(at, GRANULE, PROT_READ) == -1 && errno == ENOTCONN);
  CHECK(at[0] == 5);
  /* Plain memory now, and no other pager in the place of the one that held it. */
  CHECK(mprotect(at, GRANULE, PROT_READ) == 0);
  CHECK(child_can_write(at) == 0);
  CHECK(map_opt_in(GRANULE) == MAP_FAILED && errno == ENOTCONN);
  CHECK(hostmm_shm_open("name", O_RDWR | O_CREAT, 0600, GRANULE) == -1 && errno == ENOTCONN);
  CHECK(mmap(NULL, GRANULE, kReadWrite, MAP_SHARED | MAP_SHARED_PT | MAP_ANONYMOUS, -1, 0) !=
        MAP_FAILED);
  CHECK(hostmm_close() == 0);
  CHECK(hostmm_open(NULL) == 0);
  works();
}

static pid_t forking_process;
static volatile sig_atomic_t forks;
static volatile sig_atomic_t timer_is_set;
static void fork_in_handler(int number) {
  (void)number;
  const int error = errno;
  if (getpid() == forking_process && fork() > 0) ++forks;
  timer_is_set = 0;
  errno = error;
}

/* Once: a handler may take longer than any period, and then nothing else would run. */
static void set_timer(void) {
  const struct itimerval soon = {{0, 0}, {0, 5000}};
  timer_is_set = 1;
  CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
}

/* A handler forks while its thread waits for a protection: both go on, each with its own answer. */
static void handlers_fork(void) {
  char* at = map_opt_in(8 * GRANULE);
  CHECK(at != MAP_FAILED);
  forking_process = getpid();
  struct sigaction action;
  memset(&action, 0, sizeof(action));
  action.sa_handler = fork_in_handler;
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  const struct itimerval never = {{0, 0}, {0, 0}};
  int result = 0;
  for (int i = 0; i < 5000 && forks < 40 && result == 0; ++i) {
    if (!timer_is_set) set_timer();
    result = hostmm_mprotect(at, 8 * GRANULE, i % 2 == 0 ? PROT_READ : kReadWrite);
    if (getpid() != forking_process) _exit(result == 0 ? 0 : 1);
  }
  CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
  CHECK(result == 0);
  CHECK(forks > 0);
  for (int status = 0; wait(&status) > 0;) CHECK(status == 0);
}

/* exec leaves nothing: the new program is attached to nobody. */
static void exec_is_not_attached(void) {
  CHECK(hostmm_open(NULL) == 0);
  int status = -1;
  const pid_t child = fork();
  if (child == 0) {
    execl("/bin/sh", "sh", "-c",
          "test -z \"$HOSTMM_SOCKET\" && ! grep -q hostmm-agent /proc/$$/task/*/comm", (char*)NULL);
    _exit(127);
  }
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void run(const char* name, void (*test)(void)) {
  int status = -1;
  fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    failed_checks = 0;
    test();
    fflush(stdout);
    _exit(failed_checks == 0 ? 0 : 1);
  }
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  printf("%s: %s\n", name, status == 0 ? "holds" : "FAILS");
}

/* The folder of a pager that has ended in peace is gone, soon after the last process that it
 * served. */
static void nothing_is_left(void) {
  struct sockaddr_un address;
  int left = 1;
  for (int i = 0; i < 1000 && (left = find_socket(&address)) != 0; ++i) poll(NULL, 0, 20);
  CHECK(left == 0);
}

int main(void) {
  if (mkdtemp(places) == NULL || setenv("XDG_RUNTIME_DIR", places, 1) != 0) return 2;
  unsetenv("HOSTMM_SOCKET");
  run("standard_files_are_closed", standard_files_are_closed);
  run("a_pipe_is_not_held", a_pipe_is_not_held);
  run("no_child_is_seen", no_child_is_seen);
  run("an_empty_name_is_none", an_empty_name_is_none);
  run("a_long_name_is_refused", a_long_name_is_refused);
  run("another_pager", another_pager);
  run("too_many_files", too_many_files);
  run("refused_in_place", refused_in_place);
  run("handlers_fork", handlers_fork);
  run("exec_is_not_attached", exec_is_not_attached);
  nothing_is_left();
  /* Last: a killed pager leaves its folder. */
  run("the_pager_is_killed", the_pager_is_killed);
  char command[64];
  snprintf(command, sizeof(command), "rm -rf %s", places);
  CHECK(system(command) == 0);
  if (failed_checks == 0) printf("all checks hold\n");
  return failed_checks == 0 ? 0 : 1;
}
