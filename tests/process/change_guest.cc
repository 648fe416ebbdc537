// What a program does to memory that it has mapped: unmap, protect, move, advise, lock, look.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "tests/process/guest_program.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kBlock = 2 * kMib;
constexpr size_t kBytes = 2 * kManagedBytes;

// A region with known content.
char* Filled(size_t bytes = kBytes) {
  char* at = MustMapShared(bytes);
  ExpectManaged(at);
  Fill(at, bytes, 1);
  return at;
}

void SaySums(const char* what, const char* at, size_t from, size_t to) {
  Say("%s: %zx-%zx %lx", what, from, to, Checksum(at + from, to - from));
}

size_t PagesInMemory(char* at, size_t bytes) {
  std::vector<unsigned char> flags(bytes / kPage);
  MUST(mincore(at, bytes, flags.data()) == 0);
  return static_cast<size_t>(
      std::count_if(flags.begin(), flags.end(), [](auto f) { return f & 1; }));
}

}  // namespace

HOSTMM_CASE(UnmapParts) {
  char* at = Filled();
  Say("middle %s", Outcome(munmap(at + 3 * kMib + kPage, 2 * kMib)));
  Say("head %s", Outcome(munmap(at, kPage)));
  Say("tail %s", Outcome(munmap(at + kBytes - kBlock, kBlock)));
  Say("%s %s %s", TryRead(at).c_str(), TryRead(at + 4 * kMib).c_str(),
      TryRead(at + kBytes - 1).c_str());
  SaySums("first", at, kPage, 3 * kMib + kPage);
  SaySums("second", at, 5 * kMib + kPage, kBytes - kBlock);
  Say("child %d", InChild([at] {
        if (TryRead(at + 4 * kMib) != "SIGSEGV/MAPERR") return 1;
        at[6 * kMib] = 66;
        return UnderHostmm() && !IsRegistered(at + 6 * kMib) ? 2 : 0;
      }));
  Say("sees %d", at[6 * kMib]);
  Say("over the holes %s", Outcome(munmap(at, kBytes)));
  Say("again %s, unaligned %s, nothing %s", Outcome(munmap(at, kBytes)),
      Outcome(munmap(at + 1, kPage)), Outcome(munmap(at, 0)));
}

HOSTMM_CASE(HolesUnderParts) {
  // The same with nothing filled: faults come after the parts have been cut.
  char* at = MustMapShared(kBytes);
  MUST(munmap(at + 4 * kMib, kBlock) == 0);
  MUST(mprotect(at + 8 * kMib, kBlock, PROT_READ) == 0);
  ExpectManaged(at);
  Say("%s %s", TryWrite(at + 3 * kMib).c_str(), TryWrite(at + 4 * kMib).c_str());
  Say("%s %s", TryWrite(at + 8 * kMib).c_str(), TryRead(at + 8 * kMib).c_str());
  Say("%s %s", TryWrite(at + 7 * kMib).c_str(), TryWrite(at + kBytes - 1).c_str());
  Say("in the child %d", InChild([at] {
        return TryWrite(at + 12 * kMib) == "ok" && TryRead(at + 4 * kMib) == "SIGSEGV/MAPERR" ? 0
                                                                                              : 1;
      }));
}

