#include "tests/testing/child.h"

#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>

namespace hostmm::test {
namespace {

struct Packet {
  uint64_t value;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
};

// `packet` must outlive the header, which points into it.
msghdr Header(Packet* packet, iovec* vector) {
  *vector = iovec{&packet->value, sizeof(packet->value)};
  msghdr header = {};
  header.msg_iov = vector;
  header.msg_iovlen = 1;
  header.msg_control = packet->control;
  header.msg_controllen = sizeof(packet->control);
  return header;
}

// 0 at the deadline or when the peer is gone, else the bytes of the one message.
ssize_t ReceiveMessage(int socket, msghdr* header) {
  const Deadline deadline(kStepDeadline);
  pollfd waiting = {socket, POLLIN, 0};
  if (poll(&waiting, 1, deadline.remaining_ms()) <= 0) return 0;
  return recvmsg(socket, header, MSG_CMSG_CLOEXEC);
}

}  // namespace

bool Channel::SendFd(int fd) const {
  Packet packet = {};
  iovec vector;
  msghdr header = Header(&packet, &vector);
  cmsghdr* control = CMSG_FIRSTHDR(&header);
  control->cmsg_level = SOL_SOCKET;
  control->cmsg_type = SCM_RIGHTS;
  control->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(control), &fd, sizeof(fd));
  return sendmsg(socket_.get(), &header, MSG_NOSIGNAL) == sizeof(packet.value);
}

ScopedFd Channel::ReceiveFd() const {
  Packet packet = {};
  iovec vector;
  msghdr header = Header(&packet, &vector);
  if (ReceiveMessage(socket_.get(), &header) <= 0) return ScopedFd();
  const cmsghdr* control = CMSG_FIRSTHDR(&header);
  if (control == nullptr || control->cmsg_type != SCM_RIGHTS) return ScopedFd();
  int fd = -1;
  memcpy(&fd, CMSG_DATA(control), sizeof(fd));
  return ScopedFd(fd);
}

bool Channel::SendValue(uint64_t value) const {
  return send(socket_.get(), &value, sizeof(value), MSG_NOSIGNAL) == sizeof(value);
}

bool Channel::ReceiveValue(uint64_t* value) const {
  Packet packet = {};
  iovec vector;
  msghdr header = Header(&packet, &vector);
  if (ReceiveMessage(socket_.get(), &header) != sizeof(packet.value)) return false;
  *value = packet.value;
  return true;
}

bool BecomeNobody() {
  return setgroups(0, nullptr) == 0 && setgid(kNobody) == 0 && setuid(kNobody) == 0;
}

Child::Child(Identity identity, const Body& body) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return;
  ScopedFd mine(ends[0]);
  ScopedFd theirs(ends[1]);
  // What is buffered would be printed by both.
  fflush(nullptr);
  pid_ = fork();
  if (pid_ != 0) {
    channel_ = Channel(std::move(mine));
    return;
  }
  mine.Close();
  if (identity == Identity::kNobody) CHILD_CHECK(BecomeNobody());
  Channel channel(std::move(theirs));
  _exit(body(channel));
}

Child::~Child() {
  if (pid_ > 0) Wait(std::chrono::milliseconds(0));
}

int Child::Wait(std::chrono::milliseconds within) {
  if (pid_ <= 0) return -1;
  int status = 0;
  const bool ended =
      PollUntil(Deadline(within), [&] { return waitpid(pid_, &status, WNOHANG) > 0; });
  if (!ended) {
    kill(pid_, SIGKILL);
    waitpid(pid_, &status, 0);
  }
  pid_ = -1;
  if (!ended) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace hostmm::test
