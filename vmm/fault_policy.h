// The two pure halves of answering a fault: Decide says what must be done, Commit how it went.
//
// Flow:    runtime reads an event -> Decide: looks up guest, region and entry, marks entries in
//          flight if something must be populated, returns a value -> runtime talks to the kernel
//          -> Commit. In flight is a state of the entry; Commit is the only way out of it. A
//          decision to populate or continue is committed exactly once, also when its guest or its
//          file is gone by then; for the others Commit does nothing.
// Units:   see fault.h.
// Threads: the pager's loop thread only (the one writer). No lock, no allocation on the heap.
// Errors:  none: a fault that cannot be served is a decision too (kDeny, or kPopulate with cause
//          kUntracked).

#ifndef HOSTMM_VMM_FAULT_POLICY_H_
#define HOSTMM_VMM_FAULT_POLICY_H_

#include <cstdint>

#include "vmm/density_policy.h"
#include "vmm/fault.h"
#include "vmm/host_tables.h"

namespace hostmm {

// What the pager knows about the weather that the tables cannot see.
struct Climate {
  MemoryClimate memory = MemoryClimate::kAmple;
  // Pages to answer around a fault in a tracked region. 1 = exact tracking.
  PageCount tracked_around{1};
};

// Decides what to do about `event`, and counts it by cause.
//
// A small populate never covers entries in flight, so that the ranges of outstanding decisions are
// disjoint; entries that are present inside the range stay as they are. A MISSING fault on an entry
// that is present is populated again (kRefill): to wake only would loop if a hole was punched
// behind us.
//
// While a file has snapshots, a page that one of them shares is mapped write-protected only
// (write_protect), and the first write to it is kPrivatize; one that none shares any more is
// mapped, or released, alone (kPrivatized). A MISSING fault is populated as ever: in a region that
// is also registered for minor faults the retry is one, and decides about the write.
FaultDecision Decide(HostTables& tables, const FaultEvent& event, const Climate& climate);

enum class Outcome : uint8_t {
  kDone,         // populated, with the grain given to Commit
  kOutOfFrames,  // tmpfs full, no hugetlb page, ENOMEM
  kGuestGone,    // ESRCH on the way; whether the frames were made is not known
  kFailed,       // anything else
};

// Ends `decision`. kDone makes its entries present, everything else puts them back to what they
// were.
//
// `actual` matters with kDone only. For a kHuge decision kSmall means: only the fallback range was
// made. For a kCollapse decision kSmall means: every page of the block was filled, but it could not
// be collapsed. A small decision is always kSmall. A decision about a file that is gone by now
// changes nothing but counters.
void Commit(HostTables& tables, const FaultDecision& decision, Outcome outcome, Grain actual);

}  // namespace hostmm

#endif  // HOSTMM_VMM_FAULT_POLICY_H_
