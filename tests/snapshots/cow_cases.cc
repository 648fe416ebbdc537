// Copy-on-write memory (MAP_PRIVATE_COW): what fork means for private memory, however it is done.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

class Cow {
 public:
  explicit Cow(size_t bytes = kLiveBytes) : bytes_(bytes) {
    Attach();
    void* at = hostmm_mmap(nullptr, bytes, kReadWrite,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_PRIVATE_COW, -1, 0);
    MUST(at != MAP_FAILED);
    at_ = static_cast<char*>(at);
  }
  ~Cow() { hostmm_munmap(at_, bytes_); }
  Cow(const Cow&) = delete;
  Cow& operator=(const Cow&) = delete;
  char* at() const { return at_; }
  size_t bytes() const { return bytes_; }
  void WantManaged() const { Want(IsRegistered(at_), "it is hostmm's"); }

 private:
  char* at_;
  size_t bytes_;
};

HOSTMM_CASE(NeitherSeesTheOther) {
  const Cow cow;
  const size_t half = cow.bytes() / 2;
  Stamp(cow.at(), half, 1);
  cow.WantManaged();
  Partner child;
  // What the child has read before the parent writes, and what it has not.
  child.Do([at = cow.at(), half] { return IsStamped(at, half / 4, 1); });
  Stamp(cow.at(), half / 2, 2);
  const int64_t seen = child.Do(
      [at = cow.at(), half] { return IsStamped(at, half, 1) && IsZero(at + half, half) ? 1 : 0; });
  Want(seen == 1, "the child has what was there");
  child.Do([at = cow.at(), bytes = cow.bytes()] {
    Stamp(at, bytes, 3);
    return 0;
  });
  Want(IsStamped(cow.at(), half / 2, 2) && IsStamped(cow.at() + half / 2, half / 2, 1) &&
           IsZero(cow.at() + half, half),
       "the parent sees nothing of the child");
  Stamp(cow.at(), cow.bytes(), 4);
  const int64_t still =
      child.Do([at = cow.at(), bytes = cow.bytes()] { return IsStamped(at, bytes, 3) ? 1 : 0; });
  Want(still == 1, "nor the child of the parent");
}

// Unaligned words, whole pages: nothing but what was written differs.
HOSTMM_CASE(AllOfItIsThere) {
  const Cow cow;
  Fill(cow.at(), cow.bytes(), 1);
  const int ended = InChild([&] {
    if (!Holds(cow.at(), cow.bytes(), 1)) return 1;
    Fill(cow.at(), cow.bytes(), 2);
    return Holds(cow.at(), cow.bytes(), 2) ? 0 : 2;
  });
  Want(ended == 0, "the child ended with %d", ended);
  Want(Holds(cow.at(), cow.bytes(), 1), "the parent has its own");
}

HOSTMM_CASE(Grandchildren) {
  const Cow cow;
  const size_t quarter = cow.bytes() / 4;
  Stamp(cow.at(), 3 * quarter, 1);
  const int ended = InChild([&] {
    Stamp(cow.at(), quarter, 2);
    const int below = InChild([&] {
      if (!IsStamped(cow.at(), quarter, 2)) return 11;
      if (!IsStamped(cow.at() + quarter, 2 * quarter, 1)) return 12;
      if (!IsZero(cow.at() + 3 * quarter, quarter)) return 13;
      Stamp(cow.at(), cow.bytes(), 3);
      return InChild([&] { return IsStamped(cow.at(), cow.bytes(), 3) ? 0 : 14; });
    });
    if (below != 0) return below;
    if (!IsStamped(cow.at(), quarter, 2)) return 21;
    return IsStamped(cow.at() + quarter, 2 * quarter, 1) ? 0 : 22;
  });
  Want(ended == 0, "three generations: %d", ended);
  Want(IsStamped(cow.at(), 3 * quarter, 1) && IsZero(cow.at() + 3 * quarter, quarter),
       "the first one has its own");
}

