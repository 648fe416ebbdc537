// Storms for the seven races that a shared protection must not have; each case says which. Each
// ends after HOSTMM_RACE_SECONDS (default 2).
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/races/race_time.h"
#include "tests/races/storm.h"

namespace hostmm::test {
namespace {

void ExpectRight(const Scene& scene) {
  const Tally& tally = scene.tally;
  Say("%s", ToText(scene).c_str());
  const bool right = tally.violations == 0 && tally.failed_calls == 0;
  const bool both = tally.allowed != 0 && tally.refused != 0;
  Say("#%s no violation, no failed call, and touches of both kinds", right && both ? "ok" : "BAD");
}

// Storms that are nearly all coming and going.
StormOptions Restless(Source source) {
  return {.source = source, .touches = ~uint64_t{0}, .seconds = RaceSeconds(), .calm = 3};
}

// Race 1: a new sharer appears while others unshare (remap) and protection changes.
HOSTMM_CASE(NewSharersDuringProtect) { ExpectRight(*RunStorm(Restless(Source::kMemfd))); }

// Race 2: the last user of a table goes while another one finds it; and race 5, kills.
HOSTMM_CASE(UseCountsWhileMappersComeAndGo) {
  StormOptions options = Restless(Source::kNamed);
  options.probers = 12;
  options.kill = StormOptions::Kill::kProbers;
  ExpectRight(*RunStorm(options));
}

// Race 3: one call of another process reaches every window of the file in this one.
HOSTMM_CASE(EveryWindowOfAProcess) {
  Scene* scene = MakeScene(Wrong::kNothing);
  InitTouches();
  const SharedFile file(Source::kMemfd);
  char* windows[8];
  for (char*& at : windows) at = file.Map(0, kFileBytes);
  Turns turns;
  const pid_t other = StartChild([&] {
    turns.IAmSecond();
    char* base = file.Map(0, kFileBytes);
    uint64_t random = 11;
    for (;;) {
      turns.Await();
      if (scene->stop != 0) return;
      const uint32_t part = Roll(&random, kPartCount);
      MUST(Change(scene, part, static_cast<Rule>(1 + Roll(&random, 3)), base) == 0);
      turns.Pass();
    }
  });
  turns.IAmFirst();
  uint64_t random = 12;
  for (const RaceTime time; !time.over();) {
    turns.Pass();
    turns.Await();
    for (size_t part = 0; part < kPartCount; ++part) {
      for (char* at : windows) {
        const size_t byte = kParts[part].offset + Roll(&random, kParts[part].bytes);
        Judge(scene, part, static_cast<Touch>(Roll(&random, 3)), at + byte);
      }
    }
    char*& anew = windows[Roll(&random, 8)];
    MUST(munmap(anew, kFileBytes) == 0);
    anew = file.Map(0, kFileBytes);
  }
  scene->stop = 1;
  turns.Pass();
  MUST(WaitFor(other) == 0);
  ExpectRight(*scene);
}

// Race 4: tables are freed and made anew all the time, each time for another file, while the test
// reads them from outside.
void LiveManyFiles(uint64_t random, const RaceTime& time) {
  while (!time.over()) {
    const SharedFile file(Roll(&random, 2) == 0 ? Source::kMemfd : Source::kAnonymous);
    char* at = file.Map(0, kFileBytes);
    const size_t byte = Roll(&random, kFileBytes);
    at[byte] = 'x';
    MUST(mprotect(at + kBlockBytes, kBlockBytes, PROT_READ) == 0);
    MUST(at[byte] == 'x');
    if (Roll(&random, 4) == 0) {
      MUST(madvise(at, kFileBytes, MADV_DONTNEED) == 0);
      MUST(at[byte] == 'x');
    }
    if (!file.IsAnonymous()) MUST(munmap(at, kFileBytes) == 0);
  }
}

HOSTMM_CASE(TablesFreedUnderReaders) {
  const RaceTime time;
  std::vector<pid_t> children;
  for (uint64_t i = 1; i <= 6; ++i) {
    children.push_back(StartChild([&, i] { LiveManyFiles(i * 977, time); }));
  }
  bool well = true;
  for (const pid_t child : children) well = WaitFor(child) == 0 && well;
  Say("#%s six processes made and dropped files", well ? "ok" : "BAD");
}

// Race 5: forks during shared mprotect. A child is judged from its first instruction on.
HOSTMM_CASE(ForksDuringProtect) {
  Scene* scene = MakeScene(Wrong::kNothing);
  InitTouches();
  const SharedFile file(Source::kAnonymous);
  char* base = file.Map(0, kFileBytes);
  const pid_t caller = StartChild([&] {
    uint64_t random = 21;
    while (scene->stop == 0) {
      const uint32_t part = Roll(&random, kPartCount);
      MUST(Change(scene, part, static_cast<Rule>(1 + Roll(&random, 3)), base) == 0);
    }
  });
  uint64_t random = 22;
  bool well = true;
  for (const RaceTime time; !time.over();) {
    const pid_t child = StartChild([&] {
      for (int i = 0; i < 40; ++i) {
        const uint32_t part = Roll(&random, kPartCount);
        const size_t byte = kParts[part].offset + Roll(&random, kParts[part].bytes);
        Judge(scene, part, static_cast<Touch>(Roll(&random, 3)), base + byte);
      }
    });
    ++scene->tally.forks;
    // Every second one is killed somewhere on its way.
    if (Roll(&random, 2) == 0) {
      kill(child, SIGKILL);
      ++scene->tally.kills;
    }
    const int status = WaitFor(child);
    well = well && (status == 0 || status == 128 + SIGKILL);
  }
  scene->stop = 1;
  MUST(WaitFor(caller) == 0 && well);
  ExpectRight(*scene);
}

// Race 6: the pager's table of regions is full half way. A call that fails says so and has changed
// nothing, for anybody; what was so before still is.
class Crowd {
 public:
  explicit Crowd(const SharedFile& file) : base_(file.Map(0, kFileBytes)) {
    void* shared =
        mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(shared != MAP_FAILED);
    wrong_ = static_cast<uint32_t*>(shared);
    for (Turns& turns : turns_) {
      members_.push_back(StartChild([&] { Serve(&turns); }));
      turns.IAmFirst();
    }
  }
  ~Crowd() {
    for (const pid_t member : members_) {
      kill(member, SIGKILL);
      WaitFor(member);
    }
  }

