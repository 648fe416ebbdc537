// CheckInvariants: walks a whole segment and says in words what is wrong with it.
//
// What:    the numbered invariants of vmm/README.md, as far as a segment shows them.
// Units:   messages carry the numbers that disagree.
// Threads: any reader. On a live segment use CheckLive, which retries while the writer moves; the
//          writer itself calls CheckInvariants between operations.
// Errors:  an empty list means sound. Damaged bytes give messages (at most kMaxProblems), never a
//          crash. Time is linear in what the segment holds.

#ifndef HOSTMM_VMM_INVARIANTS_H_
#define HOSTMM_VMM_INVARIANTS_H_

#include <string>
#include <vector>

#include "vmm/table_reader.h"

namespace hostmm {

// Arbitrary: enough to see a pattern, few enough to read.
inline constexpr size_t kMaxProblems = 50;

std::vector<std::string> CheckInvariants(const TableReader& reader);

// RETURNS: kBusy (and no problems) if the segment changed during every attempt.
ReadStatus CheckLive(const TableReader& reader, int attempts, std::vector<std::string>* problems);

}  // namespace hostmm

#endif  // HOSTMM_VMM_INVARIANTS_H_