// The parent writes on while a child and its child live: neither sees it.
HOSTMM_CASE(ParentWritesOnPastGrandchildren) {
  const Cow cow;
  Stamp(cow.at(), cow.bytes(), 1);
  Partner child;
  // The child maps half of it before it forks.
  child.Do([at = cow.at(), bytes = cow.bytes()] { return IsStamped(at, bytes / 2, 1); });
  struct Signs {
    std::atomic<int> child_has_read = 0;
    std::atomic<int> parent_has_written = 0;
  };
  Signs* signs = SharedCounters<Signs>();
  Partner second;  // knows `signs`
  second.Start([at = cow.at(), bytes = cow.bytes(), signs] {
    if (!IsStamped(at, bytes / 2, 1)) return 1;
    return InChild([&] {
      signs->child_has_read = 1;
      if (!Eventually([&] { return signs->parent_has_written == 1; })) return 2;
      return IsStamped(at, bytes, 1) ? 0 : 3;
    });
  });
  MUST(Eventually([&] { return signs->child_has_read == 1; }));
  Stamp(cow.at(), cow.bytes(), 2);
  signs->parent_has_written = 1;
  const auto ended = static_cast<int>(second.Await());
  Want(ended == 0, "the grandchild ended with %d", ended);
  const int64_t seen = child.Do([at = cow.at(), bytes = cow.bytes()] {
    return InChild([&] { return IsStamped(at, bytes, 1) ? 0 : 1; });
  });
  Want(seen == 0, "a grandchild of later");
}

HOSTMM_CASE(SeveralChildrenOfSeveralMoments) {
  constexpr size_t kChildren = 5;
  const Cow cow;
  std::array<std::unique_ptr<Partner>, kChildren> children;
  for (size_t i = 0; i < kChildren; ++i) {
    Stamp(cow.at(), cow.bytes(), 10 + i);
    children[i] = std::make_unique<Partner>();
  }
  Stamp(cow.at(), cow.bytes(), 99);
  const auto sees = [&](size_t i) {
    return children[i]->Do([at = cow.at(), bytes = cow.bytes(), seed = 10 + i] {
      return IsStamped(at, bytes, seed) ? 1 : 0;
    }) == 1;
  };
  for (size_t i = 0; i < kChildren; ++i) Want(sees(i), "child %zu has its moment", i);
  for (const size_t gone : {1, 3, 0}) {
    children[gone].reset();
    Stamp(cow.at(), cow.bytes(), 200 + gone);
  }
  Want(sees(2) && sees(4), "who is left has it still");
}

HOSTMM_CASE(SeveralRegions) {
  constexpr size_t kRegions = 4;
  std::array<std::unique_ptr<Cow>, kRegions> regions;
  for (size_t i = 0; i < kRegions; ++i) {
    regions[i] = std::make_unique<Cow>(kManagedBytes * (1 + i % 2));
    Stamp(regions[i]->at(), regions[i]->bytes(), i + 1);
  }
  // One in parts: with other protection, and a hole.
  char* parts = regions[3]->at();
  MUST(hostmm_mprotect(parts + kBlock, kBlock, PROT_READ) == 0);
  MUST(hostmm_munmap(parts + 2 * kBlock, kBlock) == 0);
  const int ended = InChild([&] {
    for (size_t i = 0; i < 3; ++i) {
      if (!IsStamped(regions[i]->at(), regions[i]->bytes(), i + 1)) return 1;
      Stamp(regions[i]->at(), regions[i]->bytes(), 50);
    }
    if (!IsStamped(parts, 2 * kBlock, 4)) return 2;
    if (TryWrite(parts + kBlock) != "SIGSEGV/ACCERR") return 3;
    if (TryRead(parts + 2 * kBlock) != "SIGSEGV/MAPERR") return 4;
    Stamp(parts + 3 * kBlock, kBlock, 50);
    return 0;
  });
  Want(ended == 0, "the child ended with %d", ended);
  bool mine = true;
  for (size_t i = 0; i < 3; ++i) {
    mine = mine && IsStamped(regions[i]->at(), regions[i]->bytes(), i + 1);
  }
  Want(mine && IsStamped(parts, 2 * kBlock, 4) && IsStamped(parts + 3 * kBlock, kBlock, 4),
       "the parent has its own");
}