  char* base() const { return base_; }
  // How many pages of all members are writable that should not be, or the other way round.
  // Pages below `split` are to be writable if they are odd, the others all.
  uint32_t WrongPages(size_t split) {
    wrong_[0] = 0;
    wrong_[1] = static_cast<uint32_t>(split);
    for (const Turns& turns : turns_) turns.Pass();
    for (const Turns& turns : turns_) turns.Await();
    return wrong_[0];
  }

 private:
  void Serve(Turns* turns) {
    turns->IAmSecond();
    for (;;) {
      turns->Await();
      for (size_t page = 0; page < kFileBytes / kPageBytes; ++page) {
        const bool writable = page >= wrong_[1] || page % 2 == 1;
        const Touched touched = TryTouch(Touch::kStore, base_ + page * kPageBytes);
        if ((touched == Touched::kDone) != writable)
          __atomic_fetch_add(&wrong_[0], 1, __ATOMIC_SEQ_CST);
      }
      turns->Pass();
    }
  }

  char* const base_;
  uint32_t* wrong_;
  Turns turns_[24];
  std::vector<pid_t> members_;
};

HOSTMM_CASE(TablesFullHalfWay) {
  InitTouches();
  const SharedFile file(Source::kAnonymous);
  Crowd crowd(file);
  size_t page = 0;
  int error = 0;
  // Each protected page in a row of writable ones makes two more regions in each of the members.
  for (; page < kFileBytes / kPageBytes && error == 0; page += 2) {
    if (mprotect(crowd.base() + page * kPageBytes, kPageBytes, PROT_READ) != 0) error = errno;
  }
  const size_t split = error == 0 ? page : page - 2;
  Say("#%s the tables are full after %zu pages: %s", error == ENOMEM ? "ok" : "BAD", split,
      ErrnoName(error));
  const uint32_t wrong = crowd.WrongPages(split);
  Say("#%s nothing half done: %u pages are wrong", wrong == 0 ? "ok" : "BAD", wrong);
  // What needs no more room still works.
  const int undone = mprotect(crowd.base(), kFileBytes, PROT_READ | PROT_WRITE);
  const uint32_t still = crowd.WrongPages(0);
  Say("#%s all is undone: %s, %u pages are wrong", undone == 0 && still == 0 ? "ok" : "BAD",
      Outcome(undone), still);
}

}  // namespace
}  // namespace hostmm::test
