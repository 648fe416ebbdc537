// The one kind of word that the segment is made of, and the numbers that stand for pointers in it.
//
// Memory:  every mutable word of the segment is a SharedWord: 64 bits, naturally aligned and
//          lock-free. Nothing in the segment is an address of any process (invariant I1): records
//          name each other by index, tables by HostOffset.
// Threads: one writer (the pager's loop thread); readers in any thread or process.
// Errors:  none.
//
// SYNCHRONIZATION
//   1. All stores are release, all loads acquire. On x86-64 both are plain moves. A reader
//      that sees a value therefore sees everything that was written before it; no fence is needed
//      anywhere, which also keeps the code visible to ThreadSanitizer.
//   2. There is one writer, so a change of a word is a load and a store, never a read-modify-write.
//   3. What makes several words consistent is described in segment.h.

#ifndef HOSTMM_VMM_SHM_REF_H_
#define HOSTMM_VMM_SHM_REF_H_

#include <atomic>
#include <cstdint>

namespace hostmm {

class SharedWord {
 public:
  uint64_t Load() const { return value_.load(std::memory_order_acquire); }
  void Store(uint64_t value) { value_.store(value, std::memory_order_release); }
  // REQUIRES: called by the one writer.
  void Add(uint64_t delta) { Store(Load() + delta); }
  void Subtract(uint64_t delta) { Store(Load() - delta); }

  uint32_t LoadLow() const { return static_cast<uint32_t>(Load()); }
  uint32_t LoadHigh() const { return static_cast<uint32_t>(Load() >> 32); }
  void StoreHalves(uint32_t low, uint32_t high) { Store(low | uint64_t{high} << 32); }
  void StoreLow(uint32_t low) { StoreHalves(low, LoadHigh()); }
  void StoreHigh(uint32_t high) { StoreHalves(LoadLow(), high); }

 private:
  std::atomic<uint64_t> value_;
};

static_assert(sizeof(SharedWord) == sizeof(uint64_t) && alignof(SharedWord) == alignof(uint64_t));
static_assert(std::atomic<uint64_t>::is_always_lock_free);

// Number of a record in its array. Records are numbered from 1.
using RecordIndex = uint32_t;
inline constexpr RecordIndex kNullRecord = 0;

}  // namespace hostmm

#endif  // HOSTMM_VMM_SHM_REF_H_
