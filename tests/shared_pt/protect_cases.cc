// The row "mprotect" of docs/semantics.md, and the share mode kDedicated.
#include <sys/mman.h>
#include <unistd.h>

#include "tests/shared_pt/world.h"

namespace hostmm::test {
namespace {

constexpr char kDenied[] = "SIGSEGV/ACCERR";
constexpr char kUnmapped[] = "SIGSEGV/MAPERR";

}  // namespace

OPT_IN_CASE(ProtectChangesAll, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  const Sharer c = world.Newcomer();
  world.self().Fill(at, world.bytes());
  world.WantHolds();
  world.WantWrites(kPage, "ok");
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  world.WantWrites(kPage, kDenied);
  world.WantWrites(world.bytes() - 1, kDenied);
  world.WantReads(kPage, "ok");
  // By anybody, not only by who made it.
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(kPage, "ok");
  Want(c.guest->Protect(c.at, world.bytes(), PROT_NONE), "ok");
  world.WantReads(kPage, kDenied);
  world.WantWrites(kPage, kDenied);
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  world.WantHolds();
}

// Nobody has touched anything: there is nothing in the page tables that could be changed.
OPT_IN_CASE(ProtectChangesWhatIsNotThereYet, kEvery) {
  char* at = world.Map();
  world.Newcomer();
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  world.WantWrites(0, kDenied);
  world.WantWrites(3 * kBlock, kDenied);
  world.WantReads(3 * kBlock, "ok");
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(kBlock, "ok");
}

OPT_IN_CASE(ProtectIsSeenInMaps, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Want(b.guest->Permissions(b.at), "rw-s");
  Want(world.self().Protect(at, kBlock, PROT_READ), "ok");
  Want(b.guest->Permissions(b.at), "r--s");
  Want(b.guest->Permissions(b.at + kBlock), "rw-s");
  Want(world.self().Protect(at, world.bytes(), PROT_NONE), "ok");
  Want(b.guest->Permissions(b.at), "---s");
}

// Down to one page, also where a block is mapped as one.
OPT_IN_CASE(ProtectSmallPart, kEvery) {
  const size_t unit = world.unit();
  const size_t part = kBlock + (unit == kPage ? 3 * kPage : 0);
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  const Sharer c = world.Newcomer();
  world.self().Fill(at, world.bytes());
  world.TouchAll();
  Want(b.guest->Protect(b.at + part, unit, PROT_READ), "ok");
  world.WantWrites(part, kDenied);
  world.WantWrites(part + unit - 1, kDenied);
  world.WantWrites(part - 1, "ok");
  world.WantWrites(part + unit, "ok");
  world.WantReads(part, "ok");
  // A second part in the same block, and one over the edge of blocks.
  Want(c.guest->Protect(c.at + 3 * kBlock - unit, 2 * unit, PROT_NONE), "ok");
  world.WantReads(3 * kBlock - 1, kDenied);
  world.WantReads(3 * kBlock, kDenied);
  world.WantWrites(part, kDenied);
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(part, "ok");
  world.WantWrites(3 * kBlock, "ok");
  world.WantHolds();
}

OPT_IN_CASE(ProtectStopsSystemCalls, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Put(at, 7);
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  Want(b.guest->SystemCallWrites(b.at), "EFAULT");
  Want(b.guest->SystemCallWrites(b.at + kBlock), "EFAULT");  // a hole
  Want(b.guest->SystemCallReads(b.at), "ok");
  Want(world.self().SystemCallWrites(at), "EFAULT");
  Want(world.self().Protect(at, world.bytes(), PROT_NONE), "ok");
  Want(b.guest->SystemCallReads(b.at), "EFAULT");
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  Want(static_cast<uint64_t>(b.guest->Byte(b.at)), 7);
  Want(b.guest->SystemCallWrites(b.at), "ok");
}

OPT_IN_CASE(ProtectMakesExecutable, kEvery) {
#ifdef __x86_64__
  constexpr int kReturn = 0xc3;
#else
  Say("skipped: the instruction of this machine is not known here");
  return;
#endif
  if (!world.object().MayExecute()) {
    Say("skipped: the file system is mounted noexec");
    return;
  }
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Put(at, kReturn);
  Want(b.guest->Execute(b.at), kDenied);
  Want(world.self().Protect(at, kBlock, PROT_READ | PROT_EXEC), "ok");
  Want(b.guest->Execute(b.at), "ok");
  Want(world.self().Execute(at), "ok");
  Want(b.guest->Write(b.at), kDenied);
  Want(b.guest->Protect(b.at, kBlock, kReadWrite), "ok");
  Want(world.self().Execute(at), kDenied);
}

OPT_IN_CASE(NewGuestsGetTheNewProtection, kEvery) {
  char* at = world.Map();
  world.self().Fill(at, world.bytes());
  const size_t unit = world.unit();
  const size_t part = 3 * kBlock;
  Want(world.self().Protect(at, kBlock, PROT_READ), "ok");
  Want(world.self().Protect(at + part, unit, PROT_NONE), "ok");
  const Sharer late = world.Newcomer();
  Want(late.guest->Write(late.at), kDenied);
  Want(late.guest->Read(late.at), "ok");
  Want(late.guest->Read(late.at + part), kDenied);
  Want(late.guest->Write(late.at + kBlock), "ok");
  Want(late.guest->Write(late.at + part - 1), "ok");
  Want(late.guest->Permissions(late.at), "r--s");
  // From then on it is a mapper as all others.
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(0, "ok");
  world.WantWrites(part, "ok");
}

// Until somebody has said for all what holds, each mapping has what it asked for; then all have
// that, and those who come later, too.
OPT_IN_CASE(FirstProtectionIsEachOnesOwn, kFiles) {
  char* at = world.Map();
  const Sharer reader = world.Newcomer({.prot = PROT_READ});
  Want(reader.guest->Permissions(reader.at), "r--s");
  Want(reader.guest->Write(reader.at), kDenied);
  Want(world.self().Write(at), "ok");
  Want(world.self().Protect(at, kBlock, kReadWrite), "ok");
  Want(reader.guest->Write(reader.at), "ok");
  Want(reader.guest->Write(reader.at + kBlock), kDenied);
  const Sharer late = world.Newcomer({.prot = PROT_NONE});
  Want(late.guest->Write(late.at), "ok");
  Want(late.guest->Read(late.at + kBlock), kDenied);
  Want(late.guest->Protect(late.at, world.bytes(), PROT_READ), "ok");
  world.WantWrites(0, kDenied);
  world.WantReads(kBlock, "ok");
}

// Who comes first and may only read does not take the pen from others.
OPT_IN_CASE(ReaderComesFirst, kFiles) {
  Guest& reader = world.Start();
  char* theirs = reader.Map({.prot = PROT_READ, .access = O_RDONLY});
  char* at = world.Map();
  Want(world.self().Write(at), "ok");
  Want(reader.Write(theirs), kDenied);
  Want(world.self().Protect(at, world.bytes(), PROT_NONE), "ok");
  Want(reader.Read(theirs), kDenied);
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  Want(reader.Read(theirs), "ok");
  Want(reader.Write(theirs), kDenied);
}

// A window that begins and ends between the protected parts.
OPT_IN_CASE(NewWindowGetsThePieces, kFiles) {
  char* at = world.Map();
  const size_t unit = world.unit();
  Want(world.self().Protect(at, kBlock, PROT_NONE), "ok");
  Want(world.self().Protect(at + kBlock + kBlock - unit, unit, PROT_READ), "ok");
  Guest& late = world.Start();
  char* window = late.Map({.offset = kBlock, .bytes = 2 * kBlock});
  if (unit == kPage) Want(late.Write(window), "ok");
  Want(late.Write(window + kBlock - 1), kDenied);
  Want(late.Read(window + kBlock - 1), "ok");
  Want(late.Write(window + kBlock), "ok");
}

OPT_IN_CASE(ForgottenWhenTheLastOneGoes, kFiles) {
  char* at = world.self().Map();
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Unmap(at, world.bytes()), "ok");
  at = world.Map();
  Want(world.self().Write(at), "ok");
  // As long as one is left it is remembered, for the part that this one maps.
  Guest& b = world.Start();
  char* half = b.Map({.offset = 2 * kBlock});
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Unmap(at, world.bytes()), "ok");
  char* again = world.self().Map();
  Want(world.self().Write(again), "ok");
  Want(world.self().Write(again + 2 * kBlock), kDenied);
  Want(b.Write(half), kDenied);
}

