// Who dies, stops or has no agent while protection is changed for all.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

#include "tests/process/guest_program.h"
#include "tests/races/race_time.h"
#include "tests/races/storm.h"

namespace hostmm::test {
namespace {

using Clock = std::chrono::steady_clock;

// The patience of the pager with a member, and what a busy machine may add.
constexpr double kPatienceSeconds = 8;
constexpr double kPatienceWithSlack = 20;
// What an operation takes at most that waits for nobody who does not answer. Arbitrary, well below
// the patience.
constexpr double kPrompt = 4;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Answered {
  int error;
  double seconds;
};

Answered Protect(char* at, size_t bytes, int prot) {
  const Clock::time_point start = Clock::now();
  const int result = mprotect(at, bytes, prot);
  return {result == 0 ? 0 : errno, SecondsSince(start)};
}

void WantPrompt(const Answered& got, const char* what) {
  Say("#%s %s: %s, %.1f s", got.error == 0 && got.seconds < kPrompt ? "ok" : "BAD", what,
      ErrnoName(got.error), got.seconds);
}

// A process that tries to write one byte for ever.
class Writer {
 public:
  Writer(const SharedFile& file, const std::function<pid_t(const std::function<void()>&)>& start) {
    void* at = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    counts_ = static_cast<Counts*>(at);
    pid_ = start([this, &file] {
      char* base = file.Map(0, kFileBytes);
      for (;;)
        ++(TryTouch(Touch::kStore, base) == Touched::kDone ? counts_->done : counts_->refused);
    });
  }
  ~Writer() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  // Its next attempts, those that began later than this call, are of that kind alone.
  bool ComesToDo() const { return Moves(counts_->done, counts_->refused); }
  bool ComesToBeRefused() const { return Moves(counts_->refused, counts_->done); }

 private:
  struct Counts {
    std::atomic<uint64_t> done;
    std::atomic<uint64_t> refused;
  };
  static bool Moves(const std::atomic<uint64_t>& wanted, const std::atomic<uint64_t>& unwanted) {
    return Eventually([&] {
      const uint64_t before = unwanted;
      const uint64_t from = wanted;
      return Eventually([&] { return wanted > from + 2 || unwanted > before + 2; }) &&
             unwanted == before;
    });
  }

