// `hostmm stats`, `hostmm dump` and `hostmm check`: look at the segment of a running pager.
//
// stats: what is managed, what it weighs, faults by cause. dump: guests and regions as in
// /proc/PID/maps. check: the invariants of vmm/README.md. The pager is asked once, for the segment;
// after that nobody waits for anybody.
#ifndef HOSTMM_RUNTIME_CLI_INSPECT_COMMAND_H_
#define HOSTMM_RUNTIME_CLI_INSPECT_COMMAND_H_

#include <string>

#include "runtime/cli/options.h"
#include "runtime/cli/snapshot.h"

namespace hostmm {

// RETURNS an ExitStatus; kInvariantsBroken only from check.
int RunInspect(const InspectOptions& options);

std::string StatsText(const Snapshot& snapshot, const std::string& pager);
std::string StatsJson(const Snapshot& snapshot, const std::string& pager);

// One line per guest, then one per region of it:
//   guest 3.1 pid 4242 uid 105 regions 1 page-tables 96 kB
//   7f2a40000000-7f2b40000000 rw-- 00000000 1.1:huge shared_buffers
// Fields as in /proc/PID/maps; the offset is hexadecimal bytes in the file. "s" is a region of
// MAP_SHARED_PT, "d" a dedicated one, "p" a private one, "c" a private copy-on-write one, "v" a
// view of a snapshot, "-" one that did not opt in. The number before the frames is the file's id in
// the host mm.
std::string DumpText(const Snapshot& snapshot);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_INSPECT_COMMAND_H_
