// Programs that know nothing of hostmm: rows of docs/semantics.md that the programs of
// tests/process leave open. Run plain and under hostmm by the same test.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "tests/process/guest_program.h"
#include "tests/shared_pt/view.h"

namespace hostmm::test {
namespace {

constexpr size_t kBlock = 2 * kMib;
constexpr size_t kBytes = 2 * kManagedBytes;
constexpr int kGuardInstall = 102;
constexpr int kGuardRemove = 103;

int MakeMemfd(size_t bytes = kBytes) {
  const int fd = memfd_create("transparent", MFD_CLOEXEC);
  MUST(fd >= 0 && ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return fd;
}

char* MapFile(int fd, size_t bytes = kBytes, off_t offset = 0, int prot = 3,
              int flags = MAP_SHARED) {
  void* at = mmap(nullptr, bytes, prot, flags, fd, offset);
  MUST(at != MAP_FAILED);
  return static_cast<char*>(at);
}

// Whether what another process has at the same address holds up to `check`.
const char* InTheChild(const std::function<bool()>& check) {
  return InChild([&check] { return check() ? 0 : 1; }) == 0 ? "yes" : "no";
}

// A child that stays until the end of the case, doing nothing.
class Bystander {
 public:
  Bystander() : pid_(fork()) {
    MUST(pid_ >= 0);
    if (pid_ == 0) {
      for (;;) pause();
    }
  }
  ~Bystander() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Bystander(const Bystander&) = delete;
  Bystander& operator=(const Bystander&) = delete;

  const char* Poke(char* at, long word) const {
    MUST(ptrace(PTRACE_ATTACH, pid_, nullptr, nullptr) == 0);
    MUST(waitpid(pid_, nullptr, 0) == pid_);
    const char* outcome = Outcome(ptrace(PTRACE_POKEDATA, pid_, at, word));
    MUST(ptrace(PTRACE_DETACH, pid_, nullptr, nullptr) == 0);
    return outcome;
  }
  const char* Write(char* at, char value) const {
    const iovec mine = {&value, 1};
    const iovec theirs = {at, 1};
    return Outcome(process_vm_writev(pid_, &mine, 1, &theirs, 1, 0));
  }
  int Byte(char* at) const {
    unsigned char value = 0;
    const iovec mine = {&value, 1};
    const iovec theirs = {at, 1};
    MUST(process_vm_readv(pid_, &mine, 1, &theirs, 1, 0) == 1);
    return value;
  }

 private:
  pid_t pid_;
};

}  // namespace

HOSTMM_CASE(ProtectionOfAFileIsTheCallersOwn) {
  const int fd = MakeMemfd();
  char* at = MapFile(fd);
  char* second = MapFile(fd);
  ExpectAttached();
  Fill(at, kBytes, 1);
  Say("%s", Outcome(mprotect(at + kBlock, kBlock, PROT_READ)));
  Say("%s %s", TryWrite(at + kBlock).c_str(), TryWrite(second + kBlock).c_str());
  Say("a child has the parent's: %s", InTheChild([=] {
        return TryWrite(at + kBlock) == "SIGSEGV/ACCERR" && TryWrite(second + kBlock) == "ok";
      }));
  Say("and changes its own: %s", InTheChild([=] {
        return mprotect(at, kBytes, PROT_NONE) == 0 && TryRead(at) == "SIGSEGV/ACCERR" &&
               TryRead(second) == "ok";
      }));
  Say("%s %s", TryRead(at).c_str(), TryWrite(at).c_str());
  Say("%s %s", Permissions(at).c_str(), Permissions(at + kBlock).c_str());
}

HOSTMM_CASE(PrivateMappingOfASharedFile) {
  const int fd = MakeMemfd();
  char* shared = MapFile(fd);
  char* at = MapFile(fd, kBytes, 0, PROT_READ, MAP_PRIVATE);
  ExpectAttached();
  Fill(shared, kBytes, 1);
  Say("same content %d", Holds(at, kBytes, 1));
  const Bystander child;
  const int before = child.Byte(at);
  Say("process_vm_writev %s", child.Write(at, 9));
  Say("a debugger %s", child.Poke(at, 0x0102030405060708));
  const auto is_as_before = [before](char byte) { return static_cast<uint8_t>(byte) == before; };
  Say("in the child %d, here %d %d", child.Byte(at), is_as_before(at[0]), is_as_before(shared[0]));
  shared[kBlock] = 11;
  Say("other pages follow %d %d", child.Byte(at + kBlock), at[kBlock]);
  shared[0] = 12;
  Say("the copy does not: %d %d", child.Byte(at), at[0]);
}

HOSTMM_CASE(DebuggerAndReadOnlySharedMemory) {
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  Fill(at, kBytes, 1);
  MUST(mprotect(at, kBytes, PROT_READ) == 0);
  const Bystander child;
  Say("process_vm_writev %s", child.Write(at, 9));
  // (The kernel forbids a debugger to write into shared memory that it could not write itself.)
  Say("a debugger %s", child.Poke(at, 0x0102030405060708));
  Say("here %d, there %d", at[0], child.Byte(at));
  MUST(mprotect(at, kBytes, PROT_READ | PROT_WRITE) == 0);
  Say("writable here %s, there %s", TryWrite(at + 1).c_str(), child.Write(at, 9));
}

HOSTMM_CASE(GuardsAreTheCallersOwn) {
  const int fd = MakeMemfd();
  for (char* at : {MustMapShared(kBytes), MapFile(fd)}) {
    ExpectAttached();
    Fill(at, kBytes, 1);
    const int result = madvise(at + kBlock, kBlock + kPage, kGuardInstall);
    Say("install %s", Outcome(result));
    if (result != 0) continue;
    Say("%s %s %s", TryRead(at + kBlock).c_str(), TryRead(at + 2 * kBlock).c_str(),
        TryRead(at + 2 * kBlock + kPage).c_str());
    Say("remove %s", Outcome(madvise(at, kBytes, kGuardRemove)));
    Say("%s, holds %d", TryRead(at + kBlock).c_str(), Holds(at, kBytes, 1));
    // What another process has mapped has no guard.
    char* window = MapFile(fd);
    MUST(madvise(at, kBlock, kGuardInstall) == 0);
    Say("%s %s", TryRead(at).c_str(), TryRead(window).c_str());
    MUST(munmap(window, kBytes) == 0);
  }
}

HOSTMM_CASE(AdviceKeepsTheContent) {
  const int fd = MakeMemfd();
  for (char* at : {MustMapShared(kBytes), MapFile(fd)}) {
    ExpectAttached();
    Fill(at, kBytes, 1);
    for (const int advice : {MADV_DONTNEED, MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED,
                             MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_NOHUGEPAGE}) {
      Say("%d: %s", advice, Outcome(madvise(at + kPage, 3 * kBlock, advice)));
      Say("here %d, in a child %s", Holds(at, kBytes, 1),
          InTheChild([at] { return Holds(at, kBytes, 1); }));
    }
    Say("no huge pages %d, elsewhere %d", HasVmFlag(at + kBlock, "nh"),
        HasVmFlag(at + 4 * kBlock, "nh"));
  }
}

HOSTMM_CASE(DropsOnlyItsOwnView) {
  const int fd = MakeMemfd();
  char* at = MapFile(fd);
  char* second = MapFile(fd);
  ExpectAttached();
  // When a full file is made huge the kernel empties the page tables of all mappings: not here.
  MUST(madvise(at, kBytes, MADV_NOHUGEPAGE) == 0 && madvise(second, kBytes, MADV_NOHUGEPAGE) == 0);
  Fill(at, kBytes, 1);
  MUST(Holds(second, kBytes, 1));
  Say("%s", Outcome(madvise(at, kBytes, MADV_DONTNEED)));
  Say("present %zu %zu", PresentPages(at, kBytes), PresentPages(second, kBytes));
  Say("holds %d", Holds(at, kBytes, 1));
}

HOSTMM_CASE(PopulateAFile) {
  const int fd = MakeMemfd();
  char* at = MapFile(fd);
  ExpectAttached();
  Say("in memory %zu", PagesInMemory(at, kBytes));
  Say("write %s", Outcome(madvise(at + kMib, kBlock, MADV_POPULATE_WRITE)));
  Say("read %s", Outcome(madvise(at + 4 * kBlock, kBlock, MADV_POPULATE_READ)));
  Say("in memory %zu %zu", PagesInMemory(at + kMib, kBlock),
      PagesInMemory(at + 4 * kBlock, kBlock));
  Say("seen by a child %s", InTheChild([at] { return PagesInMemory(at + kMib, kBlock) == 512; }));
  char* populated = MapFile(fd, kManagedBytes, 0, 3, MAP_SHARED | MAP_POPULATE);
  Say("in memory %zu", PagesInMemory(populated, kManagedBytes));
  char* locked = MapFile(fd, kManagedBytes, kManagedBytes, 3, MAP_SHARED | MAP_LOCKED);
  Say("in memory %zu", PagesInMemory(locked, kManagedBytes));
  Say("msync %s", Outcome(msync(at, kBytes, MS_SYNC)));
}

HOSTMM_CASE(EndOfTheFile) {
  const int fd = MakeMemfd(kManagedBytes + kPage);
  char* at = MapFile(fd, kBytes);
  ExpectAttached();
  Fill(at, kManagedBytes, 1);
  Say("%s %s", TryRead(at + kManagedBytes).c_str(), TryRead(at + kManagedBytes + kPage).c_str());
  int ends[2];
  MUST(pipe(ends) == 0 && write(ends[1], "abcd", 4) == 4);
  Say("read(2) %s", Outcome(read(ends[0], at + kManagedBytes + kPage, 4)));
  MUST(ftruncate(fd, kBlock + kPage) == 0);
  Say("%s %s %s", TryRead(at + kBlock).c_str(), TryRead(at + kBlock + kPage).c_str(),
      TryWrite(at + 2 * kBlock).c_str());
  MUST(ftruncate(fd, kBytes) == 0);
  Say("%s, reads %d, kept %d", TryRead(at + 2 * kBlock).c_str(), at[2 * kBlock],
      Holds(at, kBlock, 1));
}

HOSTMM_CASE(WindowsOfAFile) {
  const int fd = MakeMemfd();
  char* all = MapFile(fd);
  ExpectAttached();
  char* first = MapFile(fd, kManagedBytes);
  char* second = MapFile(fd, kManagedBytes, kManagedBytes);
  char* odd = MapFile(fd, kManagedBytes, kBlock + kPage);
  Fill(all, kBytes, 1);
  Say("%d %d %d", __builtin_memcmp(first, all, kManagedBytes),
      __builtin_memcmp(second, all + kManagedBytes, kManagedBytes),
      __builtin_memcmp(odd, all + kBlock + kPage, kManagedBytes));
  Say("child %s", InTheChild([=] {
        odd[0] = 77;
        return all[kBlock + kPage] == 77 && first[kBlock + kPage] == 77;
      }));
  Say("sees %d", first[kBlock + kPage]);
  MUST(munmap(all + kBlock, kBlock) == 0);
  Say("%s %s", TryRead(all + kBlock).c_str(), TryRead(first + kBlock).c_str());
}

HOSTMM_CASE(RemapAFile) {
  const int fd = MakeMemfd();
  char* all = MapFile(fd);
  Fill(all, kBytes, 1);
  ExpectAttached();
  char* at = MapFile(fd, kManagedBytes);
  MUST(mprotect(at, kBlock, PROT_READ) == 0);
  char* part = static_cast<char*>(
      mremap(at + kBlock, kManagedBytes - kBlock, kBytes - kBlock, MREMAP_MAYMOVE));
  MUST(part != MAP_FAILED);
  Say("grown %d", __builtin_memcmp(part, all + kBlock, kBytes - kBlock));
  Say("%s %s", TryWrite(at).c_str(), TryWrite(part).c_str());
  char* small = static_cast<char*>(mremap(part, kBytes - kBlock, kBlock, 0));
  Say("shrunk in place %d: %s", small == part, TryRead(part + kBlock).c_str());
  void* over = mmap(all + kBlock, kBlock, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  Say("over a part %d, reads %d", over == all + kBlock, all[kBlock]);
  Say("child %s", InTheChild([=] {
        all[kBlock] = 5;
        return part[0] != 5 && Holds(all, kBlock, 1);
      }));
  Say("%d", all[kBlock]);
}

}  // namespace hostmm::test
