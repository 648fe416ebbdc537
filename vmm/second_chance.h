// Which mapped block of a guest is zapped next: first in, first out, and a second chance for those
// that came back.
//
// Why:     nobody tells the pager which of the mapped pages are in use; it only sees who faults
//          back after a zap. A block that is back before as many others went as may be mapped at
//          all was zapped too early. It is protected; what is passed over once never is.
//
//              a new block                                faults back
//                   |          +--------------------------------------------------+
//                   v          v (no room among the protected)                    |
//          oldest [ probation ... ] -> zap -> [ ghosts: not mapped, the last `capacity` of them ]
//                              ^                                                  |
//                              +-- [ protected ] <--------------------------------+
//                        exchange
//
// Units:   blocks of 2 MiB of one guest's address space, named by their first address. Each costs
//          the guest one page of kernel page table.
// Owner:   one object for each guest. Threads: one at a time. Errors: none.
#ifndef HOSTMM_VMM_SECOND_CHANCE_H_
#define HOSTMM_VMM_SECOND_CHANCE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>

#include "vmm/units.h"

namespace hostmm {

class SecondChance {
 public:
  // A smaller capacity counts as this. One instruction can need four blocks of data (two operands
  // across a boundary) and two of code at once: with fewer it would never get on. The rest is
  // arbitrary.
  static constexpr uint64_t kLeastBlocks = 8;

  // kLeaving: its zap is on the way. Whether it is still mapped nobody knows.
  enum class State : uint8_t { kAbsent, kMapped, kLeaving };

  // At most `capacity` blocks are to be mapped or leaving.
  explicit SecondChance(uint64_t capacity);
  SecondChance(const SecondChance&) = delete;
  SecondChance& operator=(const SecondChance&) = delete;

  State StateOf(GuestAddr block) const;
  // Mapped and leaving.
  uint64_t size() const;
  bool HasRoom() const { return size() < capacity_; }

  // The block is mapped from now on. REQUIRES: it is absent. Without room it is mapped all the
  // same, for callers that cannot wait.
  void Map(GuestAddr block);

  // The block to be zapped now, which is leaving from here on; nothing while enough are free.
  std::optional<GuestAddr> Evict();

  // kRefused: nobody can zap it, so it is none of ours any more. kUndone: it may be mapped after
  // all; it is the next to go.
  enum class Zap : uint8_t { kDone, kRefused, kUndone };
  // REQUIRES: the block is leaving.
  void EndEviction(GuestAddr block, Zap how);

 private:
  enum class Place : uint8_t { kProbation, kProtected, kLeaving, kGhost };
  using Queue = std::list<uint64_t>;  // oldest first
  struct Entry {
    Place place;
    Queue::iterator at;
  };
  enum class End : uint8_t { kOldest, kNewest };

  Queue& QueueOf(Place place) { return queues_[static_cast<size_t>(place)]; }
  const Queue& QueueOf(Place place) const { return queues_[static_cast<size_t>(place)]; }
  void MoveTo(Entry* entry, Place place, End end);
  Place PlaceOfReturned();
  void ForgetOldestGhost();

  const uint64_t capacity_;
  // So many are kept free, so that a fault need not wait for a zap.
  const uint64_t reserve_;
  const uint64_t max_protected_;
  uint64_t returns_ = 0;  // that found no room among the protected
  std::array<Queue, 4> queues_;
  std::unordered_map<uint64_t, Entry> entries_;  // by address
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_SECOND_CHANCE_H_
