#include "runtime/packet.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/sys_error.h"

namespace hostmm {
namespace {

// Whoever closes the last descriptor of a TCP socket that lingers waits for its unsent data, as
// long as its owner wished. That will be us.
void ForbidLinger(int fd) {
  constexpr linger kNone = {.l_onoff = 0, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &kNone, sizeof(kNone));
}

void TakeDescriptors(const cmsghdr* cmsg, Packet* packet) {
  const size_t count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
  for (size_t i = 0; i < count; ++i) {
    int raw;
    memcpy(&raw, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(raw));
    ForbidLinger(raw);
    UniqueFd fd(raw);  // closed if there is no place for it
    if (packet->fd_count < protocol::kMaxFds) {
      packet->fds[static_cast<size_t>(packet->fd_count++)] = std::move(fd);
    }
  }
}

}  // namespace

ReceiveResult ReceivePacket(int socket, Packet* packet) {
  *packet = Packet();
  alignas(cmsghdr) char
      control[CMSG_SPACE(sizeof(int) * protocol::kMaxFds) + CMSG_SPACE(sizeof(ucred))];
  iovec iov{&packet->message, sizeof(packet->message)};
  msghdr header = {};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  ssize_t got;
  do {
    got = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (got < 0 && errno == EINTR);
  if (got < 0) {
    return errno == EAGAIN || errno == EWOULDBLOCK ? ReceiveResult::kNothing
                                                   : ReceiveResult::kClosed;
  }
  for (cmsghdr* cmsg = CMSG_FIRSTHDR(&header); cmsg != nullptr; cmsg = CMSG_NXTHDR(&header, cmsg)) {
    if (cmsg->cmsg_level != SOL_SOCKET) continue;
    if (cmsg->cmsg_type == SCM_RIGHTS) TakeDescriptors(cmsg, packet);
    if (cmsg->cmsg_type == SCM_CREDENTIALS) {
      ucred sender;
      memcpy(&sender, CMSG_DATA(cmsg), sizeof(sender));
      packet->sender_pid = sender.pid;
    }
  }
  if (got == 0) return ReceiveResult::kClosed;
  const bool whole = got == static_cast<ssize_t>(sizeof(packet->message)) &&
                     (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 &&
                     packet->message.magic == protocol::kMagic;
  if (!whole) return ReceiveResult::kMalformed;
  packet->message.text[sizeof(packet->message.text) - 1] = '\0';
  return ReceiveResult::kPacket;
}

bool IsChannel(int fd) {
  int domain = 0;
  int type = 0;
  socklen_t length = sizeof(int);
  return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX &&
         getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_SEQPACKET;
}

SendResult SendPacket(int socket, const protocol::Message& message, std::span<const int> fds) {
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * protocol::kMaxFds)] = {};
  iovec iov{const_cast<protocol::Message*>(&message), sizeof(message)};
  msghdr header = {};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(fds.size_bytes());
    memcpy(CMSG_DATA(cmsg), fds.data(), fds.size_bytes());
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  return sent == static_cast<ssize_t>(sizeof(message)) ? SendResult::kSent : SendResult::kLost;
}

SendResult SendPacket(int socket, const protocol::Message& message, int fd) {
  return SendPacket(socket, message,
                    fd >= 0 ? std::span<const int>(&fd, 1) : std::span<const int>());
}

protocol::Message NewPacket(protocol::Kind kind) {
  protocol::Message message = {};
  message.magic = protocol::kMagic;
  message.version = protocol::kVersion;
  message.kind = kind;
  return message;
}

absl::StatusOr<Peer> PeerOf(int socket) {
  ucred peer;
  socklen_t length = sizeof(peer);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
    return SysError("SO_PEERCRED");
  return Peer{peer.pid, peer.uid, peer.gid};
}

void WantCredentials(int socket) {
  const int on = 1;
  setsockopt(socket, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));
}

}  // namespace hostmm
