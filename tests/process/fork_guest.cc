// fork in every form, exec, and processes that end in the middle of things.
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <latch>
#include <mutex>
#include <thread>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

constexpr size_t kBlock = 2 * kMib;

std::atomic<uint32_t>& Counter(char* at) { return *reinterpret_cast<std::atomic<uint32_t>*>(at); }

std::vector<char*> Pointers(std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  return argv;
}

int Descend(char* at, size_t depth, size_t deepest) {
  // Every generation sees what all before it wrote, touches a hole of its own, and goes on.
  for (size_t before = 0; before < depth; ++before) {
    if (!Holds(at + before * kBlock, kBlock / 4, before)) return static_cast<int>(1 + before);
  }
  Fill(at + depth * kBlock, kBlock / 4, depth);
  if (UnderHostmm() && !Eventually(HasAgent)) return 50;
  if (UnderHostmm() && !IsRegistered(at)) return 51;
  if (depth == deepest) return 0;
  return InChild([=] { return Descend(at, depth + 1, deepest); });
}

}  // namespace

HOSTMM_CASE(ForkChainOfEight) {
  constexpr size_t kDepth = 8;
  char* at = MustMapShared((kDepth + 1) * kBlock);
  ExpectManaged(at);
  Say("ended with %d", Descend(at, 0, kDepth));
  int wrong = 0;
  for (size_t depth = 0; depth <= kDepth; ++depth) {
    wrong += !Holds(at + depth * kBlock, kBlock / 4, depth);
  }
  Say("wrong %d", wrong);
}