// The library counts as parts what the pager has as one again.
void ForkWantsOneMoment(const Cow& cow, const char* what) {
  cow.WantManaged();
  Stamp(cow.at(), cow.bytes(), 1);
  Partner child;
  Stamp(cow.at(), cow.bytes(), 2);
  const int64_t seen =
      child.Do([at = cow.at(), bytes = cow.bytes()] { return IsStamped(at, bytes, 1) ? 1 : 0; });
  Want(seen == 1, "%s and back, the child has what was there", what);
}

HOSTMM_CASE(ProtectionIsSetAndSetBack) {
  const Cow cow;
  const size_t half = cow.bytes() / 2;
  MUST(hostmm_mprotect(cow.at() + half, half, PROT_READ) == 0);
  MUST(hostmm_mprotect(cow.at() + half, half, kReadWrite) == 0);
  ForkWantsOneMoment(cow, "protected");
}

HOSTMM_CASE(AdviceIsGivenAndTakenBack) {
  const Cow cow;
  const size_t half = cow.bytes() / 2;
  MUST(hostmm_madvise(cow.at() + half, half, MADV_DONTFORK) == 0);
  MUST(hostmm_madvise(cow.at() + half, half, MADV_DOFORK) == 0);
  ForkWantsOneMoment(cow, "advised");
}

// More parts than hostmm keeps: the hole that would make one too many is refused, and none of them
// is shared with a child.
HOSTMM_CASE(ManyHoles) {
  constexpr size_t kHoles = 300;
  const Cow cow;
  Stamp(cow.at(), cow.bytes(), 1);
  size_t cut = 0;
  // Two pages apart, or two blocks of hugetlb.
  const size_t step = 2 * Unit();
  const size_t most = std::min(kHoles, cow.bytes() / step - 1);
  while (cut < most && munmap(cow.at() + cut * step + Unit(), Unit()) == 0) ++cut;
  Want(cut == most || errno == ENOMEM, "%zu holes: %s", cut, ErrnoName(errno));
  Want(OnHugetlb() || cut < most, "the table is full");
  Partner child;
  const auto write = [](char* at, size_t bytes, size_t step, uint64_t seed) {
    for (size_t i = 0; i < bytes; i += step) Stamp(at + i, Unit(), seed);
  };
  write(cow.at(), cow.bytes(), step, 2);
  const int64_t wrong = child.Do([at = cow.at(), bytes = cow.bytes(), step] {
    int64_t count = 0;
    for (size_t i = 0; i < bytes; i += step) count += IsStamped(at + i, Unit(), 1) ? 0 : 1;
    return count;
  });
  Want(wrong == 0, "%d parts of the child are the parent's", static_cast<int>(wrong));
}

// A thread writes 1, 2, 3, ... to the first of many regions and then to the last one: a child that
// has n in the last one has n or n + 1 in the first one. While another child lives: then nobody has
// to be frozen anew.
HOSTMM_CASE(SeveralRegionsAreOfOneMoment) {
  constexpr size_t kRegions = 14;
  constexpr int kForks = 100;
  std::array<std::unique_ptr<Cow>, kRegions> regions;
  for (std::unique_ptr<Cow>& region : regions) {
    region = std::make_unique<Cow>(kManagedBytes);
    region->WantManaged();
  }
  const auto word = [&](size_t i) {
    return reinterpret_cast<std::atomic<uint64_t>*>(regions[i]->at());
  };
  for (size_t i = 0; i < kRegions; ++i) *word(i) = 0;
  const Partner elder;
  std::atomic<bool> stop = false;
  std::thread writer([&] {
    for (uint64_t n = 1; !stop; ++n) {
      *word(0) = n;
      *word(kRegions - 1) = n;
    }
  });
  int wrong = 0;
  for (int i = 0; i < kForks; ++i) {
    const int ended = InChild([&] {
      const uint64_t first = *word(0);
      const uint64_t last = *word(kRegions - 1);
      return first == last || first == last + 1 ? 0 : 1;
    });
    if (ended != 0) ++wrong;
  }
  stop = true;
  writer.join();
  Want(wrong == 0, "%d of %d children saw what was never", wrong, kForks);
}

