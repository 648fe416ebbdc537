// The guest's end of its channel to the pager: send a note, or ask and wait for the answer. Raw
// system calls only.
//
// Errors:   never blocks for ever. A pager that is gone, or that does not answer (or take a
//           connection) within kAnswerMilliseconds, is a failure of the call, and the caller goes
//           on without the pager.
// Threads:  the client's lock orders all calls; the agent alone receives.
#ifndef HOSTMM_RUNTIME_GUEST_CHANNEL_H_
#define HOSTMM_RUNTIME_GUEST_CHANNEL_H_

#include <cstdint>

#include "runtime/protocol.h"

namespace hostmm::guest {

enum class Io { kOk, kFailed };

// An answer that takes longer than this is none. Arbitrary: far above the slowest honest answer
// (making a store: 1 ms).
inline constexpr int kAnswerMilliseconds = 10'000;

// A descriptor of ours in a program that does not know of it. The program may close it and get the
// same number for a file of its own, so each use checks that it is still the same socket or device.
class GuardedFd {
 public:
  // Takes over `fd`, moved to a high number where the limit allows, so that programs that count on
  // low numbers (or that find out how many they may open) are not surprised.
  void Set(int fd);
  // Remembers `fd`, which stays the program's: only IsOurs is of use then.
  void Watch(int fd);
  void Close();
  bool IsOurs() const;
  // REQUIRES: IsOurs().
  int get() const { return fd_; }

 private:
  // 0 is none (zeroed memory is a valid object; Set never keeps a descriptor below 3).
  int fd_;
  uint64_t device_;
  uint64_t inode_;
};

protocol::Message NewMessage(protocol::Kind kind);

// Packets that Send has sent since ForgetPackets, which is due with each new channel. The pager
// counts them too (board.h).
uint32_t PacketsSent();
void ForgetPackets();

// Sends one packet with up to kMaxFds descriptors, which stay the caller's. With `credentials`, the
// kernel vouches for the sender's pid.
enum class Credentials { kNo, kYes };
Io Send(const GuardedFd& channel, const protocol::Message& message, const int* fds, int fd_count,
        Credentials credentials = Credentials::kNo);

// As Send, on any socket of the pager's, and not counted: for the agent, which says what is not
// counted, and for handles of snapshots. RETURNS 0 or -errno.
long SendOn(int socket, const protocol::Message& message, const int* fds, int fd_count);

// Sends `message` with a reply socket in front of `fds` and waits for the answer. A descriptor in
// the answer goes to *received (else -1); pass nullptr if none is wanted.
Io Ask(const GuardedFd& channel, const protocol::Message& message, const int* fds, int fd_count,
       protocol::Message* answer, int* received);

// The two halves of Ask, for an answer that comes late and is waited for without the client's lock.
// SendQuestion RETURNS the reply socket, which the caller closes, or -errno. AwaitReply: kTimedOut:
// no answer came in time, but nobody has gone.
enum class Reply { kHere, kTimedOut, kGone };
int SendQuestion(const GuardedFd& channel, const protocol::Message& message, const int* fds,
                 int fd_count);
Reply AwaitReply(int reply_fd, int milliseconds, protocol::Message* answer, int* received);

// SendQuestion on a handle. RETURNS the reply socket or -errno.
long SendQuestionOn(int socket, const protocol::Message& message, const int* fds, int fd_count);

// Receives one packet (the agent's side). Blocks. The first descriptors that come with it go to
// fds[0..capacity), the rest of which is -1; more are closed.
Io Receive(int fd, protocol::Message* message, int* fds, int capacity);

// Connects to the pager's socket; -1 if nobody listens there.
int Connect(const char* path);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_CHANNEL_H_
