// Forks without end beside snapshots without end: a child sees what its parent saw, and no
// snapshot misses what a child writes in its first moments.
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <memory>

#include "tests/process/guest_program.h"
#include "tests/snapshots/campaign.h"
#include "tests/snapshots/tickets.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

constexpr size_t kForkers = 3;

struct Shared {
  Tickets tickets;
  std::atomic<bool> stop = false;
  std::atomic<uint64_t> forks = 0;
  // Children that saw what never was, and those that did not end well.
  std::atomic<uint64_t> wrong = 0;
  std::atomic<uint64_t> failed = 0;
};

// What a child does at once: a write, and a look at everything while nobody writes.
void LiveShortly(Shared* shared, char* at, size_t chain) {
  shared->tickets.Write(at, chain);
  shared->tickets.LockAll();
  const Tickets::Counts all = shared->tickets.Written();
  if (*shared->tickets.Judge(at, all, all, Tickets::Halves::kWhole) != 0) ++shared->wrong;
  shared->tickets.UnlockAll();
}

// Forks as fast as it can; the parent writes while its child comes to life.
int64_t ForkUntilStopped(Shared* shared, char* at, size_t number) {
  for (size_t chain = number; !shared->stop; chain = (chain + 1) % kChains) {
    const pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      LiveShortly(shared, at, chain);
      _exit(0);
    }
    shared->tickets.Write(at, (chain + 1) % kChains);
    int status = 0;
    MUST(waitpid(child, &status, 0) == child);
    if (status != 0) ++shared->failed;
    ++shared->forks;
  }
  return 0;
}

HOSTMM_CASE(ForksWithoutEnd) {
  const size_t snapshots = SnapshotsOr(200);
  Live live(kTicketBytes);
  Shared* shared = SharedCounters<Shared>();
  std::array<Partner, kForkers> forkers;
  for (size_t i = 0; i < kForkers; ++i) {
    forkers[i].Start([shared, at = live.at(), i] { return ForkUntilStopped(shared, at, i); });
  }
  size_t bad = 0;
  size_t refused = 0;
  const uint64_t first = shared->forks;
  for (size_t i = 0; i < snapshots; ++i) {
    const Tickets::Counts least = shared->tickets.Written();
    const Snapshot snapshot(live.at(), &refused);
    const Tickets::Counts most = shared->tickets.Written();
    const View view(snapshot);
    // At least one that begins now also ends.
    const uint64_t forks = shared->forks;
    MUST(Eventually([&] { return shared->forks > forks + kForkers; }));
    const char* wrong = shared->tickets.Judge(view.at(), least, most, Tickets::Halves::kMayBe);
    const std::string condition = snapshot.Condition();
    if (*wrong == 0 && condition == "ok") continue;
    if (++bad <= 3) {
      Say("snapshot %zu: %s %s: %s", i, wrong, condition.c_str(),
          condition == "ok" ? "ok" : hostmm_error());
    }
  }
  const uint64_t forks = shared->forks - first;
  shared->stop = true;
  for (const Partner& forker : forkers) forker.Await();
  Want(bad == 0, "%zu of %zu snapshots are not what they should be", bad, snapshots);
  Want(refused <= snapshots / 10, "%zu were refused before they were taken", refused);
  Want(forks >= snapshots, "%llu forks meanwhile", static_cast<unsigned long long>(forks));
  Want(shared->wrong == 0 && shared->failed == 0, "children: %llu saw what never was, %llu failed",
       static_cast<unsigned long long>(shared->wrong.load()),
       static_cast<unsigned long long>(shared->failed.load()));
  const Tickets::Counts end = shared->tickets.Written();
  const char* wrong = shared->tickets.Judge(live.at(), end, end, Tickets::Halves::kWhole);
  Want(*wrong == 0, "the region in the end %s", wrong);
  Want(Eventually([&] { return IsNative(live.at()); }), "nothing is tracked in the end");
}

}  // namespace
}  // namespace hostmm::test
