// tests/snapshots/tickets.h
//
// Writes whose order all processes agree on, so that what any snapshot shows can be judged.
//
// A chain:  ticket t is written by a process that holds the chain's lock and so has seen t - 1
//           written: first to page A(t), then to page B(t). A state that existed holds all tickets
//           up to some T, and perhaps the A half of T + 1.
// Layout:   of each chain `kPages` pages for A in the first half of the region and as many for B in
//           the second, spread over its blocks; ticket t goes to the (t % kPages)-th. A page holds
//           its latest ticket in its first word and, written before that, in its last.
// Between:  who holds all locks sees every ticket whole.
// Threads:  any number of processes write. The object is in memory that they share, outside of the
//           region; it stays where it was made. Who waits for a lock sleeps: processes that spin
//           with sched_yield can keep everybody else from a processor for seconds (Linux 6.18).
#ifndef HOSTMM_TESTS_SNAPSHOTS_TICKETS_H_
#define HOSTMM_TESTS_SNAPSHOTS_TICKETS_H_

#include <semaphore.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace hostmm::test {

inline constexpr size_t kChains = 4;
inline constexpr size_t kPages = 24;
inline constexpr size_t kTicketBytes = size_t{32} << 20;

class Tickets {
 public:
  using Counts = std::array<uint64_t, kChains>;

  Tickets();
  Tickets(const Tickets&) = delete;
  Tickets& operator=(const Tickets&) = delete;

  // Writes the chain's next ticket in the region at `at`.
  void Write(char* at, size_t chain);
  void LockAll();
  void UnlockAll();
  // How many tickets of each chain are whole at least.
  Counts Written() const;

  // What is wrong with what is at `at`; "" : it is a state that existed, with at least `least` and
  // at most `most` tickets (and, unless kWhole, one that is half written).
  enum class Halves { kWhole, kMayBe };
  const char* Judge(const char* at, const Counts& least, const Counts& most, Halves halves) const;

 private:
  struct alignas(64) Chain {
    sem_t lock;
    std::atomic<uint64_t> written = 0;
  };
  void Lock(size_t chain);
  void Unlock(size_t chain);

  std::array<Chain, kChains> chains_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SNAPSHOTS_TICKETS_H_