HOSTMM_CASE(ChildOutlivesItsParent) {
  const Cow* cow = nullptr;
  struct Result {
    std::atomic<int> parent_is_gone = 0;
    std::atomic<int> child = 0;
  };
  Result* result = SharedCounters<Result>();
  const int parent = InChild([&] {
    cow = new Cow();
    Stamp(cow->at(), cow->bytes(), 1);
    const pid_t child = fork();
    if (child == 0) {
      const bool gone = Eventually([&] { return result->parent_is_gone == 1; });
      const bool right = gone && IsStamped(cow->at(), cow->bytes(), 1);
      Stamp(cow->at(), cow->bytes(), 2);
      result->child = right && IsStamped(cow->at(), cow->bytes(), 2) ? 1 : 2;
      _exit(0);
    }
    Stamp(cow->at(), cow->bytes() / 2, 3);
    return child > 0 ? 0 : 1;
  });
  MUST(parent == 0);
  result->parent_is_gone = 1;
  Want(Eventually([&] { return result->child != 0; }) && result->child == 1,
       "the child has it without its parent: %d", result->child.load());
}

// Threads write while the process forks: what a child sees is a state that existed, for each
// thread. A thread writes 1, 2, 3, ... to the pages of its part in turn: a child that has n in one
// page has n or n + 1 in those before it.
HOSTMM_CASE(ThreadsWriteWhileItForks) {
  constexpr size_t kThreads = 2;
  constexpr size_t kPagesOfOne = 16;
  constexpr int kForks = 30;
  const Cow cow;
  std::atomic<bool> stop = false;
  const auto part = [&](size_t thread, size_t page) {
    return reinterpret_cast<std::atomic<uint64_t>*>(
        cow.at() + (thread * kPagesOfOne + page) * (cow.bytes() / kThreads / kPagesOfOne));
  };
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t n = 1; !stop; ++n) {
        for (size_t page = 0; page < kPagesOfOne; ++page) *part(t, page) = n;
      }
    });
  }
  int wrong = 0;
  for (int i = 0; i < kForks; ++i) {
    const uint64_t before = *part(0, kPagesOfOne - 1);
    const int ended = InChild([&] {
      for (size_t t = 0; t < kThreads; ++t) {
        const uint64_t last = *part(t, kPagesOfOne - 1);
        uint64_t previous = *part(t, 0);
        if (previous != last && previous != last + 1) return 1;
        for (size_t page = 0; page < kPagesOfOne; ++page) {
          const uint64_t n = *part(t, page);
          if (n != previous && n != previous - 1) return 2;
          previous = n;
        }
      }
      return *part(0, kPagesOfOne - 1) >= before ? 0 : 3;
    });
    if (ended != 0) {
      ++wrong;
      Say("child %d ended with %d", i, ended);
    }
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  Want(wrong == 0, "%d of %d children saw what was never", wrong, kForks);
}

HOSTMM_PEER(exits) { return static_cast<int>(words.size()); }

HOSTMM_CASE(ForkAndExec) {
  const Cow cow;
  Stamp(cow.at(), cow.bytes(), 1);
  for (int i = 0; i < 3; ++i) {
    const int ended = WaitFor(StartPeer("exits", {"a", "b", "c"}));
    Want(ended == 3, "the program ended with %d", ended);
    Stamp(cow.at(), cow.bytes() / 2, static_cast<uint64_t>(2 + i));
  }
  Want(IsStamped(cow.at(), cow.bytes() / 2, 4), "the parent writes on");
  const int ended =
      InChild([&] { return IsStamped(cow.at() + cow.bytes() / 2, cow.bytes() / 2, 1) ? 0 : 1; });
  Want(ended == 0, "and forks again");
}

