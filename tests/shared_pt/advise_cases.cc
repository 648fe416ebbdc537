// The rows of madvise, mlock, MAP_LOCKED and MAP_POPULATE of docs/semantics.md.
#include <sys/mman.h>
#include <unistd.h>

#include "tests/shared_pt/world.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr char kUnmapped[] = "SIGSEGV/MAPERR";
// Not in the C library's headers here.
constexpr int kGuardInstall = 102;
constexpr int kGuardRemove = 103;

void WantPresent(const World& world, size_t wanted, Where where = Where::current()) {
  for (const Sharer& one : world.sharers()) {
    Want(one.guest->PresentPages(one.at, world.bytes()), wanted, where);
  }
}

// Three processes that have all of it in their page tables.
void Populate(World& world) {
  char* at = world.Map();
  world.Newcomer();
  world.Newcomer();
  world.KeepSmall();
  world.self().Fill(at, world.bytes());
  world.Settle();
  WantPresent(world, world.pages());
}

// Linux does not do that to hugetlb memory.
void WantRefused(World& world, int advice) {
  Want(world.self().Advise(world.sharers()[0].at, world.bytes(), advice), "EINVAL");
  WantPresent(world, world.pages());
}

std::string Vote(const Sharer& one, size_t offset, size_t bytes) {
  return one.guest->Advise(one.at + offset, bytes, MADV_DONTNEED);
}

}  // namespace

OPT_IN_CASE(PagesLeaveWhenAllHaveVoted, kEvery) {
  Populate(world);
  const std::vector<Sharer>& all = world.sharers();
  Want(Vote(all[1], 0, world.bytes()), "ok");
  WantPresent(world, world.pages());
  Want(Vote(all[0], 0, world.bytes()), "ok");
  // Twice is one vote.
  Want(Vote(all[0], 0, world.bytes()), "ok");
  WantPresent(world, world.pages());
  Want(Vote(all[2], 0, world.bytes()), "ok");
  WantPresent(world, 0);
  world.WantHolds();
  // The votes are used up.
  WantPresent(world, world.pages());
  Want(Vote(all[2], 0, world.bytes()), "ok");
  WantPresent(world, world.pages());
}

OPT_IN_CASE(VotesOfParts, kEvery) {
  Populate(world);
  const std::vector<Sharer>& all = world.sharers();
  const size_t in_block = kBlock / kPage;
  Want(Vote(all[0], 0, 3 * kBlock), "ok");
  Want(Vote(all[1], kBlock, 3 * kBlock), "ok");
  Want(Vote(all[2], 2 * kBlock, 2 * kBlock), "ok");
  // Only the third block has all votes.
  WantPresent(world, world.pages() - in_block);
  for (const Sharer& one : all) {
    Want(one.guest->PresentPages(one.at + 2 * kBlock, kBlock), 0);
  }
  Want(Vote(all[2], 0, 2 * kBlock), "ok");
  WantPresent(world, world.pages() - 2 * in_block);
  world.WantHolds();
}

OPT_IN_CASE(ExitCompletesTheVotes, kEvery) {
  Populate(world);
  Sharer last = world.sharers()[2];
  Want(Vote(world.sharers()[0], 0, world.bytes()), "ok");
  Want(Vote(world.sharers()[1], 0, world.bytes()), "ok");
  WantPresent(world, world.pages());
  last.guest->End(Guest::Ending::kKill);
  for (size_t i = 0; i < 2; ++i) {
    const Sharer& one = world.sharers()[i];
    WantTrue(Eventually([&] { return one.guest->PresentPages(one.at, world.bytes()) == 0; }),
             "the pages have left");
    WantTrue(one.guest->Holds(one.at, world.bytes()), "the content is intact");
  }
}

OPT_IN_CASE(UnmapCompletesTheVotes, kEvery) {
  Populate(world);
  const Sharer last = world.sharers()[2];
  Want(Vote(world.sharers()[0], 0, world.bytes()), "ok");
  Want(Vote(world.sharers()[1], 0, world.bytes()), "ok");
  Want(last.guest->Unmap(last.at, 2 * kBlock), "ok");
  const Sharer one = world.sharers()[0];
  const size_t half = world.pages() / 2;
  WantTrue(Eventually([&] { return one.guest->PresentPages(one.at, 2 * kBlock) == 0; }),
           "the pages of that half have left");
  Want(one.guest->PresentPages(one.at + 2 * kBlock, 2 * kBlock), half);
  WantTrue(one.guest->Holds(one.at, world.bytes()), "the content is intact");
}

