// mmap of anonymous shared memory in every form: what the caller gets must not depend on hostmm.
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "tests/process/guest_program.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr size_t kPage = 4096;

// A range that is surely free, with free space on both sides of it.
char* FreeRange(size_t bytes) {
  constexpr size_t kMargin = 4 * kMib;
  void* at = mmap(nullptr, bytes + 2 * kMargin, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(at != MAP_FAILED && munmap(at, bytes + 2 * kMargin) == 0);
  return static_cast<char*>(at) + kMargin;
}

size_t PagesInMemory(char* at, size_t bytes) {
  std::vector<unsigned char> flags((bytes + kPage - 1) / kPage);
  MUST(mincore(at, bytes, flags.data()) == 0);
  size_t count = 0;
  for (unsigned char flag : flags) count += flag & 1;
  return count;
}

void SayMapped(const char* what, const char* at) {
  Say("%s: %s", what, at == MAP_FAILED ? ErrnoName(errno) : "mapped");
}

// Writes, checks and unmaps; says what became of it.
// (Arguments of one call are evaluated in any order: what changes something stands alone.)
void UseAndUnmap(const char* what, char* at, size_t bytes) {
  SayMapped(what, at);
  if (at == MAP_FAILED) return;
  Fill(at, bytes, 7);
  const bool holds = Holds(at, bytes, 7);
  Say("%s: holds %d, unmap %s", what, holds, Outcome(munmap(at, bytes)));
}

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

}  // namespace

HOSTMM_CASE(AnonymousOfEightMib) {
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  uint64_t sum = 0;
  for (size_t i = 0; i < kManagedBytes; i += kPage) sum += static_cast<unsigned char>(at[i]);
  Say("zeros: %lu", sum);
  Fill(at, kManagedBytes, 1);
  Say("checksum %lx", Checksum(at, kManagedBytes));
  // (The kernel empties the page tables when a block is made huge; a touch maps it again.)
  const auto is_huge = [at] { return TryRead(at) == "ok" && HugeMappedKib(at) > 0; };
  Expect(!UnderHostmm() || Eventually(is_huge), "a filled region is mapped huge");
  Say("unmap %s", Outcome(munmap(at, kManagedBytes)));
  Say("after: %s", TryRead(at).c_str());
}

HOSTMM_CASE(SmallerCostsNothing) {
  char* at = MustMapShared(kManagedBytes - kPage);
  Fill(at, kManagedBytes - kPage, 2);
  Say("holds %d", Holds(at, kManagedBytes - kPage, 2));
  Say("threads %zu descriptors %zu", ThreadCount(), DescriptorCount());
  ExpectUnmanaged();
}

HOSTMM_CASE(PrivateCostsNothing) {
  void* at = mmap(nullptr, 4 * kManagedBytes, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Say("%s threads %zu descriptors %zu", at == MAP_FAILED ? "failed" : "mapped", ThreadCount(),
      DescriptorCount());
  ExpectUnmanaged();
}

HOSTMM_CASE(LowDescriptorsStayFree) {
  const int before = dup(0);
  close(before);
  ExpectManaged(MustMapShared(kManagedBytes));
  const int after = dup(0);
  Say("next descriptor moved by %d", after - before);
}

HOSTMM_CASE(HintIsTaken) {
  char* hint = FreeRange(kManagedBytes);
  char* at = MapShared(kManagedBytes, 0, hint);
  Say("at the hint %d", at == hint);
  ExpectManaged(at);
  char* odd = FreeRange(kManagedBytes) + 5 * kPage;
  at = MapShared(kManagedBytes, 0, odd);
  Say("at the odd hint %d", at == odd);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 3);
  Say("holds %d", Holds(at, kManagedBytes, 3));
  odd = FreeRange(kManagedBytes) + 123;
  at = MapShared(kManagedBytes, 0, odd);
  Say("hint inside a page: offset %ld", static_cast<long>(at - odd));
}

HOSTMM_CASE(HintOverSomethingGoesElsewhere) {
  char* there = MustMapShared(kManagedBytes);
  Fill(there, kManagedBytes, 4);
  char* at = MapShared(kManagedBytes, 0, there + kMib);
  Say("elsewhere %d", at >= there + kManagedBytes || at + kManagedBytes <= there);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 5);
  Say("both hold %d %d", Holds(there, kManagedBytes, 4), Holds(at, kManagedBytes, 5));
}

