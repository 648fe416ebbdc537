// Bad input: the errno that plain Linux gives, or the one that docs/semantics.md names; nothing has
// changed then. And the queries.
#include <fcntl.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "tests/shared_pt/world.h"

namespace hostmm::test {
namespace {

std::string TryMap(int fd, int flags, size_t bytes = kBlock, off_t offset = 0,
                   int prot = kReadWrite) {
  const void* at = TheCalls().map(nullptr, bytes, prot, flags, fd, offset);
  return at == MAP_FAILED ? ErrnoName(errno) : "ok";
}

// The same call with and without the flag.
void WantSameErrno(int fd, size_t bytes, off_t offset, int prot, int flags = MAP_SHARED,
                   Where where = Where::current()) {
  const std::string plain = TryMap(fd, flags, bytes, offset, prot);
  WantTrue(plain != "ok", "plain Linux refuses it", where);
  Want(TryMap(fd, flags | kMapSharedPt, bytes, offset, prot), plain, where);
}

}  // namespace

OPT_IN_CASE(BadDescriptors, kTmpfs | kDiskOnly) {
  world.Map();
  world.WantWrites(0, "ok");
  const std::string before = StateOfThisProcess();
  int ends[2];
  int sockets[2];
  MUST(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  const int folder = open("/", O_RDONLY | O_DIRECTORY);
  const int read_only = world.object().Open(O_RDONLY);
  const int write_only = world.object().Open(O_WRONLY);
  for (const int fd : {ends[0], ends[1], sockets[0], folder, -1, 9999, write_only, read_only}) {
    WantSameErrno(fd, kBlock, 0, kReadWrite);
  }
  WantSameErrno(write_only, kBlock, 0, PROT_READ);
  Want(StateOfThisProcess(), before);
  world.WantWrites(0, "ok");
}

OPT_IN_CASE(BadLengths, kEvery) {
  world.Map();
  world.WantWrites(0, "ok");
  const std::string before = StateOfThisProcess();
  const int fd = world.object().Open(O_RDWR);
  const int flags = world.IsAnonymous() ? MAP_SHARED | MAP_ANONYMOUS : MAP_SHARED;
  WantSameErrno(fd, 0, 0, kReadWrite, flags);
  // The longest length that is a multiple of the granule, and one beyond the address space.
  WantSameErrno(fd, ~size_t{0} - kBlock + 1, 0, kReadWrite, flags);
  WantSameErrno(fd, size_t{1} << 47, 0, kReadWrite, flags);
  if (fd >= 0) {
    constexpr auto kHighest = static_cast<off_t>((uint64_t{1} << 63) - kBlock);
    WantSameErrno(fd, 2 * kBlock, kHighest, kReadWrite, flags);
    close(fd);
  }
  Want(StateOfThisProcess(), before);
  world.WantWrites(0, "ok");
}

OPT_IN_CASE(BadFlags, kEvery) {
  world.Map();
  const int fd = world.object().Open(O_RDWR);
  const int anonymous = world.IsAnonymous() ? MAP_ANONYMOUS : 0;
  const std::string before = StateOfThisProcess();
  // Neither shared nor private.
  WantSameErrno(fd, kBlock, 0, kReadWrite, anonymous);
  // Dedicated what? For mmap it is a bit that Linux ignores.
  if (TheWay() == Way::kLinked) {
    Want(TryMap(fd, MAP_SHARED | kMapDedicated | anonymous), "EINVAL");
  }
  Want(StateOfThisProcess(), before);
  if (fd >= 0) close(fd);
}

OPT_IN_CASE(RefusalsSayWhy, kEvery) {
  // (Of the calls that have the shape of a system call only the library's own names say why.)
  char* at = world.Map();
  MUST(TheLibrary().error != nullptr);
  Want(static_cast<uint64_t>(TheLibrary().protect_for_all(at + 1, kPage, PROT_READ) + 1), 0);
  char argument[32];
  snprintf(argument, sizeof(argument), "%lx", reinterpret_cast<uint64_t>(at + 1));
  const std::string why = TheLibrary().error();
  WantTrue(why.find("mprotect") != std::string::npos, why.c_str());
  WantTrue(why.find(argument) != std::string::npos, why.c_str());
  WantTrue(why.find('\n') == std::string::npos, "one line");
}

OPT_IN_CASE(Queries, kEvery) {
  Want(TheLibrary().granule(), kBlock);
  char* at = world.Map();
  world.self().Fill(at, world.bytes());
  const Sharer b = world.Newcomer();
  for (size_t offset = 0; offset < world.bytes(); offset += kBlock) {
    Want(world.self().IsShared(at + offset), world.shared());
    Want(b.guest->IsShared(b.at + offset + 5), world.shared());
  }
  char local = 0;
  Want(world.self().IsShared(&local), "ENOMEM");
  Want(world.self().IsShared(nullptr), "ENOMEM");
  // A shared protection does not unshare anything.
  Want(b.guest->Protect(b.at + kBlock, world.unit(), PROT_READ), "ok");
  Want(world.self().IsShared(at + kBlock), world.shared());
}

// The letters of `hostmm dump`: s shared, d dedicated, p private, - not opted in.
OPT_IN_CASE(DumpNamesTheShareMode, kFiles) {
  const auto letters = [] {
    std::string all;
    for (const std::string& line : RegionsOf(getpid())) all += line[line.find(' ') + 4];
    return all;
  };
  char* at = world.Map();
  Want(letters(), "s");
  // One that did not opt in: under `hostmm run` managed all the same, if it is of a tmpfs.
  char* plain = world.self().Map({.flags = MAP_SHARED});
  const bool managed =
      world.object().kind() != MemoryKind::kDisk && !world.IsHugetlb() && TheWay() == Way::kPlain;
  WantTrue(letters().find('-') != std::string::npos || !managed, "a plain mapping");
  Want(world.self().Unmap(plain, world.bytes()), "ok");
  Want(world.self().Unmap(at, world.bytes()), "ok");
  at = world.self().Map({.flags = kOptIn | kMapDedicated});
  Want(letters(), "d");
  Want(world.self().Unmap(at, world.bytes()), "ok");
  world.self().Map({.prot = PROT_READ, .flags = MAP_PRIVATE | kMapSharedPt, .access = O_RDONLY});
  Want(letters(), "p");
}

// Of a file on a disk the tables cannot be shared; dump says so.
OPT_IN_CASE(DumpSaysWhyNotShared, kDiskOnly) {
  char* at = world.Map();
  const std::vector<std::string> regions = RegionsOf(getpid());
  Want(regions.size(), 1);
  if (regions.size() != 1) return;
  WantTrue(regions[0].find("not shared") != std::string::npos, regions[0].c_str());
  Want(world.self().IsShared(at), "0");
}

// Who cannot have an agent thread could not be told of what others do.
HOSTMM_CASE(NoThreadNoSharing) {
  if (geteuid() != 0) {
    Say("skipped: only root can become a user whose processes nobody else counts");
    return;
  }
  // The limit counts all processes of a user, and does not hold for root.
  constexpr uid_t kUnused = 65531;
  const rlimit none = {0, 0};
  MUST(setgroups(0, nullptr) == 0 && setgid(kUnused) == 0 && setuid(kUnused) == 0);
  MUST(setrlimit(RLIMIT_NPROC, &none) == 0);
  Attach();
  void* at = TheCalls().map(nullptr, kObjectBytes, kReadWrite, kOptIn | MAP_ANONYMOUS, -1, 0);
  if (TheWay() == Way::kLinked) {
    Want(at == MAP_FAILED ? ErrnoName(errno) : "ok", "EPERM");
    return;
  }
  // Plain mmap goes on without hostmm, as always.
  MUST(at != MAP_FAILED);
  Want(Outcome(TheLibrary().is_shared(at)), "ENOMEM");
  Fill(static_cast<char*>(at), kObjectBytes, 1);
  WantTrue(Holds(static_cast<char*>(at), kObjectBytes, 1), "plain memory");
  Want(Outcome(mprotect(at, kObjectBytes, PROT_READ)), "ok");
  Want(TryWrite(at), "SIGSEGV/ACCERR");
}

// Closed: the library refuses, the memory stays.
OPT_IN_CASE(ClosedSession, kEvery) {
  if (TheWay() == Way::kPlain) {
    Say("skipped: only a program that is linked with the library opens and closes it");
    return;
  }
  Attach();
  char* at = world.self().Map();
  world.self().Fill(at, world.bytes());
  // It has been opened twice.
  Want(Outcome(TheLibrary().close()), "ok");
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  Want(Outcome(TheLibrary().close()), "ok");
  Want(Outcome(TheLibrary().close()), "ENOTCONN");
  Want(world.self().ProtectForAll(at, world.bytes(), PROT_READ), "ENOTCONN");
  Want(world.self().IsShared(at), "ENOTCONN");
  WantTrue(world.self().Holds(at, world.bytes()), "the memory stays");
  Want(world.self().Write(at), "ok");
  // libc's call is plain from now on.
  Want(world.self().PlainProtect(at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), "SIGSEGV/ACCERR");
  // It can be opened again: a new start.
  Attach();
  char* again = world.self().Map();
  Want(world.self().Write(again), "ok");
  Want(world.self().ProtectForAll(again, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(again), "SIGSEGV/ACCERR");
}

}  // namespace hostmm::test
