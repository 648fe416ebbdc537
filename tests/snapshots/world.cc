#include "tests/snapshots/world.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

// Longer than any wait of a partner, shorter than the test's own deadline.
constexpr int kPatienceMs = 60'000;
// Of one snapshot beside somebody who forks. Each may take a second. Arbitrary.
constexpr int kMostTries = 8;

std::string_view Term(const char* name) {
  const char* value = getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

Kind TheKind() {
  const std::string_view kind = Term("HOSTMM_TEST_KIND");
  return kind == "named" ? Kind::kNamed : kind == "plain" ? Kind::kPlain : Kind::kOptIn;
}

bool OnHugetlb() { return Term("HOSTMM_TEST_FRAMES") == "hugetlb"; }

bool OnHuge() { return Term("HOSTMM_TEST_FRAMES") == "huge"; }

size_t Unit() { return OnHugetlb() ? kBlock : kPage; }

pid_t PagerPid() {
  const auto pid = static_cast<pid_t>(atol(Term("HOSTMM_TEST_PAGER").data()));
  MUST(pid > 0);
  return pid;
}

bool Want(bool condition, const char* format, ...) {
  const int error = errno;
  char line[400];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof(line), format, arguments);
  va_end(arguments);
  Say("#%s %s", condition ? "ok" : "BAD", line);
  errno = error;
  return condition;
}

void WantErrno(long result, int error, const char* call) {
  const int got = result == -1 ? errno : 0;
  Want(got == error, "%s: %s, wanted %s (%s)", call, ErrnoName(got), ErrnoName(error),
       hostmm_error());
}

void Skip(const char* why) { Say("#skip %s", why); }

void Again(const char* why) { Say("#again %s", why); }

void Attach() {
  static bool attached = false;
  if (attached) return;
  hostmm_options options = {};
  options.size = sizeof(options);
  // Without a socket, by hand: a pager of our own.
  options.socket = getenv("HOSTMM_TEST_SOCKET");
  if (options.socket == nullptr) options.frames = getenv("HOSTMM_TEST_FRAMES");
  MUST(hostmm_open(&options) == 0);
  attached = true;
}

Live::Live(size_t bytes, int prot) : bytes_(bytes) {
  Attach();
  int flags = MAP_SHARED;
  int file = -1;
  if (TheKind() == Kind::kNamed) {
    static int count = 0;
    snprintf(name_, sizeof(name_), "snapshots.%d.%d", getpid(), ++count);
    file = hostmm_shm_open(name_, O_RDWR | O_CREAT | O_EXCL, 0600, bytes);
    MUST(file >= 0);
  } else {
    flags |= MAP_ANONYMOUS;
  }
  if (TheKind() != Kind::kPlain) flags |= MAP_SHARED_PT;
  void* at = hostmm_mmap(nullptr, bytes, prot, flags, file, 0);
  MUST(at != MAP_FAILED);
  if (file >= 0) close(file);
  at_ = static_cast<char*>(at);
}

Live::~Live() {
  hostmm_munmap(at_, bytes_);
  if (name_[0] != 0) hostmm_shm_unlink(name_);
}

void Live::Protect(int prot) const { MUST(hostmm_mprotect(at_, bytes_, prot) == 0); }

Snapshot::Snapshot(const void* at) : handle_(hostmm_snapshot(at)) { MustBeThere(); }

Snapshot::Snapshot(const void* at, size_t* refused) {
  for (int i = 0; i < kMostTries; ++i) {
    handle_ = hostmm_snapshot(at);
    if (handle_ >= 0 || errno != EAGAIN) break;
    ++*refused;
  }
  MustBeThere();
}

void Snapshot::MustBeThere() const {
  if (handle_ < 0) Say("#BAD hostmm_snapshot: %s: %s", ErrnoName(errno), hostmm_error());
  MUST(handle_ >= 0);
}

void Snapshot::Drop() {
  if (handle_ >= 0) close(handle_);
  handle_ = -1;
}

SnapshotInfo Snapshot::Info() const {
  SnapshotInfo info = {};
  info.size = sizeof(info);
  if (hostmm_snapshot_info(handle_, &info) != 0) {
    Say("#BAD hostmm_snapshot_info: %s: %s", ErrnoName(errno), hostmm_error());
  }
  return info;
}

std::string Snapshot::Condition() const { return Outcome(hostmm_snapshot_info(handle_, nullptr)); }

View::View(const Snapshot& snapshot, int prot, size_t offset, size_t bytes)
    : View(snapshot.handle(), prot, offset, bytes) {}

View::View(int handle, int prot, size_t offset, size_t bytes) : bytes_(bytes) {
  if (bytes_ == 0) {
    SnapshotInfo info = {};
    info.size = sizeof(info);
    MUST(hostmm_snapshot_info(handle, &info) == 0);
    bytes_ = info.length - offset;
  }
  void* at = hostmm_snapshot_map(handle, nullptr, bytes_, prot, static_cast<off_t>(offset));
  if (at == MAP_FAILED) Say("#BAD hostmm_snapshot_map: %s: %s", ErrnoName(errno), hostmm_error());
  MUST(at != MAP_FAILED);
  at_ = static_cast<char*>(at);
}

