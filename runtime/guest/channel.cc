#include "runtime/guest/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

// Descriptors go at or above this number. Arbitrary: above what programs usually hold, below the
// usual limit of 1024.
constexpr int kHighFd = 500;

int WaitFor(int fd, short events, int milliseconds) {
  pollfd poll{fd, events, 0};
  timespec timeout{milliseconds / 1000, (milliseconds % 1000) * 1'000'000L};
  return static_cast<int>(raw::Call(SYS_ppoll, &poll, 1, &timeout, nullptr, 8));
}

int64_t MonotonicMilliseconds() {
  timespec now = {};
  raw::Call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

uint32_t g_packets;

// Room for the descriptors and the credentials of one packet.
union Control {
  char bytes[CMSG_SPACE(sizeof(int) * protocol::kMaxFds) + CMSG_SPACE(sizeof(ucred))];
  cmsghdr align;
};

void Append(msghdr* header, int type, const void* data, size_t bytes) {
  auto* cmsg =
      reinterpret_cast<cmsghdr*>(static_cast<char*>(header->msg_control) + header->msg_controllen);
  cmsg->cmsg_level = SOL_SOCKET;
  cmsg->cmsg_type = type;
  cmsg->cmsg_len = CMSG_LEN(bytes);
  memcpy(CMSG_DATA(cmsg), data, bytes);
  header->msg_controllen += CMSG_SPACE(bytes);
}

// RETURNS 0 or -errno.
long SendPacket(int socket, const protocol::Message& message, const int* fds, int fd_count,
                Credentials credentials) {
  Control control = {};
  iovec iov{const_cast<protocol::Message*>(&message), sizeof(message)};
  msghdr header = {};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  if (fd_count > 0) Append(&header, SCM_RIGHTS, fds, sizeof(int) * static_cast<size_t>(fd_count));
  if (credentials == Credentials::kYes) {
    const ucred self{static_cast<pid_t>(raw::Call(SYS_getpid)),
                     static_cast<uid_t>(raw::Call(SYS_geteuid)),
                     static_cast<gid_t>(raw::Call(SYS_getegid))};
    Append(&header, SCM_CREDENTIALS, &self, sizeof(self));
  }
  for (;;) {
    const long sent = raw::Call(SYS_sendmsg, socket, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == static_cast<long>(sizeof(message))) return 0;
    if (sent == -EINTR) continue;
    if (sent != -EAGAIN) return raw::Failed(sent) ? sent : -EPROTO;
    if (WaitFor(socket, POLLOUT, kAnswerMilliseconds) <= 0) return -EAGAIN;
  }
}

// Makes the reply socket and puts its far end in front of `fds`. RETURNS the near end or -errno.
template <class SendAll>
long Question(const int* fds, int fd_count, SendAll send_all) {
  int pair[2];
  const long made = raw::Call(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, &pair[0]);
  if (raw::Failed(made)) return made;
  int all[protocol::kMaxFds] = {pair[1]};
  for (int i = 0; i < fd_count; ++i) all[i + 1] = fds[i];
  const long sent = send_all(&all[0], fd_count + 1);
  raw::Call(SYS_close, pair[1]);
  if (sent == 0) return pair[0];
  raw::Call(SYS_close, pair[0]);
  return sent;
}

}  // namespace

void GuardedFd::Set(int fd) {
  long high = raw::Call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, kHighFd);
  // A low RLIMIT_NOFILE: anything but the standard streams' numbers.
  if (raw::Failed(high)) high = raw::Call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 3);
  raw::Call(SYS_close, fd);
  fd_ = raw::Failed(high) ? 0 : static_cast<int>(high);
  if (fd_ != 0) Watch(fd_);
}

void GuardedFd::Watch(int fd) {
  struct stat info = {};
  fd_ = raw::Call(SYS_fstat, fd, &info) == 0 ? fd : 0;
  device_ = info.st_dev;
  inode_ = info.st_ino;
}

bool GuardedFd::IsOurs() const {
  if (fd_ <= 0) return false;
  struct stat info = {};
  return raw::Call(SYS_fstat, fd_, &info) == 0 && info.st_dev == device_ && info.st_ino == inode_;
}

void GuardedFd::Close() {
  if (IsOurs()) raw::Call(SYS_close, fd_);
  fd_ = 0;
}

uint32_t PacketsSent() { return g_packets; }
void ForgetPackets() { g_packets = 0; }

protocol::Message NewMessage(protocol::Kind kind) {
  protocol::Message message = {};
  message.magic = protocol::kMagic;
  message.version = protocol::kVersion;
  message.kind = kind;
  return message;
}

