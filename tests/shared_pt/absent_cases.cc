// Programs that opt in where hostmm is absent, or goes away: the kernel ignores the bit, and
// everything is as without it.
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>

#include "tests/shared_pt/world.h"

namespace hostmm::test {
namespace {

constexpr char kDenied[] = "SIGSEGV/ACCERR";

std::atomic<bool> g_told = false;

// Says `word` and waits for the test's SIGUSR1.
void SayAndWait(const char* word) {
  signal(SIGUSR1, [](int) { g_told = true; });
  Say("%s", word);
  MUST(Eventually([] { return g_told.load(); }));
}

// Whether protection, advice and fork are each process's own.
void WantPlainLinux(Guest& self, Guest& other, char* at, char* theirs, size_t bytes) {
  Want(self.PlainProtect(at, bytes, PROT_READ), "ok");
  Want(self.Write(at), kDenied);
  Want(other.Write(theirs), "ok");
  Want(other.PlainProtect(theirs, kPage, PROT_NONE), "ok");
  Want(self.Read(at), "ok");
  Want(self.PlainProtect(at, bytes, kReadWrite), "ok");
  Want(other.Read(theirs), kDenied);
  Want(other.PlainProtect(theirs, bytes, kReadWrite), "ok");
  self.Touch(at, bytes);
  other.Touch(theirs, bytes);
  MUST(madvise(at, bytes, MADV_DONTNEED) == 0);
  Want(self.PresentPages(at, bytes), 0);
  Want(other.PresentPages(theirs, bytes), bytes / kPage);
  WantTrue(other.Holds(theirs, bytes) && self.Holds(at, bytes), "the content is intact");
}

}  // namespace

// No alignment is asked for, private memory may be writable, dedicated means nothing.
OPT_IN_CASE(Absent, kEvery & ~kNamedOnly) {
  Guest& self = world.self();
  char* at = self.Map();
  char* odd = self.Map({.bytes = kBlock + kPage, .flags = kOptIn | kMapDedicated});
  Want(self.Write(odd + kBlock), "ok");
  char* own = self.Map({.flags = MAP_PRIVATE | kMapSharedPt});
  Want(self.Write(own), "ok");
  if (!world.IsAnonymous()) {
    char* window = self.Map({.offset = kPage, .bytes = kBlock});
    self.Put(at + kPage, 4);
    Want(static_cast<uint64_t>(self.Byte(window)), 4);
  }
  self.Fill(at, world.bytes());
  Guest& child = world.Fork();
  WantPlainLinux(self, child, at, at, world.bytes());
  if (world.IsAnonymous()) return;
  Guest& other = world.Start();
  WantPlainLinux(self, other, at, other.Map(), world.bytes());
}

// The pager dies under programs that share: they go on with what they have.
OPT_IN_CASE(PagerDies, kEvery) {
  char* at = world.Map();
  const Sharer b = world.Newcomer();
  world.self().Fill(at, world.bytes() - kBlock);
  world.TouchAll();
  Want(b.guest->Protect(b.at, kBlock, PROT_READ), "ok");
  world.WantWrites(0, kDenied);
  SayAndWait("ready");
  // The protection stays what it is.
  world.WantWrites(0, kDenied);
  world.WantWrites(kBlock, "ok");
  if (TheWay() == Way::kLinked) {
    WantTrue(Eventually(
                 [&] { return world.self().Protect(at, world.bytes(), kReadWrite) == "ENOTCONN"; }),
             "hostmm_mprotect says that there is no pager");
    Want(world.self().IsShared(at), "ENOTCONN");
    world.WantWrites(0, kDenied);
  }
  Want(world.self().PlainProtect(at, world.bytes(), kReadWrite), "ok");
  Want(b.guest->PlainProtect(b.at, world.bytes(), kReadWrite), "ok");
  world.self().Fill(at, world.bytes());  // holes, too
  WantPlainLinux(world.self(), *b.guest, at, b.at, world.bytes());
  Guest& child = world.Fork();
  WantTrue(child.Holds(at, world.bytes()), "a child has it, too");
}

}  // namespace hostmm::test