void View::Drop() {
  if (at_ != nullptr) MUST(hostmm_munmap(at_, bytes_) == 0);
  at_ = nullptr;
}

uint64_t StampOf(const char* at, uint64_t seed) {
  return seed * 1'000'003 + reinterpret_cast<uintptr_t>(at) % kBlock / kPage + 1;
}

std::string TryReadWord(const char* at, uint64_t* word) {
  // A system call reads it, or says EFAULT: no signal between an access and its use.
  int ends[2];
  MUST(pipe(ends) == 0);
  const bool taken = write(ends[1], at, sizeof(*word)) == sizeof(*word);
  const int error = errno;
  if (taken) MUST(read(ends[0], word, sizeof(*word)) == sizeof(*word));
  close(ends[0]);
  close(ends[1]);
  return taken ? "ok" : error == EFAULT ? TryRead(at) : ErrnoName(error);
}

void Stamp(char* at, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes; i += Unit()) {
    *reinterpret_cast<volatile uint64_t*>(at + i) = StampOf(at + i, seed);
  }
}

bool IsStamped(const char* at, size_t bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes; i += Unit()) {
    if (*reinterpret_cast<const volatile uint64_t*>(at + i) != StampOf(at + i, seed)) return false;
  }
  return true;
}

bool IsZero(const char* at, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    if (*reinterpret_cast<const volatile uint64_t*>(at + i) != 0) return false;
  }
  return true;
}

bool IsTracked(const void* at) {
  const auto vma = ReadVma(0, at);
  return vma.has_value() && (vma->HasFlag("uw") || vma->HasFlag("ui"));
}

bool IsNative(const void* at) { return !IsTracked(at); }

Partner::Partner(Begun begun) {
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  pid_ = fork();
  MUST(pid_ >= 0);
  if (pid_ == 0) {
    close(ends[0]);
    Serve(ends[1], begun);
  }
  close(ends[1]);
  socket_ = ends[0];
  if (begun == Begun::kYes) Await();
}

void Partner::Answer(int socket, int64_t result) {
  MUST(send(socket, &result, sizeof(result), MSG_NOSIGNAL) == sizeof(result));
}

void Partner::Serve(int socket, Begun begun) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (begun == Begun::kYes) Answer(socket, 0);
  for (;;) {
    Job job = {};
    if (recv(socket, &job, sizeof(job), 0) != sizeof(job)) _exit(0);
    int64_t result = 0;
    if (job.run != nullptr) {
      result = job.run(job.closure);
    } else {
      char byte;
      iovec data = {&byte, 1};
      alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
      msghdr message = {};
      message.msg_iov = &data;
      message.msg_iovlen = 1;
      message.msg_control = control;
      message.msg_controllen = sizeof(control);
      MUST(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&message) != nullptr);
      int fd;
      memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
      result = fd;
    }
    Answer(socket, result);
  }
}

void Partner::Send(const Job& job) const {
  MUST(send(socket_, &job, sizeof(job), MSG_NOSIGNAL) == sizeof(job));
}

bool Partner::HasAnswered(int milliseconds) const {
  pollfd wait = {socket_, POLLIN, 0};
  return poll(&wait, 1, milliseconds) == 1;
}

int64_t Partner::Await() const {
  MUST(HasAnswered(kPatienceMs));
  int64_t result = 0;
  MUST(recv(socket_, &result, sizeof(result), 0) == sizeof(result));
  return result;
}

int Partner::Give(int fd) {
  Send({});
  char byte = 0;
  iovec data = {&byte, 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  MUST(sendmsg(socket_, &message, MSG_NOSIGNAL) == 1);
  return static_cast<int>(Await());
}

void Partner::Stop() const {
  MUST(kill(pid_, SIGSTOP) == 0);
  int status = 0;
  MUST(waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status));
}

void Partner::Continue() const { MUST(kill(pid_, SIGCONT) == 0); }

void Partner::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  close(socket_);
  pid_ = -1;
}

namespace {
// The outcomes that cross from a partner.
constexpr const char* kOutcomes[] = {"ok", "SIGBUS/ADRERR", "SIGSEGV/ACCERR", "SIGSEGV/MAPERR"};

int64_t NumberOf(const std::string& outcome) {
  for (int64_t i = 0; i < 4; ++i) {
    if (outcome == kOutcomes[i]) return i;
  }
  return 4;
}

std::string TextOf(int64_t number) { return number < 4 ? kOutcomes[number] : "another signal"; }
}  // namespace

std::string Partner::Read(const void* at) {
  return TextOf(Do([at] { return NumberOf(TryRead(at)); }));
}

std::string Partner::Write(void* at) {
  return TextOf(Do([at] { return NumberOf(TryWrite(at, 1)); }));
}

}  // namespace hostmm::test