Io Send(const GuardedFd& channel, const protocol::Message& message, const int* fds, int fd_count,
        Credentials credentials) {
  if (!channel.IsOurs()) return Io::kFailed;
  if (SendPacket(channel.get(), message, fds, fd_count, credentials) != 0) return Io::kFailed;
  ++g_packets;
  return Io::kOk;
}

long SendOn(int socket, const protocol::Message& message, const int* fds, int fd_count) {
  return SendPacket(socket, message, fds, fd_count, Credentials::kNo);
}

Io Receive(int fd, protocol::Message* message, int* fds, int capacity) {
  for (int i = 0; i < capacity; ++i) fds[i] = -1;
  Control control = {};
  iovec iov{message, sizeof(*message)};
  msghdr header = {};
  header.msg_iov = &iov;
  header.msg_iovlen = 1;
  header.msg_control = control.bytes;
  header.msg_controllen = sizeof(control.bytes);
  long got;
  do {
    got = raw::Call(SYS_recvmsg, fd, &header, MSG_CMSG_CLOEXEC);
    // A peer that died with packets of ours unread is reset, which is said once, before what it had
    // sent.
  } while (got == -EINTR || got == -ECONNRESET);
  int count = 0;
  if (!raw::Failed(got)) {
    for (cmsghdr* cmsg = CMSG_FIRSTHDR(&header); cmsg != nullptr;
         cmsg = CMSG_NXTHDR(&header, cmsg)) {
      if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) continue;
      const size_t received = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (size_t i = 0; i < received; ++i) {
        int one;
        memcpy(&one, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(one));
        if (count < capacity) {
          fds[count++] = one;
        } else {
          raw::Call(SYS_close, one);
        }
      }
    }
  }
  const bool whole =
      got == static_cast<long>(sizeof(*message)) && message->magic == protocol::kMagic;
  return whole ? Io::kOk : Io::kFailed;
}

int SendQuestion(const GuardedFd& channel, const protocol::Message& message, const int* fds,
                 int fd_count) {
  const long reply_fd = Question(fds, fd_count, [&](const int* all, int count) -> long {
    return Send(channel, message, all, count) == Io::kOk ? 0 : -EPIPE;
  });
  return static_cast<int>(reply_fd);
}

long SendQuestionOn(int socket, const protocol::Message& message, const int* fds, int fd_count) {
  return Question(fds, fd_count,
                  [&](const int* all, int count) { return SendOn(socket, message, all, count); });
}

Reply AwaitReply(int reply_fd, int milliseconds, protocol::Message* answer, int* received) {
  if (received != nullptr) *received = -1;
  const int64_t until = MonotonicMilliseconds() + milliseconds;
  int ready;
  do {  // a signal of the program ends a wait early
    const int64_t left = until - MonotonicMilliseconds();
    ready = WaitFor(reply_fd, POLLIN, left > 0 ? static_cast<int>(left) : 0);
  } while (ready == -EINTR);
  Reply reply = Reply::kTimedOut;
  if (ready > 0) {
    const Io got = Receive(reply_fd, answer, received, received != nullptr ? 1 : 0);
    reply = got == Io::kOk ? Reply::kHere : Reply::kGone;
  }
  return reply;
}

Io Ask(const GuardedFd& channel, const protocol::Message& message, const int* fds, int fd_count,
       protocol::Message* answer, int* received) {
  if (received != nullptr) *received = -1;
  const int reply_fd = SendQuestion(channel, message, fds, fd_count);
  if (reply_fd < 0) return Io::kFailed;
  const Reply reply = AwaitReply(reply_fd, kAnswerMilliseconds, answer, received);
  raw::Call(SYS_close, reply_fd);
  return reply == Reply::kHere ? Io::kOk : Io::kFailed;
}

int Connect(const char* path) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const size_t length = strlen(path);
  if (length >= sizeof(address.sun_path)) return -1;
  memcpy(address.sun_path, path, length);
  const long fd = raw::Call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (raw::Failed(fd)) return -1;
  // A pager that does not accept and has a full queue must not hold us for ever.
  const timeval patience = {kAnswerMilliseconds / 1000, 0};
  raw::Call(SYS_setsockopt, fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
  if (raw::Failed(raw::Call(SYS_connect, fd, &address, sizeof(address)))) {
    raw::Call(SYS_close, fd);
    return -1;
  }
  return static_cast<int>(fd);
}

}  // namespace hostmm::guest
