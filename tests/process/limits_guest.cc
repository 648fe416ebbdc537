// Programs that close what they do not know, give up rights, or run against their limits.
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <barrier>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

constexpr size_t kBlock = 2 * kMib;

void GiveUpRoot() {
  if (geteuid() != 0) return;
  MUST(setgroups(0, nullptr) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
}

// The soft limit, so that it can be moved again without root.
void Limit(int resource, rlim_t value) {
  rlimit limit;
  MUST(getrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0);
  limit.rlim_cur = value;
  if (limit.rlim_max < value) limit.rlim_max = value;
  MUST(setrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0);
}

void SayUsable(const char* what, char* at) {
  if (at == MAP_FAILED) {
    Say("%s: %s", what, ErrnoName(errno));
    return;
  }
  Fill(at, kManagedBytes, 12);
  const bool holds = Holds(at, kManagedBytes, 12);
  Say("%s: holds %d", what, holds);
}

// A memfd of `bytes`, mapped: adopted under hostmm, so that the pager will order its collapse.
char* MapMemfd(size_t bytes) {
  const int file = memfd_create("adopted", MFD_CLOEXEC);
  MUST(file >= 0 && ftruncate(file, static_cast<off_t>(bytes)) == 0);
  void* at = mmap(nullptr, bytes, 3, MAP_SHARED, file, 0);
  MUST(at != MAP_FAILED);
  close(file);
  return static_cast<char*>(at);
}

// Each line once, however many threads say the same: a thread that differs shows.
void SayCredentialsOfThreads() {
  std::set<std::string> said;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream status(task.path() / "status");
    for (std::string line; std::getline(status, line);) {
      const bool wanted = line.starts_with("Uid:") || line.starts_with("Gid:") ||
                          line.starts_with("Groups:") || line.starts_with("CapPrm:") ||
                          line.starts_with("CapEff:");
      if (wanted && said.insert(line).second) Say("%s", line.c_str());
    }
  }
}

}  // namespace

HOSTMM_CASE(CloseFromThree) {
  char* at = MustMapShared(4 * kManagedBytes);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 1);
  closefrom(3);
  Say("descriptors %zu", DescriptorCount());
  // Holes, a fork, new and old mappings: everything goes on.
  Fill(at + kManagedBytes, kManagedBytes, 2);
  Say("child %d", InChild([at] {
        Fill(at + 2 * kManagedBytes, kManagedBytes, 3);
        SayUsable("child's own", MapShared(kManagedBytes));
        return Holds(at, kManagedBytes, 1) ? 0 : 1;
      }));
  SayUsable("more", MapShared(kManagedBytes));
  Say("holds %d %d %d", Holds(at, kManagedBytes, 1), Holds(at + kManagedBytes, kManagedBytes, 2),
      Holds(at + 2 * kManagedBytes, kManagedBytes, 3));
  Say("unmap %s", Outcome(munmap(at, 4 * kManagedBytes)));
}

HOSTMM_CASE(NumbersOfOurDescriptorsReused) {
  // After closefrom the program gets the numbers that were ours for sockets of its own. Nobody else
  // may read from them or write to them.
  constexpr int kFirst = 490;
  constexpr int kLast = 520;
  Limit(RLIMIT_NOFILE, 1024);
  char* adopted = MapMemfd(kManagedBytes);
  ExpectAttached();
  closefrom(3);
  int pair[2];
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
  const int far = fcntl(pair[1], F_DUPFD, kLast + 1);
  close(pair[1]);
  for (int fd = kFirst; fd <= kLast; ++fd) MUST(dup2(pair[0], fd) == fd);
  // Something for a thief to take, before and after an order has been carried out.
  MUST(send(far, "mine", 4, 0) == 4);
  // Full blocks make the pager send its orders; several of them, over several of its ticks.
  int stolen = 0;
  int foreign = 0;
  for (int round = 0; round < 3; ++round) {
    Fill(adopted, kManagedBytes, static_cast<uint64_t>(round));
    char byte[256];
    // Two of the pager's ticks.
    const timespec ticks = {0, 600'000'000};
    nanosleep(&ticks, nullptr);
    foreign += recv(far, byte, sizeof(byte), 0) > 0;
    stolen += recv(pair[0], byte, sizeof(byte), 0) != 4;
    MUST(send(far, "mine", 4, 0) == 4);
    MUST(madvise(adopted, kManagedBytes, MADV_REMOVE) == 0);
  }
  Say("stolen %d foreign %d", stolen, foreign);
}

