// Copy-on-write memory (MAP_PRIVATE_COW): private memory whose fork is a snapshot.
//
// Form:     a file of the pager's own for each mapping, mapped MAP_SHARED by its one process, whose
//           descriptor the client keeps.
// Fork:     the parent has the file frozen but for its own page tables (kForkCow), drops those, and
//           forks: nothing of it is copied. The child replaces what it has inherited by a
//           private-writable view. What other threads write between that moment and fork(2) is not
//           in the child.
// And a     child that forks again has its views settled first: what it touches from then on is
// child:    copied, and what it has mapped of the live file is dropped, so that its own child
//           inherits anonymous pages only, by the kernel's own copy-on-write.
// Else:     when the pager refuses, or goes, the memory becomes a MAP_PRIVATE mapping of its file:
//           the kernel's copy-on-write from then on. Cost: a page that is written after that exists
//           twice, once in the file. Without the descriptor (the program has closed it) a child has
//           SIGBUS there: never its parent's memory, never what its parent writes later.
// Threads:  what ends with Locked wants the client's lock.
#ifndef HOSTMM_RUNTIME_GUEST_COW_H_
#define HOSTMM_RUNTIME_GUEST_COW_H_

#include <cstdint>

#include "runtime/guest/region_table.h"
#include "runtime/protocol.h"

namespace hostmm::guest {

// Mappings of copy-on-write memory in one process: beyond that they are plain. Arbitrary.
inline constexpr int kMaxCowFiles = 16;
bool HasRoomForCowLocked();
// Takes over `file`, the one of `mm`.
void KeepCowFileLocked(protocol::MmHandle mm, int file);
// Closes those of which nothing is mapped as copy-on-write any more.
void DropCowFilesLocked();

// Makes all copy-on-write memory the kernel's.
void GoPrivateLocked();

// The three handlers of fork.
void SettleCowViews();  // without the lock
void PrepareCowLocked();
// There will be no child that the pager knows: what it inherits must be right without.
void CancelCowForkLocked();
// In the child, before anything is registered: its regions become views, or SIGBUS.
void BecomeViewsLocked();
// On both sides, when it is over.
void EndCowForkLocked();

// Has the program's memory at [va, va + bytes), a copy-on-write view or gone private, zeroed: plain
// private memory in its place. RETURNS 0 or -errno.
long ReplaceByZerosLocked(uint64_t va, uint64_t bytes);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_COW_H_