HOSTMM_CASE(EightThreadsFork) {
  char* at = MustMapShared(8 * kBlock);
  ExpectManaged(at);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (size_t id = 0; id < 8; ++id) {
    threads.emplace_back([=, &wrong] {
      for (size_t round = 0; round < 4; ++round) {
        char* mine = at + id * kBlock + round * 64 * kKib;
        const int ended = InChild([=] {
          Fill(mine, 64 * kKib, id + round);
          return 0;
        });
        wrong += ended != 0 || !Holds(mine, 64 * kKib, id + round);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Say("wrong %d", wrong.load());
}

HOSTMM_CASE(FiftyForksInParallel) {
  constexpr size_t kChildren = 50;
  char* at = MustMapShared(64 * kMib);
  ExpectManaged(at);
  std::vector<pid_t> children;
  for (size_t id = 0; id < kChildren; ++id) {
    const pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
      // Each touches all blocks, at a page of its own: the same holes at the same time.
      for (size_t block = 0; block < 32; ++block) at[block * kBlock + id * 8192] = 1;
      _exit(UnderHostmm() && !IsRegistered(at) ? 1 : 0);
    }
    children.push_back(pid);
  }
  int wrong = 0;
  for (const pid_t pid : children) wrong += WaitFor(pid) != 0;
  size_t ones = 0;
  for (size_t id = 0; id < kChildren; ++id) {
    for (size_t block = 0; block < 32; ++block) ones += at[block * kBlock + id * 8192] == 1;
  }
  Say("wrong %d pages %zu", wrong, ones);
}

HOSTMM_CASE(DaemonOfADaemon) {
  // The classic double fork, again and again: each middle process ends at once, perhaps before the
  // pager has heard of the daemon that it left behind.
  constexpr int kRounds = 20;
  char* at = MustMapShared((kRounds + 1) * kBlock);
  ExpectManaged(at);
  for (int round = 0; round < kRounds; ++round) {
    const pid_t middle = fork();
    MUST(middle >= 0);
    if (middle == 0) {
      if (fork() != 0) _exit(0);
      setsid();
      char* mine = at + (round + 1) * kBlock;
      mine[5] = 5;
      const bool managed = !UnderHostmm() || (IsRegistered(mine) && Eventually(HasAgent));
      Counter(at).fetch_add(managed ? 1 : 1000);
      _exit(0);
    }
    WaitFor(middle);
  }
  const bool all = Eventually([at] { return Counter(at).load() % 1000 == kRounds; });
  Say("all came %d", all);
  Expect(Counter(at).load() == kRounds, "every daemon is managed");
  int wrong = 0;
  for (int round = 0; round < kRounds; ++round) wrong += at[(round + 1) * kBlock + 5] != 5;
  Say("wrong %d", wrong);
}

HOSTMM_CASE(ForkAfterTheLastUnmap) {
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  MUST(munmap(at, kManagedBytes) == 0);
  Say("child %d", InChild([] {
        char* mine = MapShared(kManagedBytes);
        if (mine == MAP_FAILED) return 1;
        Fill(mine, kManagedBytes, 3);
        if (UnderHostmm() && (!Eventually(HasAgent) || !IsRegistered(mine))) return 2;
        return Holds(mine, kManagedBytes, 3) ? 0 : 3;
      }));
}

HOSTMM_CASE(ChildMapsItsOwn) {
  char* at = MustMapShared(kManagedBytes);
  Fill(at, kManagedBytes, 1);
  Say("child %d", InChild([at] {
        char* mine = MapShared(kManagedBytes);
        if (mine == MAP_FAILED) return 1;
        Fill(mine, kManagedBytes, 2);
        if (UnderHostmm() && !IsRegistered(mine)) return 2;
        if (munmap(at, kManagedBytes) != 0) return 3;
        return Holds(mine, kManagedBytes, 2) ? 0 : 4;
      }));
  Say("parent's holds %d", Holds(at, kManagedBytes, 1));
  ExpectManaged(at);
}

HOSTMM_PEER(MapsAndFills) {
  char* at = MapShared(kManagedBytes);
  if (at == MAP_FAILED) return 1;
  Fill(at, kManagedBytes, 4);
  if (UnderHostmm() && (!Eventually(HasAgent) || !IsRegistered(at))) return 2;
  return Holds(at, kManagedBytes, 4) ? 0 : 3;
}

HOSTMM_PEER(CountsDescriptors) { return static_cast<int>(DescriptorCount() + 10 * ThreadCount()); }

HOSTMM_CASE(ExecAfterMapping) {
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 1);
  Say("exec'ed: %d", WaitFor(StartPeer("MapsAndFills", {})));
  Say("descriptors and threads after exec: %d", WaitFor(StartPeer("CountsDescriptors", {})));
  Say("holds %d", Holds(at, kManagedBytes, 1));
  // Without a fork before: this process itself becomes another program.
  std::vector<std::string> words = PeerCommand("MapsAndFills", {});
  execv(words[0].c_str(), Pointers(words).data());
}

HOSTMM_CASE(SpawnAndVfork) {
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  at[kMib] = 1;
  std::vector<std::string> words = PeerCommand("MapsAndFills", {});
  const std::vector<char*> argv = Pointers(words);
  pid_t pid = -1;
  MUST(posix_spawn(&pid, argv[0], nullptr, nullptr, argv.data(), environ) == 0);
  Say("spawned: %d", WaitFor(pid));
  pid = vfork();
  if (pid == 0) {
    at[3 * kMib] = 3;                      // a hole, touched in the parent's address space
    if (setgid(getegid()) != 0) _exit(2);  // as who starts a program as another user does
    execv(argv[0], argv.data());
    _exit(1);
  }
  Say("vforked: %d, sees %d", WaitFor(pid), at[3 * kMib]);
  at[5 * kMib] = 5;
  ExpectManaged(at);
  // The parent is attached as before.
  ExpectManaged(MustMapShared(kManagedBytes));
}

namespace {

// A child that the library is not told of.
pid_t RawFork() { return static_cast<pid_t>(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0)); }

}  // namespace

HOSTMM_CASE(RawCloneChild) {
  constexpr size_t kBytes = 2 * kManagedBytes;
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  at[0] = 1;
  Turns turns;
  const pid_t pid = RawFork();
  MUST(pid >= 0);
  if (pid == 0) {
    turns.IAmSecond();
    // The kernel serves it; what it does to its mappings is its own affair.
    at[kBlock] = 2;
    if (munmap(at + 4 * kBlock, kBlock) != 0) _exit(1);
    if (mprotect(at, kBlock, PROT_READ) != 0) _exit(2);
    char* mine = MapShared(kBytes);
    if (mine == MAP_FAILED) _exit(3);
    mine[kMib] = 3;
    turns.Pass();
    turns.Await();
    _exit(mine[kMib] == 3 && at[5 * kBlock] == 5 ? 0 : 4);
  }
  turns.IAmFirst();
  turns.Await();
  Say("parent: %s %s", TryWrite(at).c_str(), TryWrite(at + 4 * kBlock).c_str());
  // What the child has mapped must not have changed what is at that address here.
  std::vector<void*> around;
  for (int i = 0; i < 8; ++i) {
    void* more = mmap(nullptr, kBytes, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(more != MAP_FAILED);
    Fill(static_cast<char*>(more), kBytes, i);
    around.push_back(more);
  }
  at[5 * kBlock] = 5;
  turns.Pass();
  Say("child %d, wrote %d", WaitFor(pid), at[kBlock]);
  char* more = MustMapShared(kBytes);
  Fill(more, kBytes, 9);
  ExpectManaged(at);
  ExpectManaged(more);
  Expect(IsRegistered(at + 4 * kBlock), "the parent's region is whole");
}

HOSTMM_CASE(ForkUnderHandlersOfTheProgram) {
  // A lock that is held over fork by the program's own handlers, as allocators do it, and around
  // mmap by another thread.
  static std::mutex lock;
  static std::atomic<bool> stop = false;
  pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
  char* first = MustMapShared(kManagedBytes);
  std::atomic<int> failed = 0;
  std::thread mapper([&failed] {
    while (!stop) {
      const std::lock_guard<std::mutex> hold(lock);
      char* at = MapShared(kManagedBytes);
      if (at == MAP_FAILED || munmap(at, kManagedBytes) != 0) ++failed;
    }
  });
  int wrong = 0;
  for (int i = 0; i < 60; ++i) wrong += InChild([first] { return first[kMib]; }) != 0;
  stop = true;
  mapper.join();
  Say("wrong %d failed %d", wrong, failed.load());
  ExpectManaged(first);
}

HOSTMM_CASE(HandlersOfTheProgramTouchMemory) {
  static char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  pthread_atfork([] { at[kBlock] = 1; }, [] { at[2 * kBlock] = 2; }, [] { at[3 * kBlock] = 3; });
  Say("child %d", InChild([] { return at[kBlock]; }));
  Say("%d %d %d", at[kBlock], at[2 * kBlock], at[3 * kBlock]);
}

HOSTMM_CASE(ExitWhileThreadsFault) {
  char* at = MustMapShared(32 * kMib);
  ExpectManaged(at);
  int wrong = 0;
  for (int round = 0; round < 10; ++round) {
    MUST(madvise(at, 32 * kMib, MADV_REMOVE) == 0);
    wrong += InChild([at] {
               std::atomic<size_t> next = 0;
               std::latch under_way(500);
               for (int i = 0; i < 8; ++i) {
                 std::thread([&next, &under_way, at] {
                   for (size_t page; (page = next++) < 8192;) {
                     at[page * 4096] = 1;
                     if (page < 500) under_way.count_down();
                   }
                 }).detach();
               }
               under_way.wait();
               _exit(0);
               return 1;
             }) != 0;
  }
  Say("wrong %d", wrong);
  Fill(at, 32 * kMib, 1);
  Say("holds %d", Holds(at, 32 * kMib, 1));
}

HOSTMM_CASE(KilledWhileItFaults) {
  char* at = MustMapShared(32 * kMib);
  ExpectManaged(at);
  int wrong = 0;
  for (int round = 0; round < 20; ++round) {
    MUST(madvise(at, 32 * kMib, MADV_REMOVE) == 0);
    const pid_t pid = fork();
    MUST(pid >= 0);
    if (pid == 0) {
      for (size_t page = 0;; page = (page + 7) % 8192) at[page * 4096] = 1;
    }
    const size_t few = 7 * static_cast<size_t>(round);
    wrong += !Eventually([&] { return at[few * 4096] == 1; });
    kill(pid, SIGKILL);
    wrong += WaitFor(pid) != 128 + SIGKILL;
  }
  Say("wrong %d", wrong);
  Fill(at, 32 * kMib, 1);
  Say("holds %d", Holds(at, 32 * kMib, 1));
}

HOSTMM_CASE(EndOfTheMainThread) {
  // A process whose main thread has ended lives as long as the program's other threads, no longer.
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  Say("child %d", InChild([at] {
        std::thread([at] {
          for (size_t block = 0; block < 4; ++block) at[block * kBlock] = 1;
        }).detach();
        pthread_exit(nullptr);
        return 1;
      }));
  Say("%d", at[3 * kBlock]);
}

HOSTMM_CASE(SignalsGoToTheProgram) {
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGTERM);
  MUST(sigprocmask(SIG_BLOCK, &set, nullptr) == 0);
  kill(getpid(), SIGUSR1);
  kill(getpid(), SIGTERM);
  const timespec patience = {10, 0};
  int first = sigtimedwait(&set, nullptr, &patience);
  int second = sigtimedwait(&set, nullptr, &patience);
  Say("%d %d", first, second);
}

}  // namespace hostmm::test