HOSTMM_CASE(LowDescriptorLimit) {
  Limit(RLIMIT_NOFILE, 8);
  SayUsable("limit 8", MapShared(kManagedBytes));
  SayUsable("again", MapShared(kManagedBytes));
  ExpectAttached();
}

HOSTMM_CASE(NoDescriptorLeft) {
  Limit(RLIMIT_NOFILE, 5);
  while (dup(0) >= 0) {
  }
  SayUsable("none left", MapShared(kManagedBytes));
  Say("child %d", InChild([] { return 0; }));
  for (int fd = 3; fd < 5; ++fd) close(fd);
  Expect(true, "goes on without descriptors");
}

HOSTMM_CASE(DescriptorsUsedUpAfterMapping) {
  char* at = MustMapShared(2 * kManagedBytes);
  ExpectManaged(at);
  Limit(RLIMIT_NOFILE, 16);
  while (dup(0) >= 0) {
  }
  Fill(at, kManagedBytes, 1);
  Say("child %d", InChild([at] {
        Fill(at + kManagedBytes, kManagedBytes, 2);
        return 0;
      }));
  SayUsable("more", MapShared(kManagedBytes));
  Say("holds %d %d", Holds(at, kManagedBytes, 1), Holds(at + kManagedBytes, kManagedBytes, 2));
}

HOSTMM_CASE(NoThreadLeft) {
  GiveUpRoot();
  Limit(RLIMIT_NPROC, 0);
  char* at = MapShared(kManagedBytes);
  SayUsable("no thread", at);
  Say("threads %zu", ThreadCount());
  Expect(!HasAgent() && IsRegistered(at), "managed without an agent");
  Say("unmap %s", Outcome(munmap(at, kManagedBytes)));
}

HOSTMM_CASE(RootGivenUpAfterMapping) {
  char* at = MustMapShared(4 * kManagedBytes);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 1);
  GiveUpRoot();
  Fill(at + kManagedBytes, kManagedBytes, 2);
  Say("child %d", InChild([at] {
        Fill(at + 2 * kManagedBytes, kManagedBytes, 3);
        return UnderHostmm() && !(IsRegistered(at) && Eventually(HasAgent)) ? 1 : 0;
      }));
  char* more = MapShared(kManagedBytes);
  SayUsable("more", more);
  ExpectManaged(more);
  Say("holds %d %d %d", Holds(at, kManagedBytes, 1), Holds(at + kManagedBytes, kManagedBytes, 2),
      Holds(at + 2 * kManagedBytes, kManagedBytes, 3));
}

// libc changes the user of the threads that it made; the agent is not one of them.
HOSTMM_CASE(NoThreadKeepsWhatRootGaveUp) {
  char* at = MustMapShared(kManagedBytes);
  Fill(at, kManagedBytes, 3);
  Say("child %d", InChild([at] {
        GiveUpRoot();
        SayCredentialsOfThreads();
        return UnderHostmm() && !(IsRegistered(at) && Eventually(HasAgent)) ? 1 : 0;
      }));
  GiveUpRoot();
  SayCredentialsOfThreads();
  ExpectManaged(at);
  Say("holds %d", Holds(at, kManagedBytes, 3));
}

