// Programs that the test steers while it stops, kills and restarts their pager. They say a word and
// wait on a file beside the pager's socket, the only thing that both sides know.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

constexpr size_t kBlock = 2 * kMib;
constexpr size_t kBytes = 16 * kBlock;

std::atomic<bool> g_told = false;
void OnTold(int) { g_told = true; }

// Says `word` and waits for the test's SIGUSR1.
void SayAndWait(const char* word) {
  Say("%s", word);
  MUST(Eventually([] { return g_told.load(); }));
  g_told = false;
}

char* Start() {
  signal(SIGUSR1, OnTold);
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  Fill(at, kBlock, 1);
  return at;
}

// All that a program may do with its memory; each step is plain Linux when no pager is left.
void UseEverything(char* at) {
  Fill(at + kBlock, kBlock, 2);
  Say("holes are filled %d", Holds(at, kBlock, 1) && Holds(at + kBlock, kBlock, 2));
  Say("child %d", InChild([at] {
        Fill(at + 2 * kBlock, kBlock, 3);
        char* mine = MapShared(kManagedBytes);
        if (mine == MAP_FAILED) return 1;
        Fill(mine, kManagedBytes, 4);
        return Holds(mine, kManagedBytes, 4) && munmap(mine, kManagedBytes) == 0 ? 0 : 2;
      }));
  Say("sees %d", Holds(at + 2 * kBlock, kBlock, 3));
  char* more = MustMapShared(kManagedBytes);
  Fill(more, kManagedBytes, 5);
  Say("more %d", Holds(more, kManagedBytes, 5));
  Say("protect %s", Outcome(mprotect(at, kBlock, PROT_READ)));
  Say("denied %s", TryWrite(at).c_str());
  Say("remove %s", Outcome(madvise(at + kBlock, kBlock, MADV_REMOVE)));
  Say("reads %d", at[kBlock]);
  Say("unmap %s %s", Outcome(munmap(at + 3 * kBlock, kBlock)),
      Outcome(munmap(more, kManagedBytes)));
}

}  // namespace

// Idle when the pager dies.
HOSTMM_CASE(Idle) {
  char* at = Start();
  SayAndWait("ready");
  UseEverything(at);
}

// Eight threads touch holes without a pause, over and over; the test does what it does meanwhile.
HOSTMM_CASE(Faulting) {
  char* at = Start();
  std::atomic<bool> stop = false;
  std::atomic<size_t> touched = 0;
  std::vector<std::thread> threads;
  for (size_t id = 0; id < 8; ++id) {
    threads.emplace_back([&, id] {
      // Each in a block of its own, so that it may remove what it has touched.
      char* mine = at + (8 + id) * kBlock;
      for (size_t page = 0; !stop; page = (page + 1) % 512) {
        mine[page * 4096] = 1;
        ++touched;
        if (page == 511) madvise(mine, kBlock, MADV_REMOVE);
      }
    });
  }
  MUST(Eventually([&] { return touched > 100; }));
  SayAndWait("ready");
  const size_t before = touched;
  const bool on = Eventually([&] { return touched > before + 100'000; });
  Say("faults go on %d", on);
  stop = true;
  for (std::thread& thread : threads) thread.join();
  UseEverything(at);
}

// Threads that are surely waiting in a fault: the test has stopped the pager before it lets them.
HOSTMM_CASE(Waiting) {
  char* at = Start();
  SayAndWait("ready");
  std::atomic<size_t> done = 0;
  std::vector<std::thread> threads;
  for (size_t id = 0; id < 8; ++id) {
    threads.emplace_back([&, id] {
      at[(4 + id) * kBlock] = 1;
      ++done;
    });
  }
  // A child that waits too, with a userfaultfd of its own that no pager has seen.
  const pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    at[12 * kBlock] = 1;
    _exit(0);
  }
  SayAndWait("waiting");
  MUST(Eventually([&] { return done == 8; }));
  Say("all came back, child %d", WaitFor(child));
  for (std::thread& thread : threads) thread.join();
  UseEverything(at);
}

// As daemons do: standard error is closed, and a data file gets its number. What hostmm has to say
// when the pager dies goes nowhere then.
HOSTMM_CASE(DataFileIsStandardError) {
  char* at = Start();
  const char* folder = getenv("TEST_TMPDIR");
  std::string path = std::string(folder == nullptr ? "/var/tmp" : folder) + "/data.XXXXXX";
  close(STDERR_FILENO);
  const int file = mkstemp(path.data());
  MUST(file == STDERR_FILENO && unlink(path.c_str()) == 0);
  MUST(write(file, "before ", 7) == 7);
  SayAndWait("ready");
  UseEverything(at);
  MUST(write(file, "after", 5) == 5);
  char content[256];
  const ssize_t size = pread(file, content, sizeof(content), 0);
  Say("the file holds '%.*s'", static_cast<int>(size), content);
}

// A program of the same pager path that starts after all this.
HOSTMM_CASE(Newcomer) {
  char* at = Start();
  UseEverything(at);
}

HOSTMM_CASE(TellsWhetherManaged) {
  char* at = MustMapShared(kBytes);
  at[kMib] = 1;
  // (By count: the agent is there when mmap returns, but may not have named itself yet.)
  Say("descriptors %zu agent %zu", DescriptorCount(), ThreadCount() - 1);
}

HOSTMM_CASE(ForkBomb) {
  // For `kill -9` of a whole tree: processes that fault until they are killed.
  char* at = Start();
  for (int i = 0; i < 5; ++i) {
    if (fork() == 0) break;
  }
  Say("faulting");
  for (size_t page = 0;; page = (page + 1) % (kBytes / 4096)) {
    at[page * 4096] = 1;
    if (page == 0) madvise(at, kBytes, MADV_REMOVE);
  }
}

}  // namespace hostmm::test
