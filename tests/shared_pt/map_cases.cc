// The rows mmap, windows, munmap, mremap, MAP_FIXED of docs/semantics.md.
#include <sys/mman.h>
#include <unistd.h>

#include "tests/shared_pt/world.h"

namespace hostmm::test {
namespace {

constexpr char kDenied[] = "SIGSEGV/ACCERR";
constexpr char kUnmapped[] = "SIGSEGV/MAPERR";

// Room for `bytes` at a multiple of the granule, taken by inaccessible memory.
char* Reserve(size_t bytes) {
  char* at = static_cast<char*>(
      mmap(nullptr, bytes + kBlock, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  MUST(at != MAP_FAILED);
  return at + kBlock - reinterpret_cast<uint64_t>(at) % kBlock;
}

uint64_t Number(const void* at) { return reinterpret_cast<uint64_t>(at); }

// This process moves all that it has at `from`.
char* MoveTo(World& world, char* from, char* to) {
  char* at = world.self().Remap(from, {.old_bytes = world.bytes(),
                                       .new_bytes = world.bytes(),
                                       .flags = MREMAP_MAYMOVE | MREMAP_FIXED,
                                       .to = to});
  Want(Number(at), Number(to));
  return at;
}

}  // namespace

OPT_IN_CASE(PlacedAtTheGranule, kEvery) {
  char* at = world.Map();
  Want(Number(at) % kBlock, 0);
  Want(world.self().IsShared(at), world.shared());
  Want(world.self().IsShared(at + world.bytes() - 1), world.shared());
  char* hint = Reserve(world.bytes());
  MUST(munmap(hint, world.bytes()) == 0);
  Want(Number(world.self().Map({.addr = hint})), Number(hint));
  // A hint that is taken leads elsewhere, MAP_FIXED_NOREPLACE to an error.
  char* elsewhere = world.self().Map({.addr = hint});
  WantTrue(elsewhere != hint && Number(elsewhere) % kBlock == 0, "placed elsewhere");
  Want(world.self().TryMap({.flags = kOptIn | MAP_FIXED_NOREPLACE, .addr = hint}), "EEXIST");
}

OPT_IN_CASE(OneGranuleIsEnough, kEvery) {
  char* at = world.self().Map({.bytes = kBlock});
  Guest& b = world.IsAnonymous() ? world.Fork() : world.Start();
  char* theirs = world.IsAnonymous() ? at : b.Map({.bytes = kBlock});
  Want(world.self().IsShared(at), world.shared());
  Want(b.IsShared(theirs), world.shared());
  Want(b.Protect(theirs, kBlock, PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
}

OPT_IN_CASE(MisalignedMapping, kEvery) {
  world.Map();
  char* free = Reserve(world.bytes());
  MUST(munmap(free, world.bytes()) == 0);
  const std::string before = StateOfThisProcess();
  Guest& self = world.self();
  Want(self.TryMap({.bytes = kBlock + kPage}), "EINVAL");
  Want(self.TryMap({.bytes = kPage}), "EINVAL");
  Want(self.TryMap({.bytes = kBlock - 1}), "EINVAL");
  Want(self.TryMap({.bytes = kBlock, .addr = free + kPage}), "EINVAL");
  Want(self.TryMap({.bytes = kBlock, .flags = kOptIn | MAP_FIXED, .addr = free + kPage}), "EINVAL");
  if (!world.IsAnonymous()) Want(self.TryMap({.offset = kPage, .bytes = kBlock}), "EINVAL");
  const int private_opt_in = MAP_PRIVATE | kMapSharedPt;
  Want(self.TryMap({.flags = private_opt_in}), "EINVAL");
  Want(self.TryMap({.flags = MAP_SHARED_VALIDATE | kMapSharedPt}),
       world.IsAnonymous() ? "EINVAL" : "EOPNOTSUPP");
  Want(StateOfThisProcess(), before);
  world.WantWrites(0, "ok");
}

OPT_IN_CASE(EveryMapperSeesOneContent, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  const Sharer c = world.Newcomer();
  b.guest->Fill(b.at, world.bytes());
  world.WantHolds();
  c.guest->Put(c.at + kBlock, 77);
  Want(static_cast<uint64_t>(world.self().Byte(at + kBlock)), 77);
  for (const Sharer& one : world.sharers()) Want(one.guest->IsShared(one.at), world.shared());
}

// A and B map blocks 0-1, C maps 0-3: they share what they have in common.
OPT_IN_CASE(WindowsOfDifferentSizes, kFiles) {
  char* a = world.self().Map({.bytes = 2 * kBlock});
  Guest& b = world.Start();
  char* b_at = b.Map({.bytes = 2 * kBlock});
  Guest& c = world.Start();
  char* c_at = c.Map();
  c.Fill(c_at, world.bytes());
  WantTrue(world.self().Holds(a, 2 * kBlock), "A reads what C wrote");
  WantTrue(b.Holds(b_at, 2 * kBlock), "B reads what C wrote");
  Want(world.self().IsShared(a), world.shared());
  Want(c.IsShared(c_at), world.shared());
  Want(c.IsShared(c_at + 3 * kBlock), world.shared());
  Want(world.self().Protect(a + kBlock, kBlock, PROT_READ), "ok");
  Want(b.Write(b_at + kBlock), kDenied);
  Want(c.Write(c_at + kBlock), kDenied);
  Want(c.Write(c_at + 2 * kBlock), "ok");
  // Over what the others have and what they have not.
  Want(c.Protect(c_at, world.bytes(), PROT_NONE), "ok");
  Want(world.self().Read(a), kDenied);
  Want(b.Read(b_at + kBlock), kDenied);
  Want(c.Protect(c_at, world.bytes(), kReadWrite), "ok");
  WantTrue(world.self().Holds(a, 2 * kBlock), "the content is intact");
}

OPT_IN_CASE(OtherAddress, kFiles) {
  char* at = world.Map();
  Guest& b = world.Start();
  char* place = b.Map({.flags = MAP_SHARED});
  Want(b.Unmap(place, world.bytes()), "ok");
  // Somewhere else, a multiple of the granule and no more.
  char* there = at - (size_t{1} << 40) + kBlock;
  char* b_at = b.Map({.flags = kOptIn | MAP_FIXED_NOREPLACE, .addr = there});
  Want(Number(b_at), Number(there));
  Want(b.IsShared(b_at), world.shared());
  b.Fill(b_at, world.bytes());
  WantTrue(world.self().Holds(at, world.bytes()), "one content");
  Want(b.Protect(b_at + kBlock, kBlock, PROT_READ), "ok");
  Want(world.self().Write(at + kBlock), kDenied);
  Want(world.self().Write(at), "ok");
}

// All windows of one process follow, not only the first.
OPT_IN_CASE(SeveralWindowsInOneProcess, kFiles) {
  Guest& self = world.self();
  char* first = self.Map();
  char* second = self.Map();
  char* part = self.Map({.offset = kBlock, .bytes = 2 * kBlock});
  Guest& b = world.Start();
  char* b_first = b.Map();
  char* b_part = b.Map({.offset = 2 * kBlock, .bytes = kBlock});
  self.Fill(first, world.bytes());
  WantTrue(self.Holds(second, world.bytes()), "one content");
  for (char* at : {first, second, part}) Want(self.IsShared(at), world.shared());
  Want(self.Protect(second + 2 * kBlock, kBlock, PROT_READ), "ok");
  Want(self.Write(first + 2 * kBlock), kDenied);
  Want(self.Write(second + 2 * kBlock), kDenied);
  Want(self.Write(part + kBlock), kDenied);
  Want(b.Write(b_first + 2 * kBlock), kDenied);
  Want(b.Write(b_part), kDenied);
  Want(self.Write(part), "ok");
  Want(b.Protect(b_part, kBlock, kReadWrite), "ok");
  Want(self.Write(first + 2 * kBlock), "ok");
  Want(self.Write(part + kBlock), "ok");
  // One window goes; the others stay what they are.
  Want(self.Unmap(first, world.bytes()), "ok");
  Want(b.Protect(b_first, world.bytes(), PROT_READ), "ok");
  Want(self.Write(second), kDenied);
  Want(self.Write(part), kDenied);
  Want(self.Read(first), kUnmapped);
}

OPT_IN_CASE(ReadOnlyPrivateMapping, kFiles) {
  char* at = world.Map();
  world.Newcomer();
  Guest& reader = world.Start();
  char* theirs =
      reader.Map({.prot = PROT_READ, .flags = MAP_PRIVATE | kMapSharedPt, .access = O_RDONLY});
  Want(reader.Permissions(theirs), "r--p");
  world.self().Put(at, 21);
  Want(static_cast<uint64_t>(reader.Byte(theirs)), 21);
  Want(reader.Write(theirs), kDenied);
  Want(world.self().Protect(at, kBlock, PROT_NONE), "ok");
  Want(reader.Read(theirs), kDenied);
  Want(reader.Read(theirs + kBlock), "ok");
  Want(world.self().Protect(at, kBlock, kReadWrite), "ok");
  // Never writable: it would be a copy.
  Want(reader.Permissions(theirs), "r--p");
  Want(reader.Protect(theirs, world.bytes(), kReadWrite), "EACCES");
  world.WantWrites(0, "ok");
}

OPT_IN_CASE(UnmapIsTheCallersOwn, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  world.TouchAll();
  const size_t unit = world.unit();
  Want(world.self().Unmap(at + kBlock, kBlock), "ok");
  Want(world.self().Unmap(at + 3 * kBlock, unit), "ok");
  Want(world.self().Read(at + kBlock), kUnmapped);
  Want(world.self().Read(at + 3 * kBlock), kUnmapped);
  if (unit < kBlock) Want(world.self().Read(at + 3 * kBlock + unit), "ok");
  Want(world.self().IsShared(at + kBlock), "ENOMEM");
  WantTrue(b.guest->Holds(b.at, world.bytes()), "the other one has it all");
  // What is gone does not come back when the protection of all changes.
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
  Want(world.self().Read(at + kBlock), kUnmapped);
  Want(b.guest->Write(b.at + kBlock), kDenied);
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  Want(world.self().Read(at + kBlock), kUnmapped);
  Want(b.guest->Write(b.at + kBlock), "ok");
}

// The pager counts who maps it.
OPT_IN_CASE(UnmapDropsTheUse, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  WantTrue(!RegionsOf(b.guest->pid()).empty(), "the newcomer is listed");
  Want(b.guest->Unmap(b.at, world.bytes()), "ok");
  WantTrue(Eventually([&] { return RegionsOf(b.guest->pid()).empty(); }), "and is not any more");
  WantTrue(!RegionsOf(getpid()).empty(), "others are");
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), kDenied);
}

// Private memory of a process in the midst of what it shares is never touched for others.
OPT_IN_CASE(OtherMemoryOverAPart, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  world.TouchAll();
  void* over =
      mmap(at + kBlock, kBlock, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  Want(Number(over), Number(at + kBlock));
  Want(static_cast<uint64_t>(world.self().Byte(at + kBlock)), 0);
  world.self().Put(at + kBlock, 9);
  WantTrue(b.guest->Holds(b.at, world.bytes()), "the other one has it all");
  Want(b.guest->Protect(b.at, world.bytes(), PROT_NONE), "ok");
  Want(world.self().Write(at + kBlock), "ok");
  Want(static_cast<uint64_t>(world.self().Byte(at + kBlock)), 9);
  Want(world.self().Read(at), kDenied);
  Want(world.self().Read(at + 2 * kBlock), kDenied);
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  if (world.IsHugetlb()) return;  // has no MADV_PAGEOUT
  Want(b.guest->Advise(b.at, world.bytes(), MADV_PAGEOUT), "ok");
  Want(static_cast<uint64_t>(world.self().Byte(at + kBlock)), 9);
}

OPT_IN_CASE(RemapMoves, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  char* place = Reserve(world.bytes());
  Want(world.self().Protect(at, world.bytes(), PROT_READ), "ok");
  char* to = MoveTo(world, at, place);
  Want(world.self().Read(at), kUnmapped);
  WantTrue(world.self().Holds(to, world.bytes()), "the content is intact");
  Want(world.self().Write(to), kDenied);
  Want(world.self().IsShared(to), world.shared());
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  Want(world.self().Write(to), "ok");
  Want(b.guest->Protect(b.at + 3 * kBlock, kBlock, PROT_NONE), "ok");
  Want(world.self().Read(to + 3 * kBlock), kDenied);
  Want(world.self().Protect(to, world.bytes(), kReadWrite), "ok");
  Want(b.guest->Write(b.at + 3 * kBlock), "ok");
}

// What others have protected is no obstacle.
OPT_IN_CASE(RemapMovesPieces, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  Want(b.guest->Protect(b.at, kBlock, PROT_READ), "ok");
  Want(b.guest->Protect(b.at + 2 * kBlock, world.unit(), PROT_NONE), "ok");
  char* to = MoveTo(world, at, Reserve(world.bytes()));
  Want(world.self().Read(at), kUnmapped);
  Want(world.self().Write(to), kDenied);
  Want(world.self().Write(to + kBlock), "ok");
  Want(world.self().Read(to + 2 * kBlock), kDenied);
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  Want(world.self().Write(to), "ok");
  world.self().Touch(to + 2 * kBlock, kBlock);
  WantTrue(world.self().Holds(to, world.bytes()), "the content is intact");
}

// Where tables cannot be shared the protection is shared all the same.
OPT_IN_CASE(RemapMovesToAnOddPlace, kEvery) {
  if (world.IsHugetlb()) {
    Say("skipped: hugetlb memory cannot lie there");
    return;
  }
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  char* place = Reserve(world.bytes() + kBlock) + kPage;
  char* to = MoveTo(world, at, place);
  Want(world.self().IsShared(to), "0");
  Want(b.guest->IsShared(b.at), world.shared());
  WantTrue(world.self().Holds(to, world.bytes()), "the content is intact");
  Want(b.guest->Protect(b.at, kBlock, PROT_READ), "ok");
  Want(world.self().Write(to + kBlock - 1), kDenied);
  Want(world.self().Write(to + kBlock), "ok");
  // And back to where it can be shared.
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  char* back = MoveTo(world, to, at);
  Want(world.self().IsShared(back), world.shared());
  Want(world.self().Write(back), kDenied);
  WantTrue(world.self().Holds(back, world.bytes()), "the content is intact");
}

OPT_IN_CASE(RemapShrinks, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  char* same = world.self().Remap(at, {.old_bytes = world.bytes(), .new_bytes = 2 * kBlock});
  Want(Number(same), Number(at));
  Want(world.self().Read(at + 2 * kBlock), kUnmapped);
  WantTrue(world.self().Holds(at, 2 * kBlock), "the rest is intact");
  WantTrue(b.guest->Holds(b.at, world.bytes()), "the other one has it all");
  Want(world.self().IsShared(at + kBlock), world.shared());
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at + kBlock), kDenied);
  Want(world.self().Read(at + 2 * kBlock), kUnmapped);
}

OPT_IN_CASE(RemapGrows, kFiles) {
  if (world.IsHugetlb()) {
    Say("skipped: mremap of the kernel does not grow hugetlb memory");
    return;
  }
  Guest& b = world.Start();
  char* b_at = b.Map();
  b.Fill(b_at, world.bytes());
  Want(b.Protect(b_at + 3 * kBlock, kBlock, PROT_READ), "ok");
  char* at = world.self().Map({.bytes = 2 * kBlock});
  Want(world.self().Write(at), "ok");
  char* to = world.self().Remap(at, {.old_bytes = 2 * kBlock, .new_bytes = world.bytes()});
  WantTrue(world.self().Holds(to, world.bytes()), "what it grew over is there");
  Want(world.self().Write(to + 2 * kBlock), "ok");
  Want(world.self().Write(to + 3 * kBlock), kDenied);
  Want(b.Protect(b_at, world.bytes(), PROT_NONE), "ok");
  Want(world.self().Read(to + 2 * kBlock), kDenied);
  Want(world.self().Protect(to, world.bytes(), kReadWrite), "ok");
  Want(b.Write(b_at + 3 * kBlock), "ok");
}

OPT_IN_CASE(RemapDontUnmap, kEvery) {
  constexpr int kDontUnmap = 4;
  if (world.IsHugetlb()) {
    Say("skipped: the kernel has no MREMAP_DONTUNMAP for hugetlb memory");
    return;
  }
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes());
  char* to = world.self().Remap(at, {.old_bytes = world.bytes(),
                                     .new_bytes = world.bytes(),
                                     .flags = MREMAP_MAYMOVE | kDontUnmap});
  WantTrue(world.self().Holds(to, world.bytes()), "moved");
  WantTrue(world.self().Holds(at, world.bytes()), "and still there");
  world.self().Put(at + kBlock, 5);
  Want(static_cast<uint64_t>(world.self().Byte(to + kBlock)), 5);
  // Both are windows of it.
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(to), kDenied);
  Want(world.self().Write(at), kDenied);
}

// The errno of plain memory.
OPT_IN_CASE(RemapErrors, kEvery) {
  char* at = world.Map();
  char* plain = Reserve(world.bytes());
  world.self().Fill(at, world.bytes());
  const std::string before = StateOfThisProcess();
  const struct {
    size_t offset;
    size_t old_bytes;
    size_t new_bytes;
    int flags;
  } calls[] = {{1, world.bytes(), kBlock, MREMAP_MAYMOVE},
               {0, world.bytes(), 0, MREMAP_MAYMOVE},
               {0, world.bytes(), kBlock, 0x100},
               {0, world.bytes(), ~size_t{0} - 8191, MREMAP_MAYMOVE}};
  for (const auto& call : calls) {
    const auto outcome = [&call](char* start) {
      void* got = TheCalls().remap(start + call.offset, call.old_bytes, call.new_bytes, call.flags,
                                   nullptr);
      return std::string(got == MAP_FAILED ? ErrnoName(errno) : "ok");
    };
    Want(outcome(at), outcome(plain));
  }
  Want(StateOfThisProcess(), before);
  world.WantHolds();
}

}  // namespace hostmm::test