// Each of these calls replaces the agent, which has one stack; the threads make them side by side.
HOSTMM_CASE(ThreadsChangeTheirUserAtOnce) {
  constexpr int kThreads = 4;
  // Arbitrary: agents that run side by side crash within a few rounds.
  constexpr int kRounds = 300;
  char* at = MustMapShared(2 * kManagedBytes);
  ExpectManaged(at);
  const gid_t group = getegid();
  std::atomic<int> running = kThreads;
  std::atomic<int> refused = 0;
  std::barrier together(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) refused += setgid(group) != 0;
      // Whoever is first gives up root for all; to the others the same ids are still allowed.
      together.arrive_and_wait();
      if (geteuid() == 0) refused += setgroups(0, nullptr) != 0;
      together.arrive_and_wait();
      refused += setgid(group) != 0;
      refused += setuid(65534) != 0;
      --running;
    });
  }
  // Faults all the while: what has been touched is removed and touched anew.
  bool held = true;
  for (uint64_t seed = 1; running > 0; ++seed) {
    Fill(at, kBlock, seed);
    held = held && Holds(at, kBlock, seed);
    MUST(madvise(at, kBlock, MADV_REMOVE) == 0);
  }
  for (std::thread& thread : threads) thread.join();
  Say("refused %d, held %d", refused.load(), held);
  // One agent is left, and it has the rights of all others.
  Expect(!UnderHostmm() || Eventually([] { return ThreadCount() == 2; }), "there is one agent");
  SayCredentialsOfThreads();
  Fill(at + kManagedBytes, kManagedBytes, 4);
  Say("child %d, holds %d",
      InChild([at] { return Holds(at + kManagedBytes, kManagedBytes, 4) ? 0 : 1; }),
      Holds(at + kManagedBytes, kManagedBytes, 4));
}

HOSTMM_CASE(RootGivenUpBeforeMapping) {
  GiveUpRoot();
  char* at = MapShared(kManagedBytes);
  SayUsable("as nobody", at);
  ExpectManaged(at);
  Say("child %d", InChild([at] {
        at[kMib] = 1;
        return UnderHostmm() && !IsRegistered(at) ? 1 : 0;
      }));
}

HOSTMM_CASE(Chroot) {
  char* at = MustMapShared(2 * kManagedBytes);
  ExpectManaged(at);
  char folder[] = "/tmp/hostmm-chroot.XXXXXX";
  MUST(mkdtemp(folder) != nullptr);
  const int inside = InChild([&] {
    if (chroot(folder) != 0 || chdir("/") != 0) return 1;
    Fill(at, kManagedBytes, 4);
    SayUsable("in the chroot", MapShared(kManagedBytes));
    return InChild([at] {
      Fill(at + kManagedBytes, kManagedBytes, 5);
      return 0;
    });
  });
  rmdir(folder);
  Say("child %d, holds %d %d", inside, Holds(at, kManagedBytes, 4),
      Holds(at + kManagedBytes, kManagedBytes, 5));
}

HOSTMM_CASE(FirstMappingInAChroot) {
  char folder[] = "/tmp/hostmm-chroot.XXXXXX";
  MUST(mkdtemp(folder) != nullptr);
  Say("child %d", InChild([&] {
        if (chroot(folder) != 0 || chdir("/") != 0) return 1;
        SayUsable("the socket is out of reach", MapShared(kManagedBytes));
        SayUsable("again", MapShared(kManagedBytes));
        return 0;
      }));
  rmdir(folder);
  Expect(true, "goes on without a pager");
}

HOSTMM_CASE(OwnNamespaces) {
  char* at = MustMapShared(2 * kManagedBytes);
  ExpectManaged(at);
  Say("child %d", InChild([at] {
        if (unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET) != 0) return 1;
        Fill(at, kManagedBytes, 6);
        // The first process of a new pid namespace: its pid is 1 there.
        return InChild([at] {
          Fill(at + kManagedBytes, kManagedBytes, 7);
          if (getpid() != 1) return 2;
          return UnderHostmm() && !IsRegistered(at) ? 3 : 0;
        });
      }));
  Say("holds %d %d", Holds(at, kManagedBytes, 6), Holds(at + kManagedBytes, kManagedBytes, 7));
}

}  // namespace hostmm::test