HOSTMM_CASE(FixedReplaces) {
  char* at = MustMapShared(2 * kManagedBytes);
  Fill(at, 2 * kManagedBytes, 6);
  char* over = MapShared(kManagedBytes, MAP_FIXED, at + 3 * kMib + kPage);
  Say("in place %d", over == at + 3 * kMib + kPage);
  ExpectManaged(over);
  Say("new part reads %d", over[0]);
  Fill(over, kManagedBytes, 8);
  Say("head %d new %d", Holds(at, 3 * kMib, 6), Holds(over, kManagedBytes, 8));
  Say("whole %lx", Checksum(at, 2 * kManagedBytes));
  Say("unaligned: %s", Outcome(MapShared(kManagedBytes, MAP_FIXED, at + 1) == MAP_FAILED ? -1 : 0));
  Say("at 0 for nobody: %d", InChild([] {
        GiveUpRoot();
        return MapShared(kManagedBytes, MAP_FIXED) == MAP_FAILED ? errno : 0;
      }));
  Say("beyond the end: %s",
      Outcome(MapShared(kManagedBytes, MAP_FIXED, reinterpret_cast<char*>(~uint64_t{0} << 12)) ==
                      MAP_FAILED
                  ? -1
                  : 0));
}

HOSTMM_CASE(FixedOverPrivateMemory) {
  void* mine = mmap(nullptr, 2 * kManagedBytes, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(mine != MAP_FAILED);
  Fill(static_cast<char*>(mine), 2 * kManagedBytes, 9);
  char* at = MapShared(kManagedBytes, MAP_FIXED, mine);
  Say("in place %d, reads %d", at == mine, at[kMib]);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 10);
  Say("%lx", Checksum(at, 2 * kManagedBytes));
}

HOSTMM_CASE(FixedNoReplace) {
  char* there = MustMapShared(kManagedBytes);
  Fill(there, kManagedBytes, 11);
  SayMapped("over a region", MapShared(kManagedBytes, MAP_FIXED_NOREPLACE, there + kMib));
  SayMapped("both flags", MapShared(kManagedBytes, MAP_FIXED_NOREPLACE | MAP_FIXED, there + kMib));
  Say("untouched %d", Holds(there, kManagedBytes, 11));
  char* free_range = FreeRange(kManagedBytes);
  char* at = MapShared(kManagedBytes, MAP_FIXED_NOREPLACE, free_range);
  Say("in a free range %d", at == free_range);
  ExpectManaged(at);
  Say("at 0 for nobody: %d", InChild([] {
        GiveUpRoot();
        return MapShared(kManagedBytes, MAP_FIXED_NOREPLACE) == MAP_FAILED ? errno : 0;
      }));
}

HOSTMM_CASE(OddSizes) {
  for (const size_t more : {kPage, size_t{1}, 3 * kMib + 17 * kPage, size_t{4095}}) {
    char* at = MustMapShared(kManagedBytes + more);
    ExpectManaged(at);
    const size_t whole = (kManagedBytes + more + kPage - 1) / kPage * kPage;
    Say("last page: %s %s", TryRead(at + whole - 1).c_str(), TryWrite(at + whole - 1).c_str());
    UseAndUnmap("odd", at, whole);
  }
}

HOSTMM_CASE(Populate) {
  char* at = MapShared(kManagedBytes, MAP_POPULATE);
  MUST(at != MAP_FAILED);
  Say("in memory %zu", PagesInMemory(at, kManagedBytes));
  ExpectManaged(at);
  at = MapShared(kManagedBytes, MAP_POPULATE, nullptr, PROT_READ);
  Say("read only: in memory %zu, write %s", PagesInMemory(at, kManagedBytes), TryWrite(at).c_str());
  SayMapped("PROT_NONE", MapShared(kManagedBytes, MAP_POPULATE, nullptr, PROT_NONE));
}

HOSTMM_CASE(Locked) {
  char* at = MapShared(kManagedBytes, MAP_LOCKED);
  MUST(at != MAP_FAILED);
  Say("locked %ld kB, in memory %zu", StatusKib(0, "VmLck"), PagesInMemory(at, kManagedBytes));
  ExpectManaged(at);
  Say("unmap %s", Outcome(munmap(at, kManagedBytes)));
  Say("locked %ld kB", StatusKib(0, "VmLck"));
}