// Who has not opted in has no vote, and keeps what it has.
OPT_IN_CASE(PlainMapperHasNoVote, kFiles) {
  char* at = world.Map();
  Guest& other = world.Start();
  char* theirs = other.Map({.flags = MAP_SHARED});
  world.KeepSmall();
  if (!world.object().IsOwn()) Want(other.Advise(theirs, world.bytes(), MADV_NOHUGEPAGE), "ok");
  world.self().Fill(at, world.bytes());
  world.Settle();
  other.Touch(theirs, world.bytes());
  Want(Vote(world.sharers()[0], 0, world.bytes()), "ok");
  WantPresent(world, 0);
  Want(other.PresentPages(theirs, world.bytes()), world.pages());
  world.WantHolds();
}

OPT_IN_CASE(RemoveIsForAll, kEvery) {
  Populate(world);
  const Sharer b = world.sharers()[1];
  Want(b.guest->Advise(b.at + kBlock, kBlock, MADV_REMOVE), "ok");
  for (const Sharer& one : world.sharers()) {
    Want(static_cast<uint64_t>(one.guest->Byte(one.at + kBlock)), 0);
    Want(static_cast<uint64_t>(one.guest->Byte(one.at + 2 * kBlock - 1)), 0);
    WantTrue(one.guest->Holds(one.at, kBlock), "what is before it is intact");
  }
  b.guest->Put(b.at + kBlock + 5, 55);
  Want(static_cast<uint64_t>(world.self().Byte(world.sharers()[0].at + kBlock + 5)), 55);
}

// One caller fills for all: the pages are in memory, whoever looks.
OPT_IN_CASE(PopulateByOne, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Want(b.guest->PagesInMemory(b.at, world.bytes()), 0);
  Want(world.self().Advise(at, 2 * kBlock, MADV_POPULATE_WRITE), "ok");
  Want(world.self().PagesInMemory(at, 2 * kBlock), world.pages() / 2);
  world.WantFilledFor(*b.guest, b.at, 2 * kBlock);
  Want(b.guest->Advise(b.at + 2 * kBlock, 2 * kBlock, MADV_POPULATE_READ), "ok");
  world.WantFilledFor(world.self(), at + 2 * kBlock, 2 * kBlock);
  // What may not be written cannot be made for writing.
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Advise(at, kBlock, MADV_POPULATE_WRITE), "EINVAL");
  Want(world.self().Advise(at, kBlock, MADV_POPULATE_READ), "ok");
}

OPT_IN_CASE(WillNeedByOne, kOwn) {
  if (world.IsHugetlb()) {
    Say("skipped: nothing tells what is in memory of hugetlb memory");
    return;
  }
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Want(b.guest->Advise(b.at, world.bytes(), MADV_WILLNEED), "ok");
  WantTrue(
      Eventually([&] { return world.self().PagesInMemory(at, world.bytes()) == world.pages(); }),
      "all is in memory");
  Want(static_cast<uint64_t>(world.self().Byte(at + 3 * kBlock)), 0);
}

OPT_IN_CASE(PageOutIsForAll, kEvery) {
  Populate(world);
  const Sharer b = world.sharers()[1];
  if (world.IsHugetlb()) return WantRefused(world, MADV_PAGEOUT);
  Want(b.guest->Advise(b.at, world.bytes(), MADV_PAGEOUT), "ok");
  WantPresent(world, 0);
  world.WantHolds();
}

OPT_IN_CASE(ColdIsForAll, kEvery) {
  Populate(world);
  const Sharer b = world.sharers()[1];
  if (world.IsHugetlb()) return WantRefused(world, MADV_COLD);
  Want(b.guest->Advise(b.at + kBlock, kBlock, MADV_COLD), "ok");
  WantPresent(world, world.pages() - kBlock / kPage);
  world.WantHolds();
}

OPT_IN_CASE(HugePageAdviceIsForTheRegion, kEvery) {
  if (world.IsHugetlb()) {
    Say("skipped: the kernel takes no such advice for hugetlb memory");
    return;
  }
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Want(world.self().Advise(at, world.bytes(), MADV_NOHUGEPAGE), "ok");
  for (const Sharer& one : world.sharers()) {
    WantTrue(one.guest->HasVmFlag(one.at, "nh"), "no huge pages");
  }
  Want(b.guest->Advise(b.at, kBlock, MADV_HUGEPAGE), "ok");
  for (const Sharer& one : world.sharers()) {
    WantTrue(one.guest->HasVmFlag(one.at, "hg"), "huge pages");
    WantTrue(one.guest->HasVmFlag(one.at + kBlock, "nh"), "no huge pages behind them");
  }
}

