#include "tests/pager/raw_guest.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <cstring>
#include <thread>
#include <utility>

#include "tests/testing/child.h"
#include "tests/testing/deadline.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

std::array<ScopedFd, 2> SocketPair() {
  int ends[2] = {-1, -1};
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return {};
  return {ScopedFd(ends[0]), ScopedFd(ends[1])};
}

// 0: the end of file; -1: nothing within the deadline.
ssize_t ReceiveAnswer(int socket, Message* answer, ScopedFd* received) {
  pollfd waiting = {socket, POLLIN, 0};
  if (poll(&waiting, 1, static_cast<int>(kStepDeadline.count())) <= 0) return -1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec vector = {answer, sizeof(*answer)};
  msghdr header = {};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t got = recvmsg(socket, &header, MSG_CMSG_CLOEXEC);
  const cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
  if (got > 0 && cmsg != nullptr && cmsg->cmsg_type == SCM_RIGHTS) {
    int fd = -1;
    memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
    ScopedFd owned(fd);
    if (received != nullptr) *received = std::move(owned);
  }
  return got;
}

// Every page holds its number, twice.
void Fill(char* at, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += kPage) {
    memcpy(at + offset, &offset, sizeof(offset));
  }
}

bool Holds(const char* at, size_t bytes) {
  for (size_t offset = 0; offset < bytes; offset += kPage) {
    if (memcmp(at + offset, &offset, sizeof(offset)) != 0) return false;
  }
  return true;
}

// The child of an honest guest attaches on its own channel and uses its parent's region.
int HonestChild(const RawGuest& parent, ScopedFd channel, const ScopedMapping& region) {
  RawGuest self(std::move(channel));
  TestUffd uffd = parent.NewUffd();
  if (uffd.valid()) {
    CHILD_CHECK(uffd.Register(region.data(), region.size(), UFFDIO_REGISTER_MODE_MISSING) == 0);
  }
  const std::vector<int> fds = uffd.valid() ? std::vector<int>{uffd.fd()} : std::vector<int>{};
  CHILD_CHECK(self.Send(NewPacket(Kind::kChildAttach), fds));
  uffd.Close();
  CHILD_CHECK(Holds(region.data(), region.size() / 2));
  Fill(region.data(), region.size());
  return 0;
}

int HonestLife(const std::string& socket_path) {
  constexpr size_t kBytes = 8 * kBlock;
  RawGuest guest(socket_path);
  CHILD_CHECK(guest.Enter());
  const ScopedMapping region = guest.NewRegion(kBytes);
  CHILD_CHECK(region.ok());
  CHILD_CHECK(guest.native() || ReadVma(0, region.data())->HasFlag("um"));
  std::thread other([&] { Fill(region.data(), kBytes / 4); });
  Fill(region.data() + kBytes / 4, kBytes / 4);
  other.join();
  auto [near, far] = SocketPair();
  CHILD_CHECK(guest.Send(NewPacket(Kind::kForkIntent), {far.get()}));
  far.Close();
  Fill(region.data(), kBytes / 2);
  const pid_t child = fork();
  if (child == 0) _exit(HonestChild(guest, std::move(near), region));
  near.Close();
  int status = -1;
  CHILD_CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHILD_CHECK(Holds(region.data(), kBytes));
  return 0;
}

}  // namespace

RawGuest::RawGuest(const std::string& socket_path)
    : channel_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (connect(channel_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
    channel_.Close();
  }
}

bool RawGuest::SendBytes(const void* bytes, size_t size, const std::vector<int>& fds) const {
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  iovec vector = {const_cast<void*>(bytes), size};
  msghdr header = {};
  header.msg_iov = &vector;
  header.msg_iovlen = 1;
  if (!fds.empty()) {
    header.msg_control = control.data();
    header.msg_controllen = control.size();
    cmsghdr* cmsg = CMSG_FIRSTHDR(&header);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    memcpy(CMSG_DATA(cmsg), fds.data(), fds.size() * sizeof(int));
  }
  return sendmsg(channel_.get(), &header, MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(size);
}

bool RawGuest::SendPatiently(const Message& message, const std::vector<int>& fds) const {
  const Deadline deadline(kStepDeadline);
  while (!Send(message, fds)) {
    pollfd room = {channel_.get(), POLLOUT, 0};
    if (errno != EAGAIN || poll(&room, 1, deadline.remaining_ms()) <= 0) return false;
  }
  return true;
}

std::optional<Message> RawGuest::Ask(const Message& message, const std::vector<int>& fds,
                                     ScopedFd* received) const {
  auto [near, far] = SocketPair();
  std::vector<int> all = {far.get()};
  all.insert(all.end(), fds.begin(), fds.end());
  if (!SendPatiently(message, all)) return std::nullopt;
  far.Close();
  Message answer;
  if (ReceiveAnswer(near.get(), &answer, received) != sizeof(answer)) return std::nullopt;
  return answer;
}

bool RawGuest::Hello() {
  Message hello = NewPacket(Kind::kHello);
  strcpy(hello.text, "raw-guest");
  const std::optional<Message> answer = Ask(hello, {}, &device_);
  if (!answer.has_value() || answer->status != Status::kOk) return false;
  features_ = answer->value[0];
  return true;
}

TestUffd RawGuest::NewUffd(uint64_t more_features) const {
  if (!device_.valid()) return TestUffd();
  return TestUffd::FromDevice(device_.get(), features_ | more_features);
}

bool RawGuest::Attach(TestUffd uffd) {
  uffd_ = std::move(uffd);
  const std::vector<int> fds = uffd_.valid() ? std::vector<int>{uffd_.fd()} : std::vector<int>{};
  return Send(NewPacket(Kind::kAttach), fds);
}

ScopedMapping RawGuest::NewRegion(size_t bytes) const {
  Message create = NewPacket(Kind::kCreate);
  create.length = bytes;
  create.prot = PROT_READ | PROT_WRITE;
  ScopedFd file;
  const std::optional<Message> created = Ask(create, {}, &file);
  if (!created.has_value() || created->status != Status::kOk) return ScopedMapping();
  ScopedMapping region = ScopedMapping::SharedFile(file.get(), bytes);
  Message map = create;
  map.kind = Kind::kMap;
  map.mm = created->mm;
  map.va = reinterpret_cast<uintptr_t>(region.data());
  const std::optional<Message> mapped = Ask(map);
  const bool done = region.ok() && mapped.has_value() && mapped->status == Status::kOk;
  return done ? std::move(region) : ScopedMapping();
}

bool RawGuest::IsEnded() const {
  const Deadline deadline(kStepDeadline);
  Message message;
  for (;;) {
    pollfd waiting = {channel_.get(), POLLIN, 0};
    if (poll(&waiting, 1, deadline.remaining_ms()) <= 0) return false;
    if (recv(channel_.get(), &message, sizeof(message), MSG_DONTWAIT) <= 0) return true;
  }
}

bool HonestGuestIsServed(const std::string& socket_path) {
  Child guest(Identity::kSame, [&](Channel&) { return HonestLife(socket_path); });
  return guest.Wait() == 0;
}

}  // namespace hostmm::test
