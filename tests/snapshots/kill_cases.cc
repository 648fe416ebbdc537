// Who dies, stops or leaves while there are snapshots: the live region loses nothing, and a
// snapshot is whole or says that it is lost.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

using Clock = std::chrono::steady_clock;

// What anything takes that waits for nobody who does not answer. Arbitrary.
constexpr double kPrompt = 4;

// What it takes when nobody waits for one who is dead: milliseconds. Who waits for an answer about
// views does so for 2 s at least.
constexpr double kAtOnce = 1.9;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Has the partner map the snapshot. RETURNS its address there.
char* MapIn(Partner* partner, int handle, size_t bytes) {
  const int64_t at = partner->Do([handle, bytes] {
    return reinterpret_cast<int64_t>(hostmm_snapshot_map(handle, nullptr, bytes, PROT_READ, 0));
  });
  MUST(at != reinterpret_cast<int64_t>(MAP_FAILED));
  return reinterpret_cast<char*>(at);
}

// The same, and has it read all of it: no page is missing there. The content is that of seed 1.
char* ReadIn(Partner* partner, const Snapshot& snapshot, size_t bytes) {
  char* at = MapIn(partner, partner->Give(snapshot.handle()), bytes);
  MUST(partner->Do([at, bytes] { return IsStamped(at, bytes, 1); }) == 1);
  return at;
}

// It answers when all is written.
void StartStamping(Partner* partner, char* at, size_t bytes, uint64_t seed) {
  partner->Start([at, bytes, seed] {
    Stamp(at, bytes, seed);
    return 0;
  });
}

void StampIn(Partner* partner, char* at, size_t bytes, uint64_t seed) {
  StartStamping(partner, at, bytes, seed);
  partner->Await();
}

// In the midst of its first writes.
HOSTMM_CASE(WriterIsKilled) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  for (uint64_t round = 0; round < 8; ++round) {
    const std::string was(live.at(), live.bytes());
    const Snapshot snapshot(live.at());
    const View view(snapshot);
    Partner writer;
    writer.Start([at = live.at(), bytes = live.bytes(), round] {
      for (;;) Stamp(at, bytes, 10 + round);
      return 0;
    });
    const char* last = live.at() + (round + 1) * live.bytes() / 8 - Unit();
    MUST(Eventually([&] { return IsStamped(last, Unit(), 10 + round); }));
    writer.Kill();
    const std::string condition = snapshot.Condition();
    if (!Want(condition == "ok", "it is whole after kill %d: %s", static_cast<int>(round),
              condition == "ok" ? "ok" : hostmm_error())) {
      return;
    }
    Want(memcmp(view.at(), was.data(), was.size()) == 0, "it is right");
    Want(IsStamped(last, Unit(), 10 + round), "the region has what it has written");
  }
}

// At any moment from its fork on. Before it has attached nobody can know that it will not write:
// then the snapshot may be lost, and says so.
HOSTMM_CASE(ForkedWriterIsKilledAtOnce) {
  constexpr int kRounds = 60;
  // The last of them: the child has written all.
  constexpr int kPatientRounds = 5;
  Live live;
  auto* written = SharedCounters<std::atomic<int>>();
  Stamp(live.at(), live.bytes(), 1);
  int whole = 0;
  int wrong = 0;
  for (int round = 0; round < kRounds; ++round) {
    const Snapshot snapshot(live.at());
    const pid_t child = fork();
    MUST(child >= 0);
    if (child == 0) {
      Stamp(live.at(), live.bytes(), 1);
      *written = round;
      _exit(0);
    }
    // Somewhere between the fork and some milliseconds later, whatever it is at then.
    std::this_thread::sleep_for(std::chrono::microseconds(round * 100));
    if (round >= kRounds - kPatientRounds) MUST(Eventually([&] { return *written == round; }));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const void* at = hostmm_snapshot_map(snapshot.handle(), nullptr, live.bytes(), PROT_READ, 0);
    const auto* view = static_cast<const char*>(at);
    if (at != MAP_FAILED) {
      uint64_t word = 0;
      for (size_t i = 0; i < live.bytes(); i += Unit()) {
        if (TryReadWord(view + i, &word) == "ok" && word != StampOf(view + i, 1)) ++wrong;
      }
      hostmm_munmap(const_cast<void*>(at), live.bytes());
    }
    const std::string condition = snapshot.Condition();
    if (condition == "ok") ++whole;
    if (condition != "ok" && condition != "EIO") ++wrong;
  }
  Want(wrong == 0, "%d of %d are whole, the others say that they are lost", whole, kRounds);
  Want(whole > 0, "not all are lost");
}