HOSTMM_CASE(ChildUnmapsAndDrops) {
  const Cow cow;
  Stamp(cow.at(), cow.bytes(), 1);
  const size_t quarter = cow.bytes() / 4;
  const int ended = InChild([&] {
    Stamp(cow.at(), quarter, 2);
    // As of private memory: zeros afterwards.
    if (hostmm_madvise(cow.at(), 2 * quarter, MADV_DONTNEED) != 0) return 1;
    if (!IsZero(cow.at(), 2 * quarter)) return 2;
    if (hostmm_munmap(cow.at() + 2 * quarter, quarter) != 0) return 3;
    return IsStamped(cow.at() + 3 * quarter, quarter, 1) ? 0 : 4;
  });
  Want(ended == 0, "the child ended with %d", ended);
  MUST(hostmm_madvise(cow.at() + quarter, quarter, MADV_DONTNEED) == 0);
  Want(IsStamped(cow.at(), quarter, 1) && IsZero(cow.at() + quarter, quarter), "the parent, too");
}

HOSTMM_CASE(ChildIsKilled) {
  const Cow cow;
  for (uint64_t round = 1; round <= 10; ++round) {
    Stamp(cow.at(), cow.bytes(), round);
    Partner child(Partner::Begun::kMaybe);
    child.Start([at = cow.at(), bytes = cow.bytes()] {
      for (;;) Stamp(at, bytes, 77);
      return 0;
    });
    Stamp(cow.at(), cow.bytes() / 2, round + 100);
    child.Kill();
  }
  Want(IsStamped(cow.at(), cow.bytes() / 2, 110), "the parent has its own");
  Want(IsStamped(cow.at() + cow.bytes() / 2, cow.bytes() / 2, 10), "all of it");
}

// Small memory is plain, and means the same.
HOSTMM_CASE(SmallMemoryIsPlain) {
  const Cow cow(kManagedBytes / 2);
  Stamp(cow.at(), cow.bytes(), 1);
  Want(!IsRegistered(cow.at()), "it is the kernel's");
  const int ended = InChild([&] {
    if (!IsStamped(cow.at(), cow.bytes(), 1)) return 1;
    Stamp(cow.at(), cow.bytes(), 2);
    return 0;
  });
  Want(ended == 0 && IsStamped(cow.at(), cow.bytes(), 1), "fork is fork");
}

// The child's pages that were not copied are gone with the pager: it is told, by SIGBUS, and reads
// nothing wrong. The parent goes on.
HOSTMM_CASE(PagerDiesUnderAChild) {
  const Cow cow;
  Stamp(cow.at(), cow.bytes(), 1);
  Partner child;
  child.Do([at = cow.at(), bytes = cow.bytes()] {
    Stamp(at, bytes / 4, 2);
    return IsStamped(at + bytes / 4, bytes / 4, 1);
  });
  MUST(kill(PagerPid(), SIGKILL) == 0);
  Stamp(cow.at(), cow.bytes(), 3);
  Want(IsStamped(cow.at(), cow.bytes(), 3), "the parent goes on");
  const int64_t wrong = child.Do([at = cow.at(), bytes = cow.bytes()] {
    int64_t bad = 0;
    for (size_t i = 0; i < bytes; i += Unit()) {
      uint64_t word = 0;
      const std::string read = TryReadWord(at + i, &word);
      const bool right = read == "SIGBUS/ADRERR" ||
                         (read == "ok" && word == StampOf(at + i, i < bytes / 4 ? 2 : 1));
      if (!right) ++bad;
    }
    return bad;
  });
  Want(wrong == 0, "the child reads what is its own, or SIGBUS: %lld units are wrong",
       static_cast<long long>(wrong));
  // From now on it is the kernel's copy-on-write.
  const int ended = InChild([&] {
    if (!IsStamped(cow.at(), cow.bytes(), 3)) return 1;
    Stamp(cow.at(), cow.bytes(), 4);
    return 0;
  });
  Want(ended == 0 && IsStamped(cow.at(), cow.bytes(), 3), "it forks without a pager: %d", ended);
}

}  // namespace
}  // namespace hostmm::test
