// A model of how the resolver parks, commits and wakes, explored in every order of events.
//
// The model: threads of two guests touch two pages of one block. A touch of a hole queues an event;
// the loop reads events in any order and decides; workers fill in any order; the loop finishes what
// is filled. At any moment, once each, a page may be punched out of the file and of the table, a
// fill may fail, and a guest may die.
//
// What it leaves out: the tables (an entry is empty, in flight or present; vmm/ has its own tests
// of Decide and Commit), the grain of frames (a populate takes one page, or every hole of the
// block), minor faults, which wait for nothing but the page-table budget (it has its own test), and
// the memory order between loop and workers, which is WorkerPool's lock. As in the kernel, a wake
// lets all threads of the guest that wait in the range touch again, also those whose event has not
// been read, and takes that event back.
//
// What it shows: from every state the system comes to an end in which each thread has got its page
// or its guest is dead; no populate is left, no entry in flight and nobody parked; and each
// populate finds its entries in flight when it commits.
#include <gtest/gtest.h>

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace hostmm {
namespace {

constexpr int kThreads = 4;
constexpr int kGuests = 2;
constexpr int kPages = 2;
constexpr int kMaxJobs = kThreads;

constexpr int GuestOf(int thread) { return thread % kGuests; }
constexpr int PageOf(int thread) { return thread / kGuests % kPages; }

enum class Thread : uint8_t { kTouches, kQueued, kWaits, kDone, kDead };
enum class Entry : uint8_t { kEmpty, kInFlight, kPresent };
enum class Fill : uint8_t { kNone, kRuns, kDone, kFailed };

struct Job {
  Fill fill = Fill::kNone;
  uint8_t pages = 0;  // bit mask
  uint8_t owner = 0;  // thread
  friend auto operator<=>(const Job&, const Job&) = default;
};

struct State {
  std::array<Thread, kThreads> threads = {};
  std::array<Entry, kPages> entries = {};
  std::array<Job, kMaxJobs> jobs = {};
  uint8_t in_file = 0;  // bit mask of pages
  uint8_t parked = 0;   // bit mask of threads, under the one block
  uint8_t denied = 0;   // bit mask of guest * kPages + page: unregistered there
  uint8_t dead = 0;     // bit mask of guests
  bool punched = false;
  bool failed = false;
  friend auto operator<=>(const State&, const State&) = default;
};

// Deliberate mistakes, to see that the model would find them.
enum class Flaw { kNone, kForgetsTheParked, kDeniesWithoutAWake, kPopulatesWhatIsInFlight };

class Model {
 public:
  explicit Model(Flaw flaw) : flaw_(flaw) {}

  // Explores everything. RETURNS what is wrong, or nothing.
  std::string Explore() {
    Visit(State{});
    return problem_;
  }
  size_t states() const { return seen_.size(); }

 private:
  enum class Mark { kOpen, kClosed };

  void Visit(const State& state) {
    if (!problem_.empty()) return;
    const auto [it, is_new] = seen_.try_emplace(state, Mark::kOpen);
    if (!is_new) {
      if (it->second == Mark::kOpen) problem_ = "a thread may fault for ever";
      return;
    }
    const std::vector<State> next = Successors(state);
    if (next.empty()) CheckEnd(state);
    for (const State& successor : next) Visit(successor);
    it->second = Mark::kClosed;  // std::map: `it` stays valid
  }

  void CheckEnd(const State& state) {
    for (const Thread thread : state.threads) {
      if (thread != Thread::kDone && thread != Thread::kDead) problem_ = "a thread waits for ever";
    }
    for (const Entry entry : state.entries) {
      if (entry == Entry::kInFlight) problem_ = "an entry stays in flight";
    }
    for (const Job& job : state.jobs) {
      if (job.fill != Fill::kNone) problem_ = "a populate is not finished";
    }
    if (state.parked != 0) problem_ = "somebody stays parked";
  }

  std::vector<State> Successors(const State& state) {
    std::vector<State> next;
    for (int thread = 0; thread < kThreads; ++thread) {
      if (state.threads[thread] == Thread::kTouches) next.push_back(Touch(state, thread));
      if (state.threads[thread] == Thread::kQueued) Read(state, thread, &next);
    }
    for (int job = 0; job < kMaxJobs; ++job) {
      if (state.jobs[job].fill == Fill::kRuns) Work(state, job, &next);
      const bool filled =
          state.jobs[job].fill == Fill::kDone || state.jobs[job].fill == Fill::kFailed;
      if (filled) next.push_back(Finish(state, job));
    }
    Disturb(state, &next);
    return next;
  }

  // The guest's side of a fault.
  static State Touch(State state, int thread) {
    const uint8_t page = 1 << PageOf(thread);
    const bool native = (state.denied >> (GuestOf(thread) * kPages + PageOf(thread)) & 1) != 0;
    if (native) state.in_file |= page;
    const bool there = (state.in_file & page) != 0;
    state.threads[thread] = there ? Thread::kDone : Thread::kQueued;
    return state;
  }

  // The loop reads the thread's event: Decide and Resolve.
  void Read(State state, int thread, std::vector<State>* next) {
    state.threads[thread] = Thread::kWaits;
    const int page = PageOf(thread);
    if (state.entries[page] == Entry::kInFlight && flaw_ != Flaw::kPopulatesWhatIsInFlight) {
      state.parked |= 1 << thread;
      next->push_back(state);
      return;
    }
    uint8_t holes = 0;
    for (int i = 0; i < kPages; ++i) holes |= state.entries[i] == Entry::kEmpty ? 1 << i : 0;
    const uint8_t one = 1 << page;
    next->push_back(Submit(state, thread, one));
    if ((holes | one) != one) next->push_back(Submit(state, thread, holes | one));
  }

  static State Submit(State state, int thread, uint8_t pages) {
    for (int i = 0; i < kPages; ++i) {
      if ((pages >> i & 1) != 0) state.entries[i] = Entry::kInFlight;
    }
    for (Job& job : state.jobs) {
      if (job.fill != Fill::kNone) continue;
      job = {Fill::kRuns, pages, static_cast<uint8_t>(thread)};
      break;
    }
    return state;
  }

  static void Work(const State& state, int job, std::vector<State>* next) {
    State filled = state;
    filled.jobs[job].fill = Fill::kDone;
    filled.in_file |= state.jobs[job].pages;
    next->push_back(filled);
    if (state.failed) return;
    State failed = state;
    failed.jobs[job].fill = Fill::kFailed;
    failed.failed = true;
    next->push_back(failed);
  }

  // Commit, then everybody who is parked under the block and the owner.
  State Finish(State state, int number) {
    const Job job = std::exchange(state.jobs[number], Job{});
    for (int i = 0; i < kPages; ++i) {
      if ((job.pages >> i & 1) == 0) continue;
      if (state.entries[i] != Entry::kInFlight) problem_ = "a populate commits what is not its own";
      state.entries[i] = job.fill == Fill::kDone ? Entry::kPresent : Entry::kEmpty;
    }
    uint8_t waiters = std::exchange(state.parked, 0);
    if (flaw_ == Flaw::kForgetsTheParked) waiters = 0;
    waiters |= 1 << job.owner;
    for (int thread = 0; thread < kThreads; ++thread) {
      if ((waiters >> thread & 1) == 0) continue;
      // The owner's range is what its populate covered; who has joined waits for one page.
      const uint8_t range = thread == job.owner ? job.pages : 1 << PageOf(thread);
      if (job.fill == Fill::kFailed) Deny(&state, thread, range);
      const bool wakes = job.fill == Fill::kDone || flaw_ != Flaw::kDeniesWithoutAWake;
      if (wakes) Wake(&state, GuestOf(thread), range);
    }
    return state;
  }

  static void Deny(State* state, int thread, uint8_t pages) {
    if ((state->dead >> GuestOf(thread) & 1) != 0) return;
    state->denied |= pages << (GuestOf(thread) * kPages);
  }

  static void Wake(State* state, int guest, uint8_t pages) {
    for (int thread = 0; thread < kThreads; ++thread) {
      Thread& one = state->threads[thread];
      const bool sleeps = one == Thread::kQueued || one == Thread::kWaits;
      if (GuestOf(thread) != guest || (pages >> PageOf(thread) & 1) == 0 || !sleeps) continue;
      one = Thread::kTouches;
    }
  }

  // What may happen once at any time. A model that could go on with these for ever would never end;
  // and they are no way out for who waits: a state that only they can leave is looked at as an end.
  void Disturb(const State& state, std::vector<State>* next) {
    if (next->empty()) return;
    for (int page = 0; page < kPages && !state.punched; ++page) {
      if ((state.in_file >> page & 1) == 0) continue;
      State punched = state;
      punched.punched = true;
      punched.in_file &= ~(1 << page);
      // An entry in flight stays in flight.
      if (punched.entries[page] == Entry::kPresent) punched.entries[page] = Entry::kEmpty;
      next->push_back(punched);
    }
    for (int guest = 0; guest < kGuests && state.dead == 0; ++guest) {
      State died = state;
      died.dead = 1 << guest;
      for (int thread = guest; thread < kThreads; thread += kGuests) {
        died.threads[thread] = Thread::kDead;
      }
      next->push_back(died);
    }
  }

  const Flaw flaw_;
  std::map<State, Mark> seen_;
  std::string problem_;
};

TEST(ResolverModelTest, NoFaultIsLostAndEveryPopulateCommitsOnce) {
  Model model(Flaw::kNone);
  EXPECT_EQ(model.Explore(), "");
  // That the model did not stop early.
  EXPECT_GT(model.states(), 10'000u);
}

TEST(ResolverModelTest, TheModelFindsMistakes) {
  EXPECT_EQ(Model(Flaw::kForgetsTheParked).Explore(), "a thread waits for ever");
  EXPECT_EQ(Model(Flaw::kDeniesWithoutAWake).Explore(), "a thread waits for ever");
  EXPECT_EQ(Model(Flaw::kPopulatesWhatIsInFlight).Explore(),
            "a populate commits what is not its own");
}

}  // namespace
}  // namespace hostmm