  Counts* counts_;
  pid_t pid_;
};

void AwaitStopped(pid_t pid) {
  int status = 0;
  MUST(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
}

// The call ends without the member that is stopped, and says so; what it asked for holds for all
// others, and for the stopped one when it goes on.
HOSTMM_CASE(StoppedMember) {
  InitTouches();
  const SharedFile file(Source::kMemfd);
  const SharedFile other_file(Source::kMemfd);
  char* base = file.Map(0, kFileBytes);
  const Writer member(file, StartChild);
  Say("#%s the member writes", member.ComesToDo() ? "ok" : "BAD");
  // Not inherited: the member has nothing to do with it.
  char* other = other_file.Map(0, kFileBytes);
  kill(member.pid(), SIGSTOP);
  AwaitStopped(member.pid());

  Answered first;
  std::thread caller([&] { first = Protect(base, kBlockBytes, PROT_READ); });
  WantPrompt(Protect(other, kBlockBytes, PROT_READ), "another file is not waited for");
  caller.join();
  const bool in_time = first.seconds > kPatienceSeconds / 2 && first.seconds < kPatienceWithSlack;
  Say("#%s %s after %.1f s", first.error == ETIMEDOUT && in_time ? "ok" : "BAD",
      ErrnoName(first.error), first.seconds);
  const bool mine = TryTouch(Touch::kStore, base) == Touched::kRefused;
  const bool late = TryTouch(Touch::kStore, file.Map(0, kFileBytes)) == Touched::kRefused;
  Say("#%s the others and a new mapper have it", mine && late ? "ok" : "BAD");
  const Answered second = Protect(base + kBlockBytes, kBlockBytes, PROT_READ);
  Say("#%s who is known to be late is waited for less: %s, %.1f s",
      second.error == ETIMEDOUT && second.seconds < kPatienceSeconds / 2 ? "ok" : "BAD",
      ErrnoName(second.error), second.seconds);

  kill(member.pid(), SIGCONT);
  Say("#%s when it goes on, it has missed nothing", member.ComesToBeRefused() ? "ok" : "BAD");
  WantPrompt(Protect(base, kBlockBytes, PROT_READ | PROT_WRITE), "all answer again");
  Say("#%s it writes again", member.ComesToDo() ? "ok" : "BAD");
}

// A stopped member that dies is not waited for any longer.
HOSTMM_CASE(StoppedMemberIsKilled) {
  InitTouches();
  const SharedFile file(Source::kMemfd);
  char* base = file.Map(0, kFileBytes);
  const Writer member(file, StartChild);
  Say("#%s the member writes", member.ComesToDo() ? "ok" : "BAD");
  kill(member.pid(), SIGSTOP);
  AwaitStopped(member.pid());
  Answered got;
  std::thread caller([&] { got = Protect(base, kBlockBytes, PROT_READ); });
  // This process is a member, too: what it feels is that the call has begun.
  const bool begun = Eventually([&] { return TryTouch(Touch::kStore, base) == Touched::kRefused; });
  Say("#%s the call waits for the member", begun ? "ok" : "BAD");
  kill(member.pid(), SIGKILL);
  caller.join();
  WantPrompt(got, "the call ends with the member");
}

// Callers die at any moment of their call. Whoever calls next is served, and what it sets holds.
HOSTMM_CASE(KilledCallers) {
  Scene* scene = MakeScene(Wrong::kNothing);
  InitTouches();
  const SharedFile file(Source::kNamed);
  char* base = file.Map(0, kFileBytes);
  const Writer member(file, StartChild);
  uint64_t random = 31;
  double slowest = 0;
  for (const RaceTime time; !time.over(); ++scene->tally.kills) {
    const uint64_t seed = random;
    const pid_t caller = StartChild([&] {
      uint64_t own = seed + 1;
      for (;;) {
        const Part& part = kParts[Roll(&own, kPartCount)];
        mprotect(base + part.offset, part.bytes, ProtOf(static_cast<Rule>(1 + Roll(&own, 3))));
      }
    });
    std::this_thread::sleep_for(std::chrono::microseconds(Roll(&random, 8000)));
    kill(caller, SIGKILL);
    MUST(WaitFor(caller) == 128 + SIGKILL);
    const Clock::time_point start = Clock::now();
    for (uint32_t part = 0; part < kPartCount; ++part) {
      MUST(Change(scene, part, static_cast<Rule>(1 + Roll(&random, 3)), base) == 0);
    }
    slowest = std::max(slowest, SecondsSince(start));
    const SharedFile* same = &file;
    const pid_t witness = StartChild([&] {
      char* own = same->Map(0, kFileBytes);
      for (uint32_t i = 0; i < 60; ++i) {
        const size_t byte =
            kParts[i % kPartCount].offset + Roll(&random, kParts[i % kPartCount].bytes);
        Judge(scene, i % kPartCount, static_cast<Touch>(i % 3), (i % 2 == 0 ? own : base) + byte);
      }
    });
    MUST(WaitFor(witness) == 0);
  }
  Say("%s; the slowest round took %.2f s", ToText(*scene).c_str(), slowest);
  Say("#%s no violation", scene->tally.violations == 0 && scene->judged() != 0 ? "ok" : "BAD");
  Say("#%s nobody waits for the dead", slowest < kPrompt ? "ok" : "BAD");
}

// A child of _Fork has the memory, but hostmm does not know it (docs): it keeps the protection that
// it had, and nobody waits for it.
HOSTMM_CASE(ChildThatHostmmDoesNotKnow) {
  InitTouches();
  const SharedFile file(Source::kAnonymous);
  char* base = file.Map(0, kFileBytes);
  const Writer stranger(file, [](const std::function<void()>& body) {
    const pid_t child = _Fork();
    MUST(child >= 0);
    if (child == 0) body();
    return child;
  });
  Say("#%s it writes", stranger.ComesToDo() ? "ok" : "BAD");
  WantPrompt(Protect(base, kBlockBytes, PROT_READ), "nobody waits for it");
  const bool refused = TryTouch(Touch::kStore, base) == Touched::kRefused;
  Say("#%s the caller has the protection, the stranger has not",
      refused && stranger.ComesToDo() ? "ok" : "BAD");
}

}  // namespace
}  // namespace hostmm::test
