// Asks a running pager for its segment and maps it, for the tools that only look.
//
// Flow:    tool  connect, kInspect (+ reply socket)  ->  pager
//                kReply (+ segment, read-only)       <-
// Memory:  the mapping is read-only and alive: the pager writes while we read (vmm/segment.h).
// Errors:  kNoPager (absent, silent, or no pager at all), kNoPermission, kVersionMismatch,
// kBadSegment.
#ifndef HOSTMM_RUNTIME_CLI_SEGMENT_FETCH_H_
#define HOSTMM_RUNTIME_CLI_SEGMENT_FETCH_H_

#include <cstdint>
#include <string>

#include "runtime/cli/failure.h"
#include "runtime/mapping.h"
#include "runtime/unique_fd.h"
#include "vmm/table_reader.h"

namespace hostmm {

// What the pager says beside its segment: counted since it started.
struct OptInCounts {
  uint64_t operations = 0;  // done for all mappers of opt-in memory
  uint64_t woken = 0;       // members of those, one by one
  uint64_t timed_out = 0;
  uint64_t votes = 0;
};

struct FetchedSegment {
  UniqueFd fd;
  OptInCounts opt_in;
};

// The segment of the pager at `socket_path`.
OrFailure<FetchedSegment> FetchSegment(const std::string& socket_path);

// A mapped segment and the reader over it.
struct OpenSegment {
  Mapping mapping;
  TableReader reader;
  OptInCounts opt_in;
};

// FetchSegment, map, attach.
OrFailure<OpenSegment> OpenSegmentOf(const std::string& socket_path);

// Maps `segment` and attaches; `name` is for messages.
OrFailure<OpenSegment> MapSegment(const UniqueFd& segment, const std::string& name);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_SEGMENT_FETCH_H_