HOSTMM_CASE(LockedAgainstTheLimit) {
  Limit(RLIMIT_MEMLOCK, kManagedBytes);
  GiveUpRoot();
  char* at = MapShared(kManagedBytes, MAP_LOCKED);
  SayMapped("within", at);
  Expect(at != MAP_FAILED && HasAgent(), "managed");
  SayMapped("over", MapShared(kManagedBytes, MAP_LOCKED));
  Say("locked %ld kB", StatusKib(0, "VmLck"));
  Say("unmap %s", Outcome(munmap(at, kManagedBytes)));
  Limit(RLIMIT_MEMLOCK, 0);
  SayMapped("limit 0", MapShared(kManagedBytes, MAP_LOCKED));
  Say("locked %ld kB", StatusKib(0, "VmLck"));
}

HOSTMM_CASE(OtherFlags) {
  UseAndUnmap("MAP_NORESERVE", MapShared(kManagedBytes, MAP_NORESERVE), kManagedBytes);
  UseAndUnmap("0x200000", MapShared(kManagedBytes, 0x200000), kManagedBytes);
  UseAndUnmap("MAP_STACK", MapShared(kManagedBytes, MAP_STACK), kManagedBytes);
  const auto with = [](int flags, off_t offset = 0, int fd = -1) {
    return static_cast<char*>(mmap(nullptr, kManagedBytes, 3, flags, fd, offset));
  };
  SayMapped("no type", with(MAP_ANONYMOUS));
  SayMapped("validate", with(MAP_SHARED_VALIDATE | MAP_ANONYMOUS));
  SayMapped("validate an unknown bit", with(MAP_SHARED_VALIDATE | MAP_ANONYMOUS | 0x200000));
  SayMapped("growing down", with(MAP_SHARED | MAP_ANONYMOUS | MAP_GROWSDOWN));
  SayMapped("low", with(MAP_SHARED | MAP_ANONYMOUS | MAP_32BIT));
  SayMapped("odd offset", with(MAP_SHARED | MAP_ANONYMOUS, 123));
  SayMapped("whole offset", with(MAP_SHARED | MAP_ANONYMOUS, kMib));
  SayMapped("with a descriptor", with(MAP_SHARED | MAP_ANONYMOUS, 0, 99));
  SayMapped("bad descriptor", with(MAP_SHARED, 0, 99));
  ExpectAttached();
}

HOSTMM_CASE(Lengths) {
  ExpectManaged(MustMapShared(kManagedBytes));
  const int file = memfd_create("lengths", 0);
  MUST(ftruncate(file, kManagedBytes) == 0);
  for (const size_t bytes : {~size_t{0}, ~size_t{0} - 4094, ~size_t{0} - 4095, size_t{1} << 63,
                             size_t{1} << 47, size_t{1} << 42, size_t{0}}) {
    Say("%zx: %s, file %s", bytes, Outcome(MapShared(bytes) == MAP_FAILED ? -1 : 0),
        Outcome(mmap(nullptr, bytes, 3, MAP_SHARED, file, 0) == MAP_FAILED ? -1 : 0));
  }
  Say("offset overflows: %s", Outcome(mmap(nullptr, kManagedBytes, 3, MAP_SHARED, file,
                                           static_cast<off_t>(~size_t{4095})) == MAP_FAILED
                                          ? -1
                                          : 0));
}

HOSTMM_CASE(AddressSpaceLimit) {
  ExpectManaged(MustMapShared(kManagedBytes));
  Limit(RLIMIT_AS, 256 * kMib);
  UseAndUnmap("within", MapShared(64 * kMib), 64 * kMib);
  SayMapped("over", MapShared(300 * kMib));
}

HOSTMM_CASE(Protections) {
  for (const int prot : {PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE,
                         PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC}) {
    char* at = MapShared(kManagedBytes, 0, nullptr, prot);
    SayMapped("prot", at);
    ExpectManaged(at);
    Say("prot %d: read %s write %s", prot, TryRead(at + kMib).c_str(), TryWrite(at + kMib).c_str());
    Say("opened: %s", Outcome(mprotect(at, kManagedBytes, 3)));
    Say("read %s write %s", TryRead(at + 3 * kMib).c_str(), TryWrite(at + 3 * kMib).c_str());
    UseAndUnmap("prot", at, kManagedBytes);
  }
}

HOSTMM_CASE(ExecutableMemoryRuns) {
  char* at = MapShared(kManagedBytes, 0, nullptr, PROT_READ | PROT_WRITE | PROT_EXEC);
  MUST(at != MAP_FAILED);
  ExpectManaged(at);
#if defined(__x86_64__)
  const unsigned char return_42[] = {0xb8, 42, 0, 0, 0, 0xc3};  // mov eax, 42; ret
#else
  const unsigned char return_42[] = {0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6};
#endif
  __builtin_memcpy(at + kMib, return_42, sizeof(return_42));
  __builtin___clear_cache(at + kMib, at + kMib + sizeof(return_42));
  Say("%d", reinterpret_cast<int (*)()>(at + kMib)());
}

