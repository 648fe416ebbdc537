// The state of the client, shared by attach.cc (connect, fork, agent), client.cc (mappings) and
// sysv.cc. Not for others.
//
// Owner:    one per process, in the library's zeroed data; a forked child starts with its parent's
//           copy.
// Threads:  everything is guarded by `lock`, but `phase` and the region table's bounds, which are
//           read without it.
// Errors:   what fails says so by Io, or ends the attachment.
#ifndef HOSTMM_RUNTIME_GUEST_CLIENT_STATE_H_
#define HOSTMM_RUNTIME_GUEST_CLIENT_STATE_H_

#include <atomic>
#include <cstdint>

#include "runtime/guest/channel.h"
#include "runtime/guest/guest_lock.h"
#include "runtime/guest/region_table.h"
#include "runtime/protocol.h"

namespace hostmm::guest {

enum class Phase : uint32_t { kCold, kAttached, kOff };

enum class UffdSource : uint8_t { kNone, kDevice, kSyscall };

struct ClientState {
  GuestLock lock;
  std::atomic<Phase> phase;
  UffdSource uffd_source;
  bool quiet;
  bool said_why;         // one line per process, not one per mapping
  int pid;               // of the process that is attached: a raw clone(2) has its parent's state
  bool replacing_agent;  // a thread is about to replace the agent
  bool replace_again;    // and another has changed its user since
  GuardedFd standard_error;
  GuardedFd channel;
  GuardedFd uffd_device;  // /dev/userfaultfd as the pager opened it (UffdSource::kDevice)
  uint64_t uffd_features;
  uint64_t register_mode;  // UFFDIO_REGISTER_MODE_*
  int child_channel;       // between fork's prepare and its end: the child's end, else -1
  RegionTable regions;
  char socket_path[108];
};

extern ClientState g_client;

inline Phase CurrentPhase() { return g_client.phase.load(std::memory_order_acquire); }

// REQUIRES: the lock. Attaches this process if it is cold. Whether it is attached now.
bool EnsureAttachedLocked();

// REQUIRES: the lock. The pager is gone or of no use: close everything, for good. Mappings stay as
// they are; the kernel serves them. Says `why` once.
void GoOffLocked(const char* why);

// REQUIRES: the lock. Tells the pager; a failure is the end of the attachment.
void NoteLocked(const protocol::Message& note);

// REQUIRES: the lock. Asks the pager. On kOk the answer's status is kOk too. A refusal says why
// (once) and keeps the attachment; a silent pager ends it.
Io AskLocked(const protocol::Message& question, const int* fds, int fd_count,
             protocol::Message* answer, int* received);

// One line "hostmm: PROGRAM: WHAT: WHY", once per process, unless quiet: on descriptor 2, and only
// while that is the file that the program was started with.
void SayOnce(const char* what, const char* why);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_CLIENT_STATE_H_