HOSTMM_CASE(ReaderIsKilled) {
  Live live;
  Partner reader;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const int handle = reader.Give(snapshot.handle());
  const char* theirs = MapIn(&reader, handle, live.bytes());
  reader.Start([theirs, bytes = live.bytes()] {
    for (;;) MUST(IsStamped(theirs, bytes, 1));
    return 0;
  });
  Stamp(live.at(), live.bytes() / 2, 2);
  reader.Kill();
  const Clock::time_point start = Clock::now();
  Stamp(live.at(), live.bytes(), 2);
  const double seconds = SecondsSince(start);
  Want(seconds < kAtOnce, "nobody waits for it: %.3f s", seconds);
  Want(IsStamped(view.at(), view.bytes(), 1), "the other view is right");
  Want(Eventually([&] { return snapshot.Info().views == 1; }), "its view has gone");
}

// A reader that is stopped cannot give its pages back: the snapshot is lost, for all, and the
// writer goes on.
HOSTMM_CASE(StoppedReader) {
  Live live;
  Partner reader;
  Partner writer;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View mine(snapshot);
  const char* theirs = ReadIn(&reader, snapshot, live.bytes());
  reader.Stop();
  StartStamping(&writer, live.at(), live.bytes(), 2);
  Want(writer.HasAnswered(20'000), "the writer goes on");
  const std::string condition = snapshot.Condition();
  reader.Continue();
  if (condition == "ok") {
    Want(IsStamped(mine.at(), mine.bytes(), 1), "if it is whole, it is right");
    Want(reader.Do([theirs, bytes = live.bytes()] { return IsStamped(theirs, bytes, 1); }) == 1,
         "also where it was stopped");
  } else {
    Want(condition == "EIO", "it is lost: %s: %s", condition.c_str(), hostmm_error());
    Want(Eventually([&] { return TryRead(mine.at()) == "SIGBUS/ADRERR"; }), "a view is SIGBUS");
    Want(Eventually([&] { return reader.Read(theirs) == "SIGBUS/ADRERR"; }),
         "also where it was stopped");
  }
  writer.Await();
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has what was written");
}

HOSTMM_CASE(StoppedWriterIsFrozenFromOutside) {
  Live live;
  Partner writer;
  Stamp(live.at(), live.bytes(), 1);
  StampIn(&writer, live.at(), live.bytes(), 1);  // it has all of it mapped
  writer.Stop();
  const Clock::time_point start = Clock::now();
  const Snapshot snapshot(live.at());
  const double seconds = SecondsSince(start);
  Want(seconds < kPrompt, "it is taken all the same, after %.1f s", seconds);
  const View view(snapshot);
  writer.Continue();
  StampIn(&writer, live.at(), live.bytes(), 2);
  Want(IsStamped(view.at(), view.bytes(), 1), "what it writes when it goes on is seen");
  Want(snapshot.Condition() == "ok", "it is whole");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region");
}

HOSTMM_CASE(StoppedWriterIsKilled) {
  Live live;
  Partner writer;
  StampIn(&writer, live.at(), live.bytes(), 1);
  writer.Stop();
  std::thread killer([&] { writer.Kill(); });
  const Snapshot snapshot(live.at());
  killer.join();
  const View view(snapshot);
  Stamp(live.at(), live.bytes(), 2);
  Want(IsStamped(view.at(), view.bytes(), 1) && snapshot.Condition() == "ok", "it is whole");
}

// The process that asks for snapshots is killed at any moment: of the call, or with a handle.
HOSTMM_CASE(AskerIsKilled) {
  constexpr int kRounds = 40;
  Live live;
  std::minstd_rand random(1);
  for (int round = 0; round < kRounds; ++round) {
    Stamp(live.at(), live.bytes() / 4, static_cast<uint64_t>(round));
    std::atomic<uint64_t>* taken = SharedCounters<std::atomic<uint64_t>>();
    auto asker = std::make_unique<Partner>();
    asker->Start([at = live.at(), taken] {
      for (;;) {
        const Snapshot snapshot(at);
        const View view(snapshot);
        ++*taken;
        (void)TryRead(view.at());
      }
      return 0;
    });
    const uint64_t until = 1 + random() % 20;
    MUST(Eventually([&] { return *taken >= until; }));
    asker.reset();
  }
  Want(Eventually([&] { return IsNative(live.at()); }), "nothing is left frozen");
  Want(IsStamped(live.at(), live.bytes() / 4, kRounds - 1), "the region");
}

// A frozen writer leaves hostmm and lives on: it may write unseen.
HOSTMM_CASE(FrozenWriterLeaves) {
  if (TheKind() == Kind::kPlain) return Skip("hostmm_close does not end what `hostmm run` began");
  Live live;
  Partner writer;
  Stamp(live.at(), live.bytes(), 1);
  StampIn(&writer, live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  MUST(IsStamped(view.at(), view.bytes() / 2, 1));
  writer.Start([at = live.at(), bytes = live.bytes()] {
    MUST(hostmm_close() == 0);
    Stamp(at, bytes, 2);
    return 0;
  });
  Want(Eventually([&] { return snapshot.Condition() == "EIO"; }), "the snapshot is lost");
  Want(std::string(hostmm_error()).find("left") != std::string::npos, "why: %s", hostmm_error());
  // It is told lost first: who asks after reading must not be told that all is well.
  Want(Eventually([&] {
         return TryRead(view.at()) == "SIGBUS/ADRERR" &&
                TryRead(view.at() + live.bytes() / 2 + kBlock) == "SIGBUS/ADRERR";
       }),
       "its view is SIGBUS");
  WantErrno(
      hostmm_snapshot_map(snapshot.handle(), nullptr, live.bytes(), PROT_READ, 0) == MAP_FAILED ? -1
                                                                                                : 0,
      EIO, "mapping it");
  Want(writer.HasAnswered(15'000), "the writer goes on");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has what it has written");
}

HOSTMM_CASE(CopiesOutOfMemory) {
  if (OnHugetlb()) return Skip("one block is more than the memory for copies");
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const Snapshot second(live.at());
  const View view(snapshot);
  // 1 MiB is 256 pages.
  Stamp(live.at(), 200 * kPage, 2);
  Want(IsStamped(view.at(), view.bytes(), 1) && snapshot.Condition() == "ok", "200 pages are kept");
  Stamp(live.at(), live.bytes(), 3);
  Want(IsStamped(live.at(), live.bytes(), 3), "the writer goes on");
  Want(snapshot.Condition() == "EIO" && second.Condition() == "EIO", "both are lost: %s",
       hostmm_error());
  Want(TryRead(view.at()) == "SIGBUS/ADRERR", "a view is SIGBUS");
  Want(Eventually([&] { return IsNative(live.at()); }), "the region is native again");
  const Snapshot third(live.at());
  const View good(third);
  Stamp(live.at(), 100 * kPage, 4);
  Want(IsStamped(good.at(), good.bytes(), 3) && third.Condition() == "ok", "the next one is good");
}

// ---- The pager is killed.

void KillPager() { MUST(kill(PagerPid(), SIGKILL) == 0); }

// A writer of a frozen page goes on when no view is left, and not before.
HOSTMM_CASE(PagerDiesWithAFrozenPage) {
  Live live;
  Partner reader;
  Partner writer;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const char* theirs = ReadIn(&reader, snapshot, live.bytes());
  MUST(IsStamped(view.at(), view.bytes() / 2, 1));
  Stamp(live.at(), live.bytes() / 4, 2);
  KillPager();
  // It waits, or finds that all views have gone.
  const Clock::time_point start = Clock::now();
  StartStamping(&writer, live.at(), live.bytes(), 3);
  bool right = true;
  while (!writer.HasAnswered(0)) {
    // What is read of a view at any moment is the snapshot, or SIGBUS.
    const char* at = view.at() + view.bytes() / 4;
    uint64_t word = 0;
    if (TryReadWord(at, &word) == "ok") right = right && word == StampOf(at, 1);
    MUST(SecondsSince(start) < 25);
  }
  writer.Await();
  Want(SecondsSince(start) < kPrompt, "the writer goes on after %.2f s", SecondsSince(start));
  Want(right, "until its end the view was the snapshot");
  Want(TryRead(view.at()) == "SIGBUS/ADRERR", "the view is SIGBUS now: %s",
       TryRead(view.at()).c_str());
  Want(reader.Read(theirs) == "SIGBUS/ADRERR", "the other's, too");
  const std::string condition = snapshot.Condition();
  Want(condition == "EIO" || condition == "ENOTCONN", "what is said of it: %s", condition.c_str());
  Want(IsStamped(live.at(), live.bytes(), 3), "the region has all that was written");
  Want(writer.Do([at = live.at(), bytes = live.bytes()] { return IsStamped(at, bytes, 3); }) == 1,
       "for others, too");
}

// Nobody reads a view wrongly at any moment after the pager's death: every word that is read is
// the snapshot's.
HOSTMM_CASE(PagerDiesWhileOthersWriteAndRead) {
  struct Counts {
    std::atomic<uint64_t> writes = 0;
    std::atomic<uint64_t> reads = 0;
    std::atomic<uint64_t> wrong = 0;
  };
  Live live;
  Counts* counts = SharedCounters<Counts>();
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  Partner reader;
  Partner writers[2];
  const char* theirs = MapIn(&reader, snapshot.handle(), live.bytes());
  // Until its view is SIGBUS.
  reader.Start([theirs, bytes = live.bytes(), counts] {
    for (;;) {
      for (size_t i = 0; i < bytes; i += Unit()) {
        uint64_t word = 0;
        if (TryReadWord(theirs + i, &word) != "ok") return 1;
        ++counts->reads;
        if (word != StampOf(theirs + i, 1)) ++counts->wrong;
      }
    }
    return 0;
  });
  for (Partner& writer : writers) {
    writer.Start([at = live.at(), bytes = live.bytes(), counts] {
      for (uint64_t seed = 2; seed < 200; ++seed) {
        Stamp(at, bytes, seed);
        ++counts->writes;
      }
      return 0;
    });
  }
  MUST(Eventually([&] { return counts->reads > 3000; }));
  KillPager();
  Want(reader.HasAnswered(15'000), "the view ends");
  Want(counts->wrong == 0, "%llu reads, %llu wrong",
       static_cast<unsigned long long>(counts->reads.load()),
       static_cast<unsigned long long>(counts->wrong.load()));
  for (Partner& writer : writers) Want(writer.HasAnswered(20'000), "a writer goes on");
  Want(IsStamped(live.at(), live.bytes(), 199), "the region has the last that was written");
}

// A viewer that is stopped cannot give up its view: writers wait for it, but not for ever.
HOSTMM_CASE(PagerDiesWithAStoppedViewer) {
  Live live;
  Partner reader;
  Partner writer;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const char* theirs = ReadIn(&reader, snapshot, live.bytes());
  reader.Stop();
  KillPager();
  const Clock::time_point start = Clock::now();
  StartStamping(&writer, live.at(), live.bytes(), 2);
  Want(!writer.HasAnswered(3000), "the writer waits");
  Want(writer.HasAnswered(20'000), "and goes on after %.1f s", SecondsSince(start));
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has what it has written");
  reader.Continue();
  // What it reads from now on is not the snapshot; that, too, it is told.
  Want(Eventually([&] { return reader.Read(theirs) == "SIGBUS/ADRERR"; }), "then its view ends");
}

// A stopped viewer that is killed is waited for no longer.
HOSTMM_CASE(PagerDiesWithAViewerThatIsKilled) {
  Live live;
  Partner reader;
  Partner writer;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  ReadIn(&reader, snapshot, live.bytes());
  reader.Stop();
  KillPager();
  StartStamping(&writer, live.at(), live.bytes(), 2);
  Want(!writer.HasAnswered(1000), "the writer waits");
  reader.Kill();
  const Clock::time_point start = Clock::now();
  Want(writer.HasAnswered(20'000) && SecondsSince(start) < kPrompt, "and goes on after %.1f s",
       SecondsSince(start));
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has what it has written");
}

// At any moment of a freeze: who asks is told, nobody waits for ever, nothing is lost.
HOSTMM_CASE(PagerDiesInAFreeze) {
  Live live;
  Partner writer;
  Partner asker;
  Stamp(live.at(), live.bytes(), 1);
  StampIn(&writer, live.at(), live.bytes(), 1);
  // The freeze cannot end while the writer is stopped, for half a second.
  writer.Stop();
  asker.Start([at = live.at()] { return hostmm_snapshot(at) == -1 ? errno : 0; });
  MUST(Eventually([&] { return IsTracked(live.at()); }));
  KillPager();
  Want(asker.HasAnswered(20'000), "the asker is told");
  const auto error = static_cast<int>(asker.Await());
  if (error == 0) return Again("the snapshot was taken just before");
  Want(error == ENOTCONN, "it is told %s", ErrnoName(error));
  writer.Continue();
  Partner third;
  for (Partner* partner : {&writer, &third}) {
    StartStamping(partner, live.at(), live.bytes(), 2);
    Want(partner->HasAnswered(15'000), "a writer goes on");
    partner->Await();
  }
  Want(IsStamped(live.at(), live.bytes(), 2), "the region has what was written");
}

HOSTMM_CASE(PagerDiesRefusals) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  KillPager();
  Want(Eventually([&] { return snapshot.Condition() != "ok"; }), "the snapshot is lost: %s",
       hostmm_error());
  void* at = nullptr;
  const bool refused = Eventually([&] {
    at = hostmm_snapshot_map(snapshot.handle(), nullptr, live.bytes(), PROT_READ, 0);
    return at == MAP_FAILED && errno == ENOTCONN;
  });
  Want(refused, "mapping it: %s: %s", ErrnoName(errno), hostmm_error());
  Want(Eventually([&] { return hostmm_snapshot(live.at()) == -1 && errno == ENOTCONN; }),
       "taking another: %s", ErrnoName(errno));
  Stamp(live.at(), live.bytes(), 2);
  Want(IsStamped(live.at(), live.bytes(), 2), "the region goes on");
}

}  // namespace
}  // namespace hostmm::test
