// Processes whose agent the kernel refuses what a snapshot needs (a seccomp filter): to drop
// page-table entries, or to be there. What was promised is kept, or said to be lost.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr uint32_t Argument(uint32_t number) {
  return offsetof(seccomp_data, args) + number * sizeof(uint64_t);
}

// For each thread of this process, and those that it forks. RETURNS whether the kernel has done it.
template <size_t kSteps>
bool Filter(sock_filter (&steps)[kSteps]) {
  const sock_fprog program = {static_cast<unsigned short>(kSteps), steps};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

// Page-table entries cannot be dropped.
bool RefuseZaps() {
  sock_filter steps[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_madvise, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, Argument(2)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_DONTNEED, 1, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MADV_DONTNEED_LOCKED, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  return Filter(steps);
}

// Processes can be forked, but have no agent.
bool RefuseThreads() {
  sock_filter steps[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 3),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, Argument(0)),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  return Filter(steps);
}

// A process that lives under the filter, with an agent from before.
bool MakeRefused(Partner* partner) {
  return partner->Do([] { return RefuseZaps(); }) == 1;
}

int64_t StampIn(Partner* partner, char* at, size_t bytes, uint64_t seed) {
  return partner->Do([at, bytes, seed] {
    Stamp(at, bytes, seed);
    return 0;
  });
}

// It is write-protected from outside instead.
HOSTMM_CASE(WriterMayNotZap) {
  Live live;
  Partner writer;
  if (!MakeRefused(&writer)) return Skip("no seccomp filters");
  Stamp(live.at(), live.bytes(), 1);
  const size_t half = live.bytes() / 2;
  int64_t mapped_kib = 0;
  for (uint64_t round = 1; round <= 3; ++round) {
    StampIn(&writer, live.at(), live.bytes(), 10 * round);  // it has all of it mapped
    const Snapshot snapshot(live.at());
    const auto vma = ReadVma(writer.pid(), live.at());
    MUST(vma.has_value());
    mapped_kib = std::max(mapped_kib, vma->rss_kib);
    const View view(snapshot);
    StampIn(&writer, live.at(), half, 10 * round + 1);
    Want(IsStamped(view.at(), view.bytes(), 10 * round), "what it writes is seen");
    // One more while the first is there.
    const Snapshot second(live.at());
    const View later(second);
    StampIn(&writer, live.at(), live.bytes(), 10 * round + 2);
    Want(IsStamped(live.at(), live.bytes(), 10 * round + 2), "the region has it all");
    Want(IsStamped(view.at(), view.bytes(), 10 * round) && snapshot.Condition() == "ok",
         "the first is what it was");
    Want(IsStamped(later.at(), half, 10 * round + 1) &&
             IsStamped(later.at() + half, half, 10 * round) && second.Condition() == "ok",
         "so is the second");
  }
  // The pager may have collapsed what it had mapped, but not each time; hugetlb is not in its RSS.
  if (!OnHugetlb()) {
    Want(mapped_kib > 0, "it was not zapped: %lld KiB", static_cast<long long>(mapped_kib));
  }
  // Thawed, but for what it could not zap: nothing waits there.
  Want(Eventually([&] { return IsNative(live.at()); }), "nothing is tracked in the end");
  StampIn(&writer, live.at(), live.bytes(), 99);
  Want(IsStamped(live.at(), live.bytes(), 99), "it writes natively");
}

// Nor may its child drop what it has inherited: it is write-protected before the child runs.
HOSTMM_CASE(ForkedWriterMayNotZap) {
  Live live;
  Partner writer;
  if (!MakeRefused(&writer)) return Skip("no seccomp filters");
  for (uint64_t round = 1; round <= 5; ++round) {
    Stamp(live.at(), live.bytes(), 10 * round);
    StampIn(&writer, live.at(), live.bytes(), 10 * round);
    const Snapshot snapshot(live.at());
    const View view(snapshot);
    const int64_t ended = writer.Do([at = live.at(), bytes = live.bytes(), round] {
      return InChild([=] {
        Stamp(at, bytes, 10 * round + 1);
        return 0;
      });
    });
    Want(ended == 0 && IsStamped(live.at(), live.bytes(), 10 * round + 1), "the child writes");
    Want(IsStamped(view.at(), view.bytes(), 10 * round) && snapshot.Condition() == "ok",
         "the snapshot is what it was: %s", hostmm_error());
  }
}

// Whoever sees in a view what a child writes that nobody watches is told at once that this is no
// snapshot.
HOSTMM_CASE(ForkedWriterWithoutAgentIsSeenAtOnce) {
  constexpr int kRounds = 40;
  Live live;
  Partner writer;
  if (writer.Do([] { return RefuseThreads(); }) != 1) return Skip("no seccomp filters");
  Stamp(live.at(), live.bytes(), 1);
  StampIn(&writer, live.at(), live.bytes(), 1);
  int unseen = 0;
  for (uint64_t seed = 1; seed <= kRounds; ++seed) {
    const Snapshot snapshot(live.at());
    const View view(snapshot);
    MUST(IsStamped(view.at(), view.bytes(), seed));
    writer.Start([at = live.at(), bytes = live.bytes(), seed] {
      return InChild([=] {
        Stamp(at, bytes, seed + 1);
        return 0;
      });
    });
    uint64_t word = StampOf(view.at(), seed);
    while (TryReadWord(view.at(), &word) == "ok" && word == StampOf(view.at(), seed)) {
    }
    if (snapshot.Condition() != "EIO") ++unseen;
    MUST(writer.Await() == 0 && IsStamped(live.at(), live.bytes(), seed + 1));
    MUST(snapshot.Condition() == "EIO");
  }
  Want(unseen == 0, "%d of %d times it was said to be whole", unseen, kRounds);
}

// Whether it sleeps in the system call of that number; kInAFault: in none.
constexpr long kInAFault = -1;
bool SleepsIn(pid_t pid, long number) {
  FILE* file = fopen(("/proc/" + std::to_string(pid) + "/syscall").c_str(), "r");
  if (file == nullptr) return false;
  long in = 0;
  const bool sleeps = fscanf(file, "%ld", &in) == 1;  // else "running"
  fclose(file);
  return sleeps && in == number;
}

// Whether the page is mapped in this process: a touch of it waits for nobody.
bool IsMapped(const char* at) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  MUST(pagemap >= 0);
  uint64_t entry = 0;
  const auto offset = static_cast<off_t>(reinterpret_cast<uintptr_t>(at) / kPage * sizeof(entry));
  MUST(pread(pagemap, &entry, sizeof(entry), offset) == sizeof(entry));
  close(pagemap);
  return (entry >> 63) != 0;
}

