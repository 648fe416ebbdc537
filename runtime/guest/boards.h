// The boards that this process's agent watches (runtime/board.h): what all who map a file opt-in
// are to do, found and carried out.
//
// Owner:    the agent thread: the descriptors are in its own table, where the program neither sees
//           nor closes them. The client forgets the boards in a forked child, whose own agent gets
//           them anew.
// Threads:  the agent alone; each function takes the client's lock where it needs it.
// Errors:   a board that cannot be watched is not; the pager then waits for this guest until it
//           gives up, and says so to whoever asked.
#ifndef HOSTMM_RUNTIME_GUEST_BOARDS_H_
#define HOSTMM_RUNTIME_GUEST_BOARDS_H_

#include "runtime/protocol.h"

namespace hostmm::guest {

// Files that one process can have mapped opt-in. Arbitrary; the client refuses more.
inline constexpr int kMaxBoards = 64;

// Descriptors of kWatch, in their order.
enum WatchFd { kOrdersFd, kAcksFd, kBellFd, kWatchFds };

// Watches the board that `order` brings, anew if it does already, and looks at it. Takes over the
// descriptors.
void WatchBoard(int channel, const protocol::Message& order, const int* fds);
void UnwatchBoard(protocol::MmHandle mm);
// Carries out what stands there, if that is new.
void LookAtBoard(int channel, protocol::MmHandle mm);

// Waits until there is a packet on `channel` to be received, and looks at the boards whose bells
// ring meanwhile. With no board watched it does not wait: receiving will.
void AwaitPacket(int channel);

// The agent ends: no board is watched any more.
void DropBoards();
// In a forked child: the parent's agent, with all that it had, is not here.
void ForgetBoards();

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_BOARDS_H_
