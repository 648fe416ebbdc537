#include "vmm/fault_stats.h"

namespace hostmm {

std::string_view Name(FaultCause cause) {
  switch (cause) {
    case FaultCause::kFirstTouch:
      return "first_touch";
    case FaultCause::kFillAround:
      return "fill_around";
    case FaultCause::kDense:
      return "dense";
    case FaultCause::kFilled:
      return "filled";
    case FaultCause::kHugeHint:
      return "huge_hint";
    case FaultCause::kHugeNeighbour:
      return "huge_neighbour";
    case FaultCause::kHugetlbFrames:
      return "hugetlb_frames";
    case FaultCause::kRefill:
      return "refill";
    case FaultCause::kStaleAccess:
      return "stale_access";
    case FaultCause::kUntracked:
      return "untracked";
    case FaultCause::kPresent:
      return "present";
    case FaultCause::kUnknownPresent:
      return "unknown_present";
    case FaultCause::kInFlight:
      return "in_flight";
    case FaultCause::kWriteProtected:
      return "write_protected";
    case FaultCause::kNoSuchGuest:
      return "no_such_guest";
    case FaultCause::kNoRegion:
      return "no_region";
    case FaultCause::kBeyondFile:
      return "beyond_file";
    case FaultCause::kForbidden:
      return "forbidden";
    case FaultCause::kAdoptedFile:
      return "adopted_file";
    case FaultCause::kFirstWrite:
      return "first_write";
    case FaultCause::kPrivatized:
      return "privatized";
    case FaultCause::kViewTouch:
      return "view_touch";
    case FaultCause::kLostSnapshot:
      return "lost_snapshot";
    case FaultCause::kCount:
      break;
  }
  return "?";
}

std::string_view Name(FaultCounter counter) {
  switch (counter) {
    case FaultCounter::kEvents:
      return "events";
    case FaultCounter::kDone:
      return "done";
    case FaultCounter::kOutOfFrames:
      return "out_of_frames";
    case FaultCounter::kGuestGone:
      return "guest_gone";
    case FaultCounter::kFailed:
      return "failed";
    case FaultCounter::kStaleCommits:
      return "stale_commits";
    case FaultCounter::kHugeMade:
      return "huge_made";
    case FaultCounter::kHugeFallbacks:
      return "huge_fallbacks";
    case FaultCounter::kCollapses:
      return "collapses";
    case FaultCounter::kCollapseFailures:
      return "collapse_failures";
    case FaultCounter::kSmallMade:
      return "small_made";
    case FaultCounter::kSnapshotsTaken:
      return "snapshots_taken";
    case FaultCounter::kTablesCopiedAtTake:
      return "tables_copied_at_take";
    case FaultCounter::kTablesCopiedLater:
      return "tables_copied_later";
    case FaultCounter::kPagesCopied:
      return "pages_copied";
    case FaultCounter::kSnapshotsLost:
      return "snapshots_lost";
    case FaultCounter::kCount:
      break;
  }
  return "?";
}

uint64_t FaultStats::Denied() const {
  uint64_t sum = 0;
  for (FaultCause cause :
       {FaultCause::kNoSuchGuest, FaultCause::kNoRegion, FaultCause::kBeyondFile,
        FaultCause::kForbidden, FaultCause::kAdoptedFile, FaultCause::kLostSnapshot}) {
    sum += Of(cause);
  }
  return sum;
}

int64_t FaultStats::Unaccounted() const {
  uint64_t sum = 0;
  for (size_t i = 0; i < kFaultCauses; ++i) sum += values[i];
  return static_cast<int64_t>(Of(FaultCounter::kEvents) - sum);
}

}  // namespace hostmm
