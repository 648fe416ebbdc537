#include "tests/snapshots/tickets.h"

#include <algorithm>
#include <cerrno>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

constexpr size_t kHalfBytes = kTicketBytes / 2;
constexpr size_t kLastWord = kPage - sizeof(uint64_t);

enum class Half { kA, kB };

// Odd multiples of pages that are not whole blocks: chains share blocks, tickets that follow each
// other do not.
size_t OffsetOf(size_t chain, size_t slot, Half half) {
  const size_t blocks = kHalfBytes / kBlock;
  const size_t block = (slot * 3 + chain) % blocks;
  const size_t page = slot * kChains + chain;
  return (half == Half::kB ? kHalfBytes : 0) + block * kBlock + page * kPage;
}

volatile uint64_t* Word(char* at, size_t offset) {
  return reinterpret_cast<volatile uint64_t*>(at + offset);
}

uint64_t Read(const char* at, size_t offset) {
  return *reinterpret_cast<const volatile uint64_t*>(at + offset);
}

void Put(char* at, size_t offset, uint64_t ticket) {
  *Word(at, offset + kLastWord) = ticket;
  // What x86 keeps in order of itself: the compiler must, too.
  std::atomic_thread_fence(std::memory_order_release);
  *Word(at, offset) = ticket;
}

// The latest ticket of the slot in a prefix of `latest` tickets.
uint64_t Expected(uint64_t latest, size_t slot) {
  const uint64_t back = (latest % kPages + kPages - slot) % kPages;
  return latest >= back ? latest - back : 0;
}

struct HalfSeen {
  uint64_t latest = 0;
  // A page that is not what it is in that prefix.
  bool gap = false;
  // A last word of another ticket than the first: that of the next one, or of any other.
  bool next = false;
  bool torn = false;
};

HalfSeen Look(const char* at, size_t chain, Half half) {
  std::array<uint64_t, kPages> first;
  std::array<uint64_t, kPages> last;
  HalfSeen seen;
  for (size_t slot = 0; slot < kPages; ++slot) {
    const size_t offset = OffsetOf(chain, slot, half);
    first[slot] = Read(at, offset);
    last[slot] = Read(at, offset + kLastWord);
    seen.latest = std::max(seen.latest, first[slot]);
  }
  for (size_t slot = 0; slot < kPages; ++slot) {
    seen.gap = seen.gap || first[slot] != Expected(seen.latest, slot);
    if (first[slot] == last[slot]) continue;
    const bool is_next = last[slot] == seen.latest + 1 && slot == last[slot] % kPages;
    (is_next ? seen.next : seen.torn) = true;
  }
  return seen;
}

}  // namespace

Tickets::Tickets() {
  constexpr int kOfManyProcesses = 1;
  for (Chain& chain : chains_) MUST(sem_init(&chain.lock, kOfManyProcesses, 1) == 0);
}

void Tickets::Lock(size_t chain) {
  while (sem_wait(&chains_[chain].lock) != 0) MUST(errno == EINTR);
}

void Tickets::Unlock(size_t chain) { MUST(sem_post(&chains_[chain].lock) == 0); }

void Tickets::Write(char* at, size_t chain) {
  Lock(chain);
  Chain& mine = chains_[chain];
  const uint64_t ticket = mine.written.load(std::memory_order_relaxed) + 1;
  Put(at, OffsetOf(chain, ticket % kPages, Half::kA), ticket);
  std::atomic_thread_fence(std::memory_order_release);
  Put(at, OffsetOf(chain, ticket % kPages, Half::kB), ticket);
  mine.written.store(ticket, std::memory_order_release);
  Unlock(chain);
}

void Tickets::LockAll() {
  for (size_t chain = 0; chain < kChains; ++chain) Lock(chain);
}

void Tickets::UnlockAll() {
  for (size_t chain = 0; chain < kChains; ++chain) Unlock(chain);
}

Tickets::Counts Tickets::Written() const {
  Counts counts;
  for (size_t i = 0; i < kChains; ++i) counts[i] = chains_[i].written.load();
  return counts;
}

const char* Tickets::Judge(const char* at, const Counts& least, const Counts& most,
                           Halves halves) const {
  for (size_t chain = 0; chain < kChains; ++chain) {
    const HalfSeen a = Look(at, chain, Half::kA);
    const HalfSeen b = Look(at, chain, Half::kB);
    if (a.gap || b.gap) return "a ticket is missing that others followed";
    if (a.torn || b.torn) return "a page is of two tickets";
    if (a.latest < b.latest) return "the second page of a ticket without the first";
    if (a.latest > b.latest + 1) return "two tickets are half written";
    // At most one of the three places is where the chain just was.
    const bool between = a.latest == b.latest && !a.next && !b.next;
    if (a.next && (b.next || a.latest != b.latest)) return "two pages are being written";
    if (b.next && a.latest != b.latest + 1) return "the second page is ahead of the first";
    if (!between && halves == Halves::kWhole) return "a ticket is half written";
    if (b.latest < least[chain]) return "it is older than the call";
    if (b.latest > most[chain]) return "it is newer than the return of the call";
  }
  return "";
}

}  // namespace hostmm::test