// The same when the pager is slow, and a question about the snapshot has come before the fork.
HOSTMM_CASE(ForkedWriterWithoutAgentIsSeenByASlowPager) {
  std::atomic<pid_t>* child = SharedCounters<std::atomic<pid_t>>();
  Live live;
  Partner writer;
  Partner other;
  Partner reader;
  if (writer.Do([] { return RefuseThreads(); }) != 1) return Skip("no seccomp filters");
  Stamp(live.at(), live.bytes(), 1);
  StampIn(&writer, live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  MUST(IsStamped(view.at(), view.bytes(), 1));
  const auto ask = [](Partner* partner, int handle) {
    partner->Start([handle] { return hostmm_snapshot_info(handle, nullptr) == 0; });
    MUST(Eventually([&] { return SleepsIn(partner->pid(), SYS_ppoll); }));
  };
  const int others = other.Give(snapshot.handle());
  const int readers = reader.Give(snapshot.handle());
  MUST(kill(PagerPid(), SIGSTOP) == 0);
  ask(&other, others);
  writer.Start([at = live.at(), bytes = live.bytes(), child] {
    return InChild([=] {
      *child = getpid();
      Stamp(at, bytes, 2);
      return 0;
    });
  });
  bool seen = false;
  MUST(Eventually([&] {
    uint64_t word = 0;
    // What the kernel has unmapped meanwhile, to collapse the block, would wait for the pager.
    seen = IsMapped(view.at()) &&
           (TryReadWord(view.at(), &word) != "ok" || word != StampOf(view.at(), 1));
    return seen || (*child != 0 && SleepsIn(*child, kInAFault));
  }));
  ask(&reader, readers);
  MUST(kill(PagerPid(), SIGCONT) == 0);
  const bool whole = reader.Await() == 1;
  Want(!seen || !whole, "what is read is %s, and it is said to be %s", seen ? "new" : "old",
       whole ? "whole" : "lost");
  other.Await();
  Want(writer.Await() == 0 && IsStamped(live.at(), live.bytes(), 2), "the region has it all");
  Want(snapshot.Condition() == "EIO", "then it is lost: %s", hostmm_error());
}

// Whoever cannot give pages of a view back makes it lost: nobody sees in it what was written later.
HOSTMM_CASE(ViewerMayNotZap) {
  Live live;
  Partner viewer;
  Partner writer;
  if (!MakeRefused(&viewer)) return Skip("no seccomp filters");
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View mine(snapshot);
  const int handle = viewer.Give(snapshot.handle());
  const char* theirs = reinterpret_cast<const char*>(viewer.Do([handle, bytes = live.bytes()] {
    void* at = hostmm_snapshot_map(handle, nullptr, bytes, PROT_READ, 0);
    MUST(at != MAP_FAILED && IsStamped(static_cast<char*>(at), bytes / 2, 1));
    return reinterpret_cast<int64_t>(at);
  }));
  writer.Start([at = live.at(), bytes = live.bytes()] {
    Stamp(at, bytes, 2);
    return 0;
  });
  // As long as the writer writes: what is read is old, or SIGBUS.
  int64_t wrong = 0;
  const auto look = [theirs, bytes = live.bytes()] {
    int64_t changed = 0;
    for (size_t i = 0; i < bytes; i += Unit()) {
      uint64_t word = 0;
      const std::string how = TryReadWord(theirs + i, &word);
      changed += how == "ok" ? word != StampOf(theirs + i, 1) : how != "SIGBUS/ADRERR";
    }
    return changed;
  };
  do {
    wrong += viewer.Do(look);
  } while (!writer.HasAnswered(0));
  Want(writer.Await() == 0 && IsStamped(live.at(), live.bytes(), 2), "the writer goes on");
  wrong += viewer.Do(look);
  Want(wrong == 0, "%lld words of the view are neither old nor SIGBUS",
       static_cast<long long>(wrong));
  Want(snapshot.Condition() == "EIO", "the snapshot is lost: %s", hostmm_error());
  Want(viewer.Read(theirs) == "SIGBUS/ADRERR" && TryRead(mine.at()) == "SIGBUS/ADRERR",
       "all views are SIGBUS");
  Want(Eventually([&] { return IsNative(live.at()); }), "the region is native again");
}

// The kernel's own copy-on-write does as well.
HOSTMM_CASE(ForkOfCopyOnWriteMemoryMayNotZap) {
  Attach();
  void* mapped = hostmm_mmap(nullptr, kLiveBytes, kReadWrite,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_PRIVATE_COW, -1, 0);
  MUST(mapped != MAP_FAILED);
  char* at = static_cast<char*>(mapped);
  Want(IsRegistered(at), "it is hostmm's");
  Stamp(at, kLiveBytes, 1);
  if (!RefuseZaps()) return Skip("no seccomp filters");
  const size_t half = kLiveBytes / 2;
  for (uint64_t round = 1; round <= 3; ++round) {
    Partner child(Partner::Begun::kMaybe);
    Stamp(at, half, round + 1);
    const int64_t right = child.Do([at, half, round] {
      const bool was = IsStamped(at, 2 * half, round);
      Stamp(at + half, half, 100);
      return was && IsStamped(at, half, round) && IsStamped(at + half, half, 100);
    });
    Want(right == 1, "the child has what was there, and its own");
    Want(IsStamped(at, half, round + 1) && IsStamped(at + half, half, round),
         "the parent sees nothing of it");
    Stamp(at + half, half, round + 1);
  }
  MUST(hostmm_munmap(at, kLiveBytes) == 0);
}

}  // namespace
}  // namespace hostmm::test
