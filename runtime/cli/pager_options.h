// What the command line tells the pager: the whole contract between `hostmm run` / `hostmm pager`
// and RunPager().
//
// Units:     bytes where a name says so; descriptors are plain ints, -1 = none.
// Owner:     RunPager() owns every descriptor in it from the call on. The socket is bound and
//            listening already, so that a path which cannot be bound is an error of the command
//            line, reported before anything starts.
// Processes: `run` calls RunPager() in a forked child of its own session, `hostmm pager` in the
//            process itself; both are single-threaded until then.
// Errors:    RunPager() returns an ExitStatus (exit_status.h); the reason goes to ready_fd as
//            "error=WHY\n".
#ifndef HOSTMM_RUNTIME_CLI_PAGER_OPTIONS_H_
#define HOSTMM_RUNTIME_CLI_PAGER_OPTIONS_H_

#include <cstdint>
#include <string>

namespace hostmm {

// The rungs of the ladder of frame stores, as a user asks for them.
enum class FramesChoice { kAuto, kHuge, kHugetlb, kBase };

struct PagerOptions {
  enum class Lifetime { kUntilLastGuest, kService };

  std::string socket_path;  // for messages, and to unlink at the end
  int listen_fd = -1;       // bound and listening SOCK_SEQPACKET unix socket, O_CLOEXEC
  FramesChoice frames = FramesChoice::kAuto;
  // Page tables per guest, base frames only; 0 = no budget, nothing is tracked.
  uint64_t pt_budget_bytes = 0;
  // Pre-images of the snapshots of one file; 0 = as much as memory has.
  uint64_t snapshot_memory_bytes = 0;
  Lifetime lifetime = Lifetime::kService;
  // kUntilLastGuest: read end of a pipe whose write end the whole process tree inherits. POLLHUP =
  // the tree is gone.
  int life_fd = -1;
  // One line "mode=MODE frames=FRAMES why=TEXT\n" once the pager serves, then closed; or
  // "error=TEXT\n", then closed.
  int ready_fd = -1;
  // kUntilLastGuest: the end lines, complete ones, written before the pager exits. -1 or a closed
  // pipe: nobody reads.
  int report_fd = -1;
  bool strict = false;  // refuse (kStrictRefused) instead of native mode or a weaker rung
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_PAGER_OPTIONS_H_
