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

// A thread that waits without the lock for an answer; on that thread's stack.
struct Waiter {
  int reply_fd;
  Waiter* next;
};

struct ClientState {
  GuestLock lock;
  GuestLock open_lock;  // before `lock`: orders hostmm_open and hostmm_close
  std::atomic<Phase> phase;
  UffdSource uffd_source;
  bool quiet;
  bool said_why;         // one line per process, not one per mapping
  bool transparent;      // under `hostmm run`: memory that did not opt in is managed, too
  uint32_t opens;        // calls of hostmm_open without a hostmm_close; guarded by open_lock
  int attach_error;      // errno: why the last attempt to attach failed
  uint32_t attachments;  // so far: an answer that does not come is the end of its own only
  Waiter* waiters;       // whose sockets a forked child closes
  int pid;               // of the process that is attached: a raw clone(2) has its parent's state
  bool replacing_agent;  // a thread is about to replace the agent
  bool replace_again;    // and another has changed its user since
  GuardedFd standard_error;
  GuardedFd channel;
  GuardedFd uffd_device;  // /dev/userfaultfd as the pager opened it (UffdSource::kDevice)
  uint64_t uffd_features;
  uint64_t register_mode;  // UFFDIO_REGISTER_MODE_*
  int child_channel;       // between fork's prepare and its end: the child's end, else -1
  uint64_t cow_min_bytes;  // MAP_PRIVATE_COW memory that is shorter is plain
  RegionTable regions;
  char socket_path[108];
};

extern ClientState g_client;

inline Phase CurrentPhase() { return g_client.phase.load(std::memory_order_acquire); }

// REQUIRES: the lock. Attaches this process if it is cold. Whether it is attached now.
bool EnsureAttachedLocked();

// REQUIRES: the lock. The pager is gone or of no use: close everything. Mappings stay as they are,
// plain ones from now on; the kernel serves them. Says `why` once.
void GoOffLocked(const char* why);

// REQUIRES: the lock. Tells the pager; a failure is the end of the attachment.
void NoteLocked(const protocol::Message& note);

// REQUIRES: the lock. Asks the pager. On kOk the answer's status is kOk too. A refusal says why
// (once) and keeps the attachment; a silent pager ends it.
Io AskLocked(const protocol::Message& question, const int* fds, int fd_count,
             protocol::Message* answer, int* received);

// As AskLocked, without a line: the caller is told by errno.
Io AskQuietlyLocked(const protocol::Message& question, const int* fds, int fd_count,
                    protocol::Message* answer, int* received);

// Detaches this process; its agent is gone when this returns. Without the lock.
void Leave();

// The errno that stands for a refusal.
int ErrnoOf(const protocol::Message& answer);

protocol::Message RangeMessage(protocol::Kind kind, uint64_t va, uint64_t bytes);

// REQUIRES: the lock. What a system call that unmaps [addr, end) must refuse of copy-on-write
// memory: a hole makes two parts of it, and one that nobody knows of would be shared with a child.
// RETURNS an errno or 0.
int WhyNotCutLocked(uint64_t addr, uint64_t end);

// REQUIRES: the lock. Forgets [va, va + bytes) here and tells the pager, because the kernel has
// just unmapped it.
void ForgetLocked(uint64_t va, uint64_t bytes);

// What the pager has found an adopted file to be.
RegionKind KindOf(const protocol::Message& adopted);
// Whether the file is frozen, in the answer to kMap, kAdopt or kMove; private mappings never are.
inline bool IsFrozen(const protocol::Message& mapped) { return mapped.value[1] == 1; }

// Drops the page-table entries of what is mapped there; data stays. RETURNS 0 or -errno.
long Zap(uint64_t va, uint64_t bytes);

// REQUIRES: the lock. mprotect of memory that is not opt-in; the pager is told.
long ProtectPlainLocked(uint64_t addr, uint64_t bytes, int prot);

// Where a new mapping goes. Nothing is there (a reservation), or what is there is to be replaced.
struct Place {
  uint64_t va = 0;  // 0: none; the plain call must decide
  bool reserved = false;
};
// A place where va = offset (mod 2 MiB), and (mod 1 GiB) from 1 GiB on, or what addr and flags ask
// for.
Place ChoosePlace(uint64_t addr, uint64_t bytes, int flags, uint64_t offset);

// Honours MAP_POPULATE and MAP_LOCKED, which were held back until the region was registered, so
// that the pages come from the pager. As in mmap(2), a populate that fails is not an error and a
// lock over the limit is. RETURNS 0 or -errno. Without the lock.
long FillAsAsked(uint64_t va, uint64_t bytes, int prot, int flags);

// One line "hostmm: PROGRAM: WHAT: WHY", once per process, unless quiet: on descriptor 2, and only
// while that is the file that the program was started with.
void SayOnce(const char* what, const char* why);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_CLIENT_STATE_H_
