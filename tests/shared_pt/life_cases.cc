// The rows fork, exec, exit, msync, looking in from outside, and the end of the file.
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>

#include "tests/shared_pt/world.h"

namespace hostmm::test {
namespace {

constexpr char kDenied[] = "SIGSEGV/ACCERR";
constexpr char kBehindTheEnd[] = "SIGBUS/ADRERR";

ssize_t ReadFrom(const Guest& guest, char* at, void* to, size_t bytes) {
  const iovec mine = {to, bytes};
  const iovec theirs = {at, bytes};
  return process_vm_readv(guest.pid(), &mine, 1, &theirs, 1, 0);
}

ssize_t WriteTo(const Guest& guest, char* at, char value) {
  const iovec mine = {&value, 1};
  const iovec theirs = {at, 1};
  return process_vm_writev(guest.pid(), &mine, 1, &theirs, 1, 0);
}

// As a debugger does it: also where the process itself may not write.
void WriteAsADebugger(const Guest& guest, char* at, long word) {
  MUST(ptrace(PTRACE_ATTACH, guest.pid(), nullptr, nullptr) == 0);
  MUST(waitpid(guest.pid(), nullptr, 0) == guest.pid());
  MUST(ptrace(PTRACE_POKEDATA, guest.pid(), at, word) == 0);
  MUST(ptrace(PTRACE_DETACH, guest.pid(), nullptr, nullptr) == 0);
}

}  // namespace

OPT_IN_CASE(ForkSharesAtOnce, kEvery) {
  char* at = world.Map();
  world.self().Put(at, 1);
  Guest& child = world.Fork();
  Want(child.IsShared(at), world.shared());
  Want(child.IsShared(at + 3 * kBlock), world.shared());
  child.Put(at + kBlock, 2);
  Want(static_cast<uint64_t>(world.self().Byte(at + kBlock)), 2);
  Want(child.Protect(at, kBlock, PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
  // Of a forbidding moment a child gets the prohibition, and it is told of the end of it.
  Guest& second = world.Fork();
  Want(second.Write(at), kDenied);
  Want(second.Write(at + kBlock), "ok");
  Want(second.Protect(at, world.bytes(), PROT_NONE), "ok");
  Want(child.Read(at), kDenied);
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  Want(second.Write(at), "ok");
  Want(child.Write(at), "ok");
}

// Daemons close all descriptors that they do not know. Such a process has left the others, who do
// not wait for it.
OPT_IN_CASE(WhoClosesAllDescriptorsDelaysNobody, kEvery) {
  char* at = world.Map();
  volatile char* const left = at + 2 * kBlock;
  const pid_t child = fork();
  if (child == 0) {
    // For all: afterwards its agent is there, with descriptors of its own.
    mprotect(at + 3 * kBlock, kBlock, PROT_READ);
    closefrom(3);
    // Its own affair by now: the library finds that it cannot reach anybody.
    mprotect(at + 3 * kBlock, kBlock, PROT_READ | PROT_WRITE);
    *left = 1;
    for (;;) pause();
  }
  Want(Eventually([left] { return *left == 1; }) ? "left" : "still there", "left");
  const auto start = std::chrono::steady_clock::now();
  Want(world.self().Protect(at, kBlock, PROT_READ), "ok");
  const auto took = std::chrono::steady_clock::now() - start;
  // An operation gives up on a member after 8 s.
  Want(took < std::chrono::seconds(4) ? "at once" : "late", "at once");
  MUST(kill(child, SIGKILL) == 0);
  MUST(waitpid(child, nullptr, 0) == child);
}

// A child of a child protects for all of them.
OPT_IN_CASE(ForkOfAFork, kEvery) {
  char* at = world.Map();
  world.self().Put(at, 1);
  const int ended = InChild([&world, at] {
    return InChild([&world, at] {
      return world.self().Protect(at, world.bytes(), PROT_READ) == "ok" ? 0 : 1;
    });
  });
  Want(static_cast<uint64_t>(ended), 0);
  Want(world.self().Write(at), kDenied);
  Want(world.self().Read(at), "ok");
}

// The protection of all stays when whoever gave it is gone; nobody waits for the dead.
OPT_IN_CASE(EndsOfSharers, kEvery) {
  char* at = world.Map();
  world.self().Fill(at, world.bytes());
  for (const Guest::Ending ending :
       {Guest::Ending::kExit, Guest::Ending::kKill, Guest::Ending::kExec}) {
    Guest& gone = world.Fork();
    const pid_t pid = gone.pid();
    WantTrue(Eventually([pid] { return !RegionsOf(pid).empty(); }), "the child is listed");
    Want(gone.Protect(at, world.bytes(), PROT_READ), "ok");
    gone.End(ending);
    Want(world.self().Write(at), kDenied);
    Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
    WantTrue(Eventually([pid] { return RegionsOf(pid).empty(); }), "and is not any more");
    world.WantHolds();
  }
}

OPT_IN_CASE(MsyncWritesBack, kDiskOnly) {
  char* at = world.Map();
  world.self().Fill(at, world.bytes());
  WantTrue(DirtyKib(at) > 0, "something is to be written");
  Want(Outcome(msync(at, world.bytes(), MS_SYNC)), "ok");
  Want(DirtyKib(at), 0);
  const int fd = world.object().Open(O_RDONLY);
  std::vector<char> copy(world.bytes());
  MUST(pread(fd, copy.data(), copy.size(), 0) == static_cast<ssize_t>(copy.size()));
  close(fd);
  WantTrue(Holds(copy.data(), copy.size(), 1), "the file has it");
}

OPT_IN_CASE(MsyncOfAnything, kEvery) {
  char* at = world.Map();
  world.self().Put(at, 1);
  Want(Outcome(msync(at, world.bytes(), MS_SYNC)), "ok");
  Want(Outcome(msync(at, world.bytes(), MS_SYNC | MS_ASYNC)), "EINVAL");
  Want(Outcome(msync(at + 1, kPage, MS_SYNC)), "EINVAL");
}

OPT_IN_CASE(OthersLookIn, kEvery) {
  world.Map();
  const Sharer b = world.Newcomer();
  b.guest->Fill(b.at, kBlock);
  std::vector<char> copy(2 * kBlock);
  // Memory and a hole.
  Want(static_cast<uint64_t>(ReadFrom(*b.guest, b.at, copy.data(), copy.size())), copy.size());
  WantTrue(Holds(copy.data(), kBlock, 1) && copy[kBlock] == 0, "the same content");
  Want(static_cast<uint64_t>(WriteTo(*b.guest, b.at + 3 * kBlock, 33)), 1);
  Want(static_cast<uint64_t>(world.self().Byte(world.sharers()[0].at + 3 * kBlock)), 33);
  // In that process's protection, which is everybody's.
  Want(world.self().Protect(world.sharers()[0].at, world.bytes(), PROT_READ), "ok");
  Want(static_cast<uint64_t>(ReadFrom(*b.guest, b.at, copy.data(), kPage)), kPage);
  Want(WriteTo(*b.guest, b.at, 1) < 0 ? ErrnoName(errno) : "ok", "EFAULT");
  Want(world.self().Protect(world.sharers()[0].at, world.bytes(), PROT_NONE), "ok");
  Want(ReadFrom(*b.guest, b.at, copy.data(), kPage) < 0 ? ErrnoName(errno) : "ok", "EFAULT");
}

// A debugger's write into memory that is shared and read-only at the moment.
OPT_IN_CASE(DebuggerWritesIntoShared, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  WriteAsADebugger(*b.guest, b.at, 0x0102030405060708);
  Want(static_cast<uint64_t>(world.self().Byte(at)), 8);
  Want(b.guest->IsShared(b.at), world.shared());
}

// A debugger's write into a private mapping is a copy of that process alone.
OPT_IN_CASE(DebuggerWritesIntoPrivate, kFiles) {
  char* at = world.Map();
  const Window window = {
      .prot = PROT_READ, .flags = MAP_PRIVATE | kMapSharedPt, .access = O_RDONLY};
  Guest& reader = world.Start();
  char* theirs = reader.Map(window);
  Guest& second = world.Start();
  char* second_at = second.Map(window);
  world.self().Fill(at, world.bytes());
  WantTrue(reader.Holds(theirs, world.bytes()), "the same content");
  const auto before = static_cast<uint64_t>(world.self().Byte(at));
  Want(WriteTo(reader, theirs, 1) < 0 ? ErrnoName(errno) : "ok", "EFAULT");
  WriteAsADebugger(reader, theirs, 0x0102030405060708);
  Want(static_cast<uint64_t>(reader.Byte(theirs)), 8);
  Want(static_cast<uint64_t>(world.self().Byte(at)), before);
  Want(static_cast<uint64_t>(second.Byte(second_at)), before);
  Want(reader.IsShared(theirs), "0");
  // Its copy stays, whatever becomes of the rest.
  Want(world.self().Protect(at, world.bytes(), PROT_NONE), "ok");
  Want(reader.Read(theirs), kDenied);
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  Want(static_cast<uint64_t>(reader.Byte(theirs)), 8);
  if (world.IsHugetlb()) return;  // has no MADV_PAGEOUT
  Want(world.self().Advise(at, world.bytes(), MADV_PAGEOUT), "ok");
  Want(static_cast<uint64_t>(reader.Byte(theirs)), 8);
}

OPT_IN_CASE(BehindTheEndOfTheFile, kFiles) {
  const size_t behind = world.bytes();
  char* at = world.self().Map({.bytes = 2 * world.bytes()});
  Guest& b = world.Start();
  char* theirs = b.Map({.bytes = 2 * world.bytes()});
  Want(world.self().Write(at + behind - 1), "ok");
  Want(world.self().Read(at + behind), kBehindTheEnd);
  Want(b.Write(theirs + behind + kBlock), kBehindTheEnd);
  Want(b.SystemCallWrites(theirs + behind), "EFAULT");
  Want(b.Protect(theirs, 2 * world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
  Want(world.self().Read(at + behind), kBehindTheEnd);
}

OPT_IN_CASE(FileShrinksAndGrows, kTmpfs | kDiskOnly) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  world.TouchAll();
  const int fd = world.object().Open(O_RDWR);
  MUST(ftruncate(fd, kBlock + kPage) == 0);
  world.WantReads(2 * kBlock, kBehindTheEnd);
  world.WantReads(kBlock + kPage, kBehindTheEnd);
  world.WantReads(kBlock, "ok");
  MUST(ftruncate(fd, static_cast<off_t>(world.bytes())) == 0);
  world.WantReads(2 * kBlock, "ok");
  Want(static_cast<uint64_t>(b.guest->Byte(b.at + 2 * kBlock)), 0);
  close(fd);
}

}  // namespace hostmm::test
