// The pager's side of a packet (protocol.h): receive with descriptors and credentials, send.
//
// Errors:   a packet of another size is kMalformed; its descriptors are closed. Never blocks.
// Threads:  none shared.
#ifndef HOSTMM_RUNTIME_PACKET_H_
#define HOSTMM_RUNTIME_PACKET_H_

#include <sys/types.h>

#include <array>
#include <span>

#include "absl/status/statusor.h"
#include "runtime/protocol.h"
#include "runtime/unique_fd.h"

namespace hostmm {

struct Packet {
  protocol::Message message = {};
  std::array<UniqueFd, protocol::kMaxFds> fds;
  int fd_count = 0;
  pid_t sender_pid = 0;  // 0 unless the sender attached its credentials; the kernel vouches for it
};

enum class ReceiveResult { kPacket, kMalformed, kNothing, kClosed };
ReceiveResult ReceivePacket(int socket, Packet* packet);

// Whether packets can come from `fd`, and its end be heard of: a poll of another descriptor may
// never wait, or wait for ever.
bool IsChannel(int fd);

// RETURNS: whether it was sent. A peer that does not read loses its packets: false, not a wait.
enum class SendResult { kSent, kLost };
SendResult SendPacket(int socket, const protocol::Message& message, int fd = -1);
// With several descriptors. REQUIRES: at most protocol::kMaxFds, all open.
SendResult SendPacket(int socket, const protocol::Message& message, std::span<const int> fds);

// A message with magic and version set.
protocol::Message NewPacket(protocol::Kind kind);

// A connection's peer as the kernel saw it at connect.
struct Peer {
  pid_t pid;
  uid_t uid;
  gid_t gid;
};
absl::StatusOr<Peer> PeerOf(int socket);

// Ask the kernel to pass credentials that senders attach.
void WantCredentials(int socket);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_PACKET_H_