HOSTMM_CASE(OtherMappingOverAPart) {
  char* at = Filled();
  void* over = mmap(at + 5 * kMib, 3 * kMib, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  Say("in place %d, reads %d", over == at + 5 * kMib, at[6 * kMib]);
  Say("after a fork the private part is private: %d", InChild([at] {
        at[6 * kMib] = 9;
        at[kMib] = 9;
        return 0;
      }));
  Say("%d %d", at[6 * kMib], at[kMib]);
  SaySums("head", at, kBlock, 5 * kMib);
  SaySums("tail", at, 8 * kMib, kBytes);
  ExpectManaged(at);
}

HOSTMM_CASE(ProtectParts) {
  char* at = Filled();
  Say("read only %s", Outcome(mprotect(at + 2 * kMib, 3 * kMib, PROT_READ)));
  Say("none %s", Outcome(mprotect(at + 6 * kMib + kPage, kPage, PROT_NONE)));
  Say("%s %s", TryRead(at + 3 * kMib).c_str(), TryWrite(at + 3 * kMib).c_str());
  Say("%s %s", TryRead(at + 6 * kMib + kPage).c_str(), TryWrite(at + 6 * kMib + kPage).c_str());
  Say("%s %s", TryWrite(at + 2 * kMib - 1).c_str(), TryWrite(at + 5 * kMib).c_str());
  int ends[2];
  MUST(pipe(ends) == 0 && write(ends[1], "abcdefgh", 8) == 8);
  Say("read into it: %s", Outcome(read(ends[0], at + 3 * kMib, 4)));
  Say("write from nothing: %s", Outcome(write(ends[1], at + 6 * kMib + kPage, 4)));
  Say("write from it: %s", Outcome(write(ends[1], at + 3 * kMib, 4)));
  // The protection is the caller's own; the child inherits it and changes its own.
  Say("child %d", InChild([at] {
        if (TryWrite(at + 3 * kMib) != "SIGSEGV/ACCERR") return 1;
        if (mprotect(at, kBytes, PROT_READ | PROT_WRITE) != 0) return 2;
        return TryWrite(at + 3 * kMib, 77) == "ok" ? 0 : 3;
      }));
  Say("sees %d, still %s", at[3 * kMib], TryWrite(at + 3 * kMib).c_str());
  Say("bad prot %s", Outcome(mprotect(at, kPage, 0x7fff0000)));
  Say("unaligned %s", Outcome(mprotect(at + 1, kPage, PROT_READ)));
  MUST(munmap(at + 10 * kMib, kPage) == 0);
  Say("over a hole %s", Outcome(mprotect(at + 9 * kMib, 2 * kMib, PROT_READ)));
  Say("back %s", Outcome(mprotect(at, 9 * kMib, PROT_READ | PROT_WRITE)));
  Say("%s", TryWrite(at + 6 * kMib + kPage).c_str());
}

HOSTMM_CASE(RemapShrinks) {
  char* at = Filled();
  Say("in place %d", mremap(at, kBytes, 5 * kMib + kPage, 0) == at);
  Say("%s %s", TryRead(at + 5 * kMib).c_str(), TryRead(at + 5 * kMib + kPage).c_str());
  SaySums("kept", at, 0, 5 * kMib + kPage);
  ExpectManaged(at);
}

HOSTMM_CASE(RemapGrows) {
  char* at = Filled(kManagedBytes);
  // In the way of growing in place.
  mmap(at + kManagedBytes, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1,
       0);
  Say("in place refused: %s", Outcome(mremap(at, kManagedBytes, kBytes, 0) == MAP_FAILED ? -1 : 0));
  char* to = static_cast<char*>(mremap(at, kManagedBytes, kBytes, MREMAP_MAYMOVE));
  MUST(to != MAP_FAILED);
  ExpectManaged(to);
  Say("moved %d, old %s", to != at, TryRead(at).c_str());
  SaySums("content", to, 0, kManagedBytes);
  // The memory is a file of the first length: beyond it there is nothing.
  Say("beyond the end: %s %s", TryRead(to + kManagedBytes).c_str(),
      TryWrite(to + kBytes - 1).c_str());
  Say("unmap %s", Outcome(munmap(to, kBytes)));
}

HOSTMM_CASE(RemapMovesTo) {
  char* at = Filled();
  at[0] = 1;
  char* target = static_cast<char*>(mmap(nullptr, kBytes, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  MUST(target != MAP_FAILED);
  char* to = static_cast<char*>(mremap(at + kBlock, kManagedBytes, kManagedBytes,
                                       MREMAP_MAYMOVE | MREMAP_FIXED, target + kPage));
  Say("there %d, hole %s", to == target + kPage, TryRead(at + 3 * kMib).c_str());
  SaySums("moved", to, 0, kManagedBytes);
  SaySums("head", at, 0, kBlock);
  SaySums("tail", at, kBlock + kManagedBytes, kBytes);
  Say("child %d", InChild([=] {
        to[5] = 55;
        at[5] = 56;
        return 0;
      }));
  Say("%d %d", to[5], at[5]);
  // Onto another region of ours.
  char* other = Filled(kManagedBytes);
  to = static_cast<char*>(
      mremap(to, kManagedBytes, kManagedBytes, MREMAP_MAYMOVE | MREMAP_FIXED, other));
  Say("onto a region %d", to == other);
  SaySums("moved again", to, 0, kManagedBytes);
  Say("onto itself %s", Outcome(mremap(to, kManagedBytes, kManagedBytes,
                                       MREMAP_MAYMOVE | MREMAP_FIXED, to + kPage) == MAP_FAILED
                                    ? -1
                                    : 0));
}

HOSTMM_CASE(HolesMoveToo) {
  char* at = MustMapShared(kBytes);
  at[0] = 1;
  char* to = static_cast<char*>(mremap(at, kBytes, kBytes + kBlock, MREMAP_MAYMOVE));
  MUST(to != MAP_FAILED);
  ExpectManaged(to);
  for (size_t offset = 0; offset < kBytes; offset += kPage) to[offset] = 3;
  Say("ones %zu", static_cast<size_t>(std::count(to, to + kBytes, 3)));
  Say("child %d", InChild([to] { return to[kBytes - kPage]; }));
}

HOSTMM_CASE(RemapKeepsTheOld) {
  constexpr int kDontUnmap = 4;
  char* at = Filled();
  char* copy = static_cast<char*>(mremap(at, 0, kBytes, MREMAP_MAYMOVE));
  Say("old size 0: %s", copy == MAP_FAILED ? ErrnoName(errno) : "mapped");
  if (copy != MAP_FAILED) {
    copy[kMib] = 41;
    at[2 * kMib] = 42;
    Say("one memory: %d %d", at[kMib], copy[2 * kMib]);
  }
  char* to = static_cast<char*>(mremap(at, kBytes, kBytes, MREMAP_MAYMOVE | kDontUnmap, nullptr));
  Say("dontunmap: %s", to == MAP_FAILED ? ErrnoName(errno) : "mapped");
  if (to != MAP_FAILED) {
    SaySums("moved", to, 0, kBytes);
    SaySums("old reads the same", at, 0, kBytes);
    to[3 * kMib] = 43;
    Say("one memory: %d", at[3 * kMib]);
  }
  Say("child %d",
      InChild([=] { return TryWrite(to + kMib) == "ok" && TryWrite(at) == "ok" ? 0 : 1; }));
  ExpectManaged(at);
}

HOSTMM_CASE(RemapErrors) {
  char* at = Filled(kManagedBytes);
  const auto say = [](const char* what, void* got) {
    Say("%s: %s", what, got == MAP_FAILED ? ErrnoName(errno) : "ok");
  };
  say("unaligned", mremap(at + 1, kManagedBytes, kBytes, MREMAP_MAYMOVE));
  say("new size 0", mremap(at, kManagedBytes, 0, MREMAP_MAYMOVE));
  say("unknown flag", mremap(at, kManagedBytes, kBytes, 0x100));
  say("fixed without maymove", mremap(at, kManagedBytes, kBytes, MREMAP_FIXED, at));
  say("beyond the region", mremap(at, 4 * kBytes, 4 * kBytes + kPage, MREMAP_MAYMOVE));
  say("too long", mremap(at, kManagedBytes, ~size_t{0} - 8191, MREMAP_MAYMOVE));
  SaySums("content", at, 0, kManagedBytes);
}

HOSTMM_CASE(EveryAdvice) {
  // Not: 25 (collapse: its answer depends on the alignment, which hostmm chooses better), 100 and
  // 101 (they take memory from the machine).
  for (int advice = 0; advice <= 110; ++advice) {
    if (advice == 25 || advice == MADV_HWPOISON || advice == 101) continue;
    char* at = MustMapShared(kManagedBytes);
    Fill(at, kManagedBytes, 1);
    const int result = madvise(at + kMib, 4 * kMib, advice);
    const char* outcome = Outcome(result);
    if (result == 0) {
      const std::string touched = TryWrite(at + 3 * kMib, 3);
      // (Behind a guard, advice 102, nothing can be read.)
      if (touched == "ok") SaySums("then", at, kMib, 2 * kMib);
      Say("advice %d: %s, touch %s", advice, outcome, touched.c_str());
    } else {
      Say("advice %d: %s", advice, outcome);
    }
    MUST(munmap(at, kManagedBytes) == 0);
  }
  ExpectAttached();
}

HOSTMM_CASE(AdviceErrors) {
  char* at = Filled(kBytes);
  Say("unaligned %s", Outcome(madvise(at + 1, kPage, MADV_DONTNEED)));
  Say("length 0 %s", Outcome(madvise(at, 0, MADV_REMOVE)));
  Say("unknown %s", Outcome(madvise(at, kPage, 77)));
  MUST(munmap(at + kManagedBytes, kPage) == 0);
  for (const int advice : {MADV_DONTNEED, MADV_REMOVE, MADV_DONTFORK, MADV_NOHUGEPAGE}) {
    Say("over a hole %s", Outcome(madvise(at, kBytes, advice)));
  }
  Say("child %d", InChild([at] { return TryRead(at) == "SIGSEGV/MAPERR" ? 0 : 1; }));
  MUST(mprotect(at, kManagedBytes, PROT_READ) == 0);
  Say("remove from read only: %s", Outcome(madvise(at, kBlock, MADV_REMOVE)));
  Say("populate for writing: %s", Outcome(madvise(at, kBlock, MADV_POPULATE_WRITE)));
}

HOSTMM_CASE(DontNeedKeepsRemoveZeroes) {
  char* at = Filled();
  Turns turns;
  const pid_t child = fork();
  MUST(child >= 0);
  if (child == 0) {
    turns.IAmSecond();
    const bool before = Holds(at, kBytes, 1);
    turns.Pass();
    turns.Await();
    // The parent has dropped all and removed one part: the child sees zeros there and only there.
    const uint64_t sum = Checksum(at, kBytes);
    at[4 * kMib] = 44;
    turns.Pass();
    _exit(before && sum != 0 ? 0 : 1);
  }
  turns.IAmFirst();
  turns.Await();
  MUST(madvise(at, kBytes, MADV_DONTNEED) == 0);
  SaySums("kept", at, 0, kBytes);
  MUST(madvise(at + 3 * kMib, 2 * kMib + kPage, MADV_REMOVE) == 0);
  turns.Pass();
  turns.Await();
  SaySums("removed", at, 0, kBytes);
  Say("child's write after that %d, child %d", at[4 * kMib], WaitFor(child));
  for (size_t i = 0; i < 2 * kMib; i += kPage) at[3 * kMib + i] = 5;
  SaySums("written again", at, 0, kBytes);
}

HOSTMM_CASE(DontFork) {
  char* at = Filled();
  MUST(madvise(at + kBlock, 3 * kBlock, MADV_DONTFORK) == 0);
  const auto child = [at] {
    return InChild([at] {
      return (TryWrite(at + kBlock + kPage) == "ok" ? 1 : 0) + (TryWrite(at) == "ok" ? 2 : 0) +
             (TryWrite(at + kBytes - 1) == "ok" ? 4 : 0);
    });
  };
  Say("without the middle %d", child());
  MUST(madvise(at, kBytes, MADV_DOFORK) == 0);
  Say("with all %d", child());
  ExpectManaged(at);
}

HOSTMM_CASE(LockAndLook) {
  char* at = MustMapShared(kManagedBytes);
  ExpectManaged(at);
  Say("nothing in memory %zu", PagesInMemory(at, kManagedBytes));
  Say("lock %s", Outcome(mlock(at + kMib, kMib)));
  Say("locked %ld kB, in memory %zu", StatusKib(0, "VmLck"), PagesInMemory(at + kMib, kMib));
  Say("unlock %s", Outcome(munlock(at, kManagedBytes)));
  Say("locked %ld kB", StatusKib(0, "VmLck"));
  Say("lock on fault %s", Outcome(mlock2(at, kManagedBytes, MLOCK_ONFAULT)));
  at[kManagedBytes - 1] = 1;
  Say("msync %s %s %s", Outcome(msync(at, kManagedBytes, MS_SYNC)),
      Outcome(msync(at, kManagedBytes, MS_SYNC | MS_ASYNC)),
      Outcome(msync(at + 1, kPage, MS_SYNC)));
  Say("populate %s", Outcome(madvise(at, kManagedBytes, MADV_POPULATE_READ)));
  Say("in memory %zu", PagesInMemory(at, kManagedBytes));
}

HOSTMM_CASE(LockEverythingToCome) {
  MUST(mlockall(MCL_FUTURE) == 0);
  char* at = MapShared(kManagedBytes);
  Say("%s", at == MAP_FAILED ? ErrnoName(errno) : "mapped");
  if (at != MAP_FAILED) Say("in memory %zu", PagesInMemory(at, kManagedBytes));
  Say("unlock %s", Outcome(munlockall()));
  ExpectAttached();
  if (at == MAP_FAILED) return;
  Fill(at, kManagedBytes, 1);
  Say("holds %d", Holds(at, kManagedBytes, 1));
}

HOSTMM_CASE(OthersLookIn) {
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  Fill(at, kManagedBytes, 1);
  const pid_t self = getpid();
  // /proc/PID/mem and process_vm_readv, from another process, over memory and over holes.
  Say("read by a child %d", InChild([=] {
        std::vector<char> copy(kBytes);
        const iovec mine = {copy.data(), kBytes};
        const iovec theirs = {at, kBytes};
        if (process_vm_readv(self, &mine, 1, &theirs, 1, 0) != static_cast<ssize_t>(kBytes))
          return 1;
        if (!Holds(copy.data(), kManagedBytes, 1)) return 2;
        return copy[kManagedBytes + kMib] == 0 ? 0 : 3;
      }));
  Say("written by a child %d", InChild([=] {
        char byte = 99;
        const iovec mine = {&byte, 1};
        const iovec theirs = {at + kBytes - 1, 1};
        return process_vm_writev(self, &mine, 1, &theirs, 1, 0) == 1 ? 0 : 1;
      }));
  Say("sees %d", at[kBytes - 1]);
  std::ifstream maps("/proc/self/maps");
  size_t covered = 0;
  for (std::string line; std::getline(maps, line);) {
    uint64_t begin = 0;
    uint64_t end = 0;
    char mode[5] = {};
    MUST(sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, mode) == 3);
    const uint64_t start = reinterpret_cast<uint64_t>(at);
    if (begin >= start && end <= start + kBytes && std::string(mode) == "rw-s")
      covered += end - begin;
  }
  Say("in maps %zu", covered);
}

}  // namespace hostmm::test