// Who has not opted in is not changed by those who have, and does not change them.
OPT_IN_CASE(PlainMappingIsItsOwn, kFiles) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Guest& other = world.Start();
  char* plain = world.self().Map({.flags = MAP_SHARED});
  char* theirs = other.Map({.flags = MAP_SHARED});
  world.self().Put(at, 5);
  Want(b.guest->Protect(b.at, world.bytes(), PROT_NONE), "ok");
  world.WantReads(0, kDenied);
  Want(world.self().Write(plain), "ok");
  Want(other.Write(theirs), "ok");
  Want(static_cast<uint64_t>(other.Byte(theirs)), 5);
  Want(other.PlainProtect(theirs, world.bytes(), PROT_READ), "ok");
  Want(other.Write(theirs), kDenied);
  Want(world.self().Write(plain), "ok");
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(0, "ok");
  Want(other.Write(theirs), kDenied);
  // New plain mappings do not inherit either.
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Guest& late = world.Start();
  Want(late.Write(late.Map({.flags = MAP_SHARED})), "ok");
}

OPT_IN_CASE(ReadOnlyDescriptorStaysReadOnly, kFiles) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Guest& reader = world.Start();
  const Window read_only = {.prot = PROT_READ, .access = O_RDONLY};
  Want(reader.TryMap({.access = O_RDONLY}), "EACCES");
  char* theirs = reader.Map(read_only);
  Want(reader.Permissions(theirs), "r--s");
  Want(reader.Write(theirs), kDenied);
  world.WantWrites(0, "ok");
  Want(reader.Protect(theirs, world.bytes(), kReadWrite), "EACCES");
  world.WantWrites(0, "ok");
  // What it may say, it says for all.
  Want(reader.Protect(theirs, world.bytes(), PROT_READ), "ok");
  world.WantWrites(0, kDenied);
  Want(reader.Protect(theirs, world.bytes(), kReadWrite), "EACCES");
  world.WantWrites(0, kDenied);
  Want(world.self().Protect(at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(0, "ok");
  Want(reader.Write(theirs), kDenied);
  Want(reader.Permissions(theirs), "r--s");
  Want(b.guest->Protect(b.at, world.bytes(), PROT_NONE), "ok");
  Want(reader.Read(theirs), kDenied);
}

// A range that goes on behind the opt-in memory.
OPT_IN_CASE(ProtectOverDifferentMemory, kEvery) {
  const size_t all = world.bytes() + kBlock;
  char* place = static_cast<char*>(
      mmap(nullptr, all + kBlock, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  MUST(place != MAP_FAILED);
  place += kBlock - reinterpret_cast<uint64_t>(place) % kBlock;
  char* at = world.self().Map({.flags = kOptIn | MAP_FIXED, .addr = place});
  Want(reinterpret_cast<uint64_t>(at), reinterpret_cast<uint64_t>(place));
  MUST(mprotect(at + world.bytes(), kBlock, kReadWrite) == 0);
  Guest& b = world.IsAnonymous() ? world.Fork() : world.Start();
  char* theirs = world.IsAnonymous() ? at : b.Map();
  Want(world.self().Protect(at + kBlock, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), "ok");
  Want(world.self().Write(at + kBlock), kDenied);
  Want(world.self().Write(at + world.bytes()), kDenied);
  Want(b.Write(theirs), "ok");
  Want(b.Write(theirs + kBlock), kDenied);
  // A child's private memory behind it is its own.
  if (world.IsAnonymous()) Want(b.Write(theirs + world.bytes()), "ok");
}

OPT_IN_CASE(ProtectErrors, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.WantWrites(0, "ok");
  const std::string before = StateOfThisProcess();
  Want(world.self().Protect(at + 1, kPage, PROT_READ), "EINVAL");
  if (world.IsHugetlb()) Want(world.self().Protect(at + kPage, kPage, PROT_READ), "EINVAL");
  Want(world.self().Protect(at, world.bytes(), 0x7fff0000), "EINVAL");
  Want(world.self().Protect(at, world.bytes(), PROT_READ | PROT_GROWSDOWN), "EINVAL");
  Want(world.self().Protect(at, ~size_t{0} - kPage, PROT_READ), "ENOMEM");
  Want(world.self().Protect(at, 0, PROT_READ), "ok");
  Want(StateOfThisProcess(), before);
  world.WantWrites(0, "ok");
  // A hole: as in Linux the call fails, and all that map the rest agree on it.
  Want(world.self().Unmap(at + 2 * kBlock, kBlock), "ok");
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ENOMEM");
  Want(world.self().Read(at + 2 * kBlock), kUnmapped);
  Want(b.guest->Write(b.at), world.self().Write(at));
  Want(b.guest->Write(b.at + 3 * kBlock), world.self().Write(at + 3 * kBlock));
  Want(b.guest->Write(b.at + 2 * kBlock), "ok");
}

OPT_IN_CASE(ConcurrentProtectsAgree, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  const Sharer c = world.Newcomer();
  const Sharer d = world.Newcomer();
  for (int round = 0; round < 5; ++round) {
    // An odd count and an even one: they end with different wishes.
    b.guest->StartToggling(b.at, world.bytes(), 11);
    c.guest->StartToggling(c.at, world.bytes(), 12);
    Want(b.guest->Finish(), "ok");
    Want(c.guest->Finish(), "ok");
    const std::string said = world.self().Write(at);
    world.WantWrites(0, said);
    world.WantWrites(3 * kBlock, said);
    Want(d.guest->Permissions(d.at), said == "ok" ? "rw-s" : "r--s");
  }
  Want(d.guest->Protect(d.at, world.bytes(), kReadWrite), "ok");
  world.WantWrites(0, "ok");
}

OPT_IN_CASE(DedicatedRefusesPlainProtect, kEvery) {
  const int flags = kOptIn | kMapDedicated;
  char* at = world.self().Map({.flags = flags});
  Guest& child = world.Fork();
  world.self().Put(at, 3);
  const std::string before = StateOfThisProcess();
  Want(world.self().PlainProtect(at, world.bytes(), PROT_READ), "EPERM");
  Want(world.self().PlainProtect(at + kBlock, world.unit(), PROT_NONE), "EPERM");
  Want(child.PlainProtect(at, world.bytes(), PROT_READ), "EPERM");
  Want(StateOfThisProcess(), before);
  Want(world.self().Write(at), "ok");
  Want(child.Write(at), "ok");
  Want(world.self().ProtectForAll(at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
  Want(child.Write(at), kDenied);
  Want(child.PlainProtect(at, world.bytes(), kReadWrite), "EPERM");
  Want(child.ProtectForAll(at, kBlock, kReadWrite), "ok");
  Want(world.self().Write(at), "ok");
  Want(world.self().Write(at + kBlock), kDenied);
}

// Dedication is one mapper's own: others change the protection, for it too.
OPT_IN_CASE(DedicatedBesideOthers, kFiles) {
  char* at = world.self().Map({.flags = kOptIn | kMapDedicated});
  Guest& other = world.Start();
  char* theirs = other.Map();
  Want(other.PlainProtect(theirs, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
  Want(world.self().PlainProtect(at, world.bytes(), kReadWrite), "EPERM");
  Want(other.Write(theirs), kDenied);
  Want(world.self().ProtectForAll(at, world.bytes(), kReadWrite), "ok");
  Want(other.Write(theirs), "ok");
}

}  // namespace hostmm::test