OPT_IN_CASE(GuardsAreRefused, kEvery) {
  Populate(world);
  const Sharer b = world.sharers()[1];
  const std::string before = StateOfThisProcess();
  Want(world.self().Advise(world.sharers()[0].at, kBlock, kGuardInstall), "EINVAL");
  Want(world.self().Advise(world.sharers()[0].at, kBlock, kGuardRemove), "EINVAL");
  Want(b.guest->Advise(b.at, kBlock, kGuardInstall), "EINVAL");
  Want(StateOfThisProcess(), before);
  WantPresent(world, world.pages());
  world.WantHolds();
}

OPT_IN_CASE(MapPopulated, kEvery) {
  char* at = world.self().Map({.flags = kOptIn | MAP_POPULATE});
  Want(world.self().PagesInMemory(at, world.bytes()), world.pages());
  Guest& b = world.IsAnonymous() ? world.Fork() : world.Start();
  char* theirs = world.IsAnonymous() ? at : b.Map();
  world.WantFilledFor(b, theirs, world.bytes());
}

OPT_IN_CASE(MapLocked, kEvery) {
  const int64_t before = StatusKib(0, "VmLck");
  char* at = world.self().Map({.flags = kOptIn | MAP_LOCKED});
  const auto kib = static_cast<uint64_t>(world.bytes() / kKib);
  // Hugetlb memory is never swapped; the kernel does not count it as locked.
  if (!world.IsHugetlb()) Want(static_cast<uint64_t>(StatusKib(0, "VmLck") - before), kib);
  Want(world.self().PagesInMemory(at, world.bytes()), world.pages());
  Guest& b = world.IsAnonymous() ? world.Fork() : world.Start();
  char* theirs = world.IsAnonymous() ? at : b.Map();
  world.WantFilledFor(b, theirs, world.bytes());
  Want(b.Protect(theirs, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at), "SIGSEGV/ACCERR");
}

OPT_IN_CASE(LockedLater, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Want(world.self().Lock(at + kBlock, kBlock), "ok");
  Want(world.self().PagesInMemory(at + kBlock, kBlock), kBlock / kPage);
  world.WantFilledFor(*b.guest, b.at + kBlock, kBlock);
  // Somebody else's protection holds for locked memory, too.
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Want(world.self().Write(at + kBlock), "SIGSEGV/ACCERR");
  Want(world.self().Read(at + kBlock), "ok");
  // Nor does somebody else's advice fail because of it.
  Want(b.guest->Protect(b.at, world.bytes(), kReadWrite), "ok");
  if (!world.IsHugetlb()) Want(b.guest->Advise(b.at, world.bytes(), MADV_PAGEOUT), "ok");
  Want(b.guest->Advise(b.at, world.bytes(), MADV_DONTNEED), "ok");
  Want(world.self().Advise(at, kBlock, MADV_DONTNEED), "ok");
}

OPT_IN_CASE(ChildWithout, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  Want(world.self().Advise(at + kBlock, kBlock, MADV_DONTFORK), "ok");
  Guest& child = world.Fork();
  Want(child.Read(at + kBlock), kUnmapped);
  Want(child.Write(at), "ok");
  Want(child.Write(at + 2 * kBlock), "ok");
  Want(b.guest->Protect(b.at, world.bytes(), PROT_READ), "ok");
  Want(child.Write(at), "SIGSEGV/ACCERR");
  Want(child.Read(at + kBlock), kUnmapped);
  Want(world.self().Write(at + kBlock), "SIGSEGV/ACCERR");
  Want(world.self().Advise(at + kBlock, kBlock, MADV_DOFORK), "ok");
  Guest& second = world.Fork();
  Want(second.Read(at + kBlock), "ok");
  Want(second.Write(at + kBlock), "SIGSEGV/ACCERR");
}

OPT_IN_CASE(AdviceErrors, kEvery) {
  Populate(world);
  char* at = world.sharers()[0].at;
  const std::string before = StateOfThisProcess();
  for (const int advice : {MADV_DONTNEED, MADV_PAGEOUT, MADV_REMOVE, MADV_NOHUGEPAGE}) {
    Want(world.self().Advise(at + 1, kBlock, advice), "EINVAL");
    Want(world.self().Advise(at, 0, advice), "ok");
  }
  Want(world.self().Advise(at, kBlock, 77), "EINVAL");
  Want(StateOfThisProcess(), before);
  WantPresent(world, world.pages());
  Want(world.self().Unmap(at + kBlock, kBlock), "ok");
  Want(world.self().Advise(at, world.bytes(), MADV_DONTNEED), "ENOMEM");
  const Sharer b = world.sharers()[1];
  WantTrue(b.guest->Holds(b.at, world.bytes()), "the other one has it all");
}

}  // namespace hostmm::test
