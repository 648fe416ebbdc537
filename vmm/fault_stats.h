// Counters of faults: one per cause, whose sum is the number of events read, and one per outcome.
//
// Units:   events and entries, counted since the segment was formatted.
// Threads: counters live in the segment; the pager's loop thread adds, anybody reads. FaultStats is
//          a copied value.
// Errors:  none; Unaccounted() != 0 breaks invariant I7.

#ifndef HOSTMM_VMM_FAULT_STATS_H_
#define HOSTMM_VMM_FAULT_STATS_H_

#include <array>
#include <cstdint>
#include <string_view>

#include "vmm/fault.h"

namespace hostmm {

// What happened besides the cause of an event.
enum class FaultCounter : uint8_t {
  kEvents,         // events given to Decide
  kDone,           // commits: populated or continued
  kOutOfFrames,    // commits: no frame to be had
  kGuestGone,      // commits: the guest died on the way
  kFailed,         // commits: anything else
  kStaleCommits,   // commits whose file was gone; also counted by outcome
  kHugeMade,       // blocks that became huge at once
  kHugeFallbacks,  // huge decisions that ended with small pages
  kCollapses,      // blocks that became huge after they were filled
  kCollapseFailures,
  kSmallMade,  // small entries that became present
  // Snapshots (cow_tables.h).
  kSnapshotsTaken,
  kTablesCopiedAtTake,  // the top of each, and all tables where they are fewer than the threshold
  kTablesCopiedLater,   // by the first write to what a table covers
  kPagesCopied,         // 4 KiB pages, each once for all snapshots that need it
  kSnapshotsLost,
  kCount,
};

inline constexpr size_t kFaultCauses = static_cast<size_t>(FaultCause::kCount);
inline constexpr size_t kFaultCounters = static_cast<size_t>(FaultCounter::kCount);
inline constexpr size_t kStatCount = kFaultCauses + kFaultCounters;

constexpr size_t StatIndex(FaultCause cause) { return static_cast<size_t>(cause); }
constexpr size_t StatIndex(FaultCounter counter) {
  return kFaultCauses + static_cast<size_t>(counter);
}

// Names for people and for JSON keys: snake_case, never reused for another meaning.
std::string_view Name(FaultCause cause);
std::string_view Name(FaultCounter counter);

struct FaultStats {
  std::array<uint64_t, kStatCount> values{};
  uint64_t in_flight_entries = 0;
  uint64_t outstanding_faults = 0;

  uint64_t Of(FaultCause cause) const { return values[StatIndex(cause)]; }
  uint64_t Of(FaultCounter counter) const { return values[StatIndex(counter)]; }
  // Sum over the causes whose decision is kDeny.
  uint64_t Denied() const;
  // Events minus the sum over all causes; 0 unless an event was lost or recorded twice.
  int64_t Unaccounted() const;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_FAULT_STATS_H_