HOSTMM_CASE(MoreRegionsThanTheTableHolds) {
  constexpr size_t kRegions = 300;
  std::vector<char*> regions;
  for (size_t i = 0; i < kRegions; ++i) {
    regions.push_back(MustMapShared(kManagedBytes));
    regions[i][kMib] = static_cast<char>(i);
  }
  ExpectManaged(regions[0]);
  const int child = InChild([&regions] {
    int wrong = 0;
    for (size_t i = 0; i < kRegions; ++i) {
      wrong += regions[i][kMib] != static_cast<char>(i);
      regions[i][2 * kMib] = static_cast<char>(i + 1);
    }
    return wrong;
  });
  int wrong = 0;
  for (size_t i = 0; i < kRegions; ++i) {
    wrong += regions[i][kMib] != static_cast<char>(i);
    wrong += regions[i][2 * kMib] != static_cast<char>(i + 1);
  }
  Say("wrong in the child %d, in the parent %d", child, wrong);
  int refused = 0;
  // Every third one first, so that the table is emptied out of order.
  for (size_t step = 0; step < 3; ++step) {
    for (size_t i = step; i < kRegions; i += 3) refused += munmap(regions[i], kManagedBytes) != 0;
  }
  Say("unmap refused %d", refused);
  char* again = MustMapShared(kManagedBytes);
  ExpectManaged(again);
  UseAndUnmap("again", again, kManagedBytes);
}

namespace {

std::atomic<int> g_handled;
std::atomic<int> g_wrong;

void MapInHandler(int) {
  char* at = MapShared(kManagedBytes);
  if (at == MAP_FAILED) {
    ++g_wrong;
    return;
  }
  at[5 * kMib] = 5;
  if (at[5 * kMib] != 5 || munmap(at, kManagedBytes) != 0) ++g_wrong;
  ++g_handled;
}

}  // namespace

HOSTMM_CASE(MappingInASignalHandler) {
  signal(SIGALRM, MapInHandler);
  int wrong = 0;
  const bool enough = Eventually([&wrong] {
    // One signal for each round: with a period that is shorter than the handler, which a busy
    // machine makes of any, nothing else would run. At another moment in each.
    const itimerval once = {{0, 0}, {0, 1 + 7 * g_handled % 200}};
    setitimer(ITIMER_REAL, &once, nullptr);
    char* at = MapShared(kManagedBytes);
    if (at == MAP_FAILED) {
      ++wrong;
    } else {
      at[kMib] = 1;
      wrong += munmap(at, kManagedBytes) != 0;
    }
    return g_handled >= 50;
  });
  const itimerval never = {};
  setitimer(ITIMER_REAL, &never, nullptr);
  Say("handled enough %d, wrong %d in the handler, %d outside", enough, g_wrong.load(), wrong);
  ExpectAttached();
}

HOSTMM_CASE(EightThreadsMapAtOnce) {
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (uint64_t id = 0; id < 8; ++id) {
    threads.emplace_back([id, &wrong] {
      for (uint64_t round = 0; round < 6; ++round) {
        char* at = MapShared(kManagedBytes);
        if (at == MAP_FAILED) {
          ++wrong;
          continue;
        }
        Fill(at, kManagedBytes, id * 100 + round);
        wrong += !Holds(at, kManagedBytes, id * 100 + round);
        wrong += munmap(at, kManagedBytes) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  Say("wrong %d", wrong.load());
  ExpectAttached();
}

HOSTMM_CASE(EightThreadsTouchOneRegion) {
  char* at = MustMapShared(4 * kManagedBytes);
  ExpectManaged(at);
  std::atomic<size_t> next = 0;
  std::vector<std::thread> threads;
  for (int id = 0; id < 8; ++id) {
    threads.emplace_back([at, &next] {
      for (size_t page; (page = next++) < 4 * kManagedBytes / kPage;) {
        ++*reinterpret_cast<std::atomic<uint32_t>*>(at + page * kPage);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t ones = 0;
  for (size_t page = 0; page < 4 * kManagedBytes / kPage; ++page) ones += at[page * kPage] == 1;
  Say("pages %zu", ones);
}

}  // namespace hostmm::test
