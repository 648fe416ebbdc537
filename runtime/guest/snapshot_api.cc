// The C functions of snapshots (runtime/hostmm_c.h).
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "runtime/guest/api_call.h"
#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/opt_in.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/guest/views.h"
#include "runtime/hostmm_c.h"
#include "runtime/image/image_load.h"

namespace hostmm::guest {
namespace {

using protocol::Kind;
using protocol::Message;

// How often an export says how far it is. Arbitrary.
constexpr int64_t kProgressMilliseconds = 100;

// Where an image begins in what has no positions.
constexpr uint64_t kStream = ~uint64_t{0};

// A pipe's end, or a socket of an answer.
class OwnedFd {
 public:
  OwnedFd() = default;
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() { Reset(-1); }
  void Reset(int fd) {
    if (fd_ >= 0) raw::Call(SYS_close, fd_);
    fd_ = fd;
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// What the pager says on the progress pipe.
struct Progress {
  uint64_t done;
  uint64_t total;
};

// The pager's line, as the end of one of ours.
class Because {
 public:
  explicit Because(const Message& answer) {
    if (answer.text[0] != '\0') snprintf(text_, sizeof(text_), ": %s", answer.text);
  }
  const char* text() const { return text_; }

 private:
  char text_[sizeof(Message::text) + 2] = "";
};

// Asks on a handle. RETURNS 0 or -errno: EIO if the pager is gone.
long AskHandle(int handle, const Message& ask, Message* answer) {
  *answer = {};
  if (!IsHandle(handle)) return -EBADF;
  OwnedFd reply;
  const long sent = SendQuestionOn(handle, ask, nullptr, 0);
  if (!raw::Failed(sent)) {
    reply.Reset(static_cast<int>(sent));
    const Reply got = AwaitReply(reply.get(), kAnswerMilliseconds, answer, nullptr);
    answer->text[sizeof(answer->text) - 1] = '\0';
    if (got == Reply::kHere) return -ErrnoOf(*answer);
    *answer = {};
  } else if (sent == -EMFILE || sent == -ENFILE) {
    return sent;
  }
  strcpy(answer->text, "the pager is gone");
  return -EIO;
}

int64_t MonotonicMilliseconds() {
  timespec now = {};
  raw::Call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

// An export on its way, as its caller sees it.
class Export {
 public:
  Export(int handle, const hostmm_export& options) : handle_(handle), options_(options) {}

  // RETURNS 0 or -errno.
  long Run(int fd, Message* answer);

 private:
  long Locate(int fd, Message* ask);
  long Leave(int fd, uint64_t bytes) const;
  long Start(int fd);
  // Waits for the answer; false: the pager is gone.
  bool Await(Message* answer);
  void ReadProgress();
  void Say(const Progress& progress);

  const int handle_;
  const hostmm_export& options_;
  uint64_t start_ = kStream;
  OwnedFd reply_;
  OwnedFd progress_;
  Progress last_ = {};
  int64_t said_at_ = 0;
};

// Where the image begins, and how much of one is there already. The pager is told, because to ask
// the kernel may take as long as somebody else reads from the file. RETURNS 0 or -errno.
long Export::Locate(int fd, Message* ask) {
  struct stat info = {};
  const long looked = raw::Call(SYS_fstat, fd, &info);
  if (raw::Failed(looked)) return looked;
  // What appends has one position, as a pipe has.
  const bool appends = (raw::Call(SYS_fcntl, fd, F_GETFL) & O_APPEND) != 0;
  ask->offset = kStream;
  if (!S_ISREG(info.st_mode) || appends) return options_.resume != 0 ? -EINVAL : 0;
  const long at = raw::Call(SYS_lseek, fd, 0, SEEK_CUR);
  if (raw::Failed(at)) return at;
  start_ = static_cast<uint64_t>(at);
  ask->offset = start_;
  const auto size = static_cast<uint64_t>(info.st_size);
  if (options_.resume != 0 && size > start_) ask->value[0] = size - start_;
  return 0;
}

// Leaves the descriptor as if the caller had written: behind the image; and cuts off what a writer
// that was interrupted has left there. RETURNS 0 or -errno.
long Export::Leave(int fd, uint64_t bytes) const {
  if (start_ == kStream) return 0;
  if (options_.resume != 0) {
    const long cut = raw::Call(SYS_ftruncate, fd, start_ + bytes);
    if (raw::Failed(cut)) return cut;
  }
  const long moved = raw::Call(SYS_lseek, fd, start_ + bytes, SEEK_SET);
  return raw::Failed(moved) ? moved : 0;
}

long Export::Start(int fd) {
  Message ask = NewMessage(Kind::kExport);
  if (const long located = Locate(fd, &ask); located != 0) return located;
  // Always, so that the descriptor behind it is the fourth.
  int pipe[2];
  const long made = raw::Call(SYS_pipe2, &pipe[0], O_CLOEXEC | O_NONBLOCK);
  if (raw::Failed(made)) return made;
  progress_.Reset(pipe[0]);
  const int fds[] = {fd, pipe[1], options_.earlier};
  const long sent = SendQuestionOn(handle_, ask, &fds[0], options_.earlier >= 0 ? 3 : 2);
  raw::Call(SYS_close, pipe[1]);
  if (raw::Failed(sent)) return sent == -EPIPE || sent == -ECONNRESET ? -ENOTCONN : sent;
  reply_.Reset(static_cast<int>(sent));
  return 0;
}

void Export::Say(const Progress& progress) {
  if (options_.progress != nullptr) {
    options_.progress(options_.arg, progress.done, progress.total);
  }
}

void Export::ReadProgress() {
  Progress records[16];
  long got;
  while ((got = raw::Call(SYS_read, progress_.get(), &records[0], sizeof(records))) > 0) {
    // Records are written whole, and read so.
    const size_t count = static_cast<size_t>(got) / sizeof(Progress);
    if (count != 0) last_ = records[count - 1];
  }
  // Its end, when the pager has closed it: nothing more to wait for there.
  if (got == 0) progress_.Reset(-1);
  const int64_t now = MonotonicMilliseconds();
  if (now - said_at_ < kProgressMilliseconds || last_.total == 0) return;
  said_at_ = now;
  Say(last_);
}

bool Export::Await(Message* answer) {
  for (;;) {
    pollfd polls[] = {{reply_.get(), POLLIN, 0}, {progress_.get(), POLLIN, 0}};
    const long ready = raw::Call(SYS_ppoll, &polls[0], 2, nullptr, nullptr, 8);
    if (ready == -EINTR) continue;
    if (raw::Failed(ready)) return false;
    if (polls[1].revents != 0) ReadProgress();
    if (polls[0].revents == 0) continue;
    const Reply got = AwaitReply(reply_.get(), 0, answer, nullptr);
    answer->text[sizeof(answer->text) - 1] = '\0';
    return got == Reply::kHere;
  }
}

long Export::Run(int fd, Message* answer) {
  *answer = {};
  if (const long started = Start(fd); started != 0) return started;
  if (!Await(answer)) {
    *answer = {};
    strcpy(answer->text, "the pager is gone");
    return -ENOTCONN;
  }
  if (const int error = ErrnoOf(*answer); error != 0) return -error;
  if (progress_.get() >= 0) ReadProgress();
  // So little that nothing was said of it.
  Message info;
  if (last_.total == 0 && AskHandle(handle_, NewMessage(Kind::kSnapshotInfo), &info) == 0) {
    last_.total = info.length;
  }
  Say({last_.total, last_.total});
  return Leave(fd, answer->length);
}

// RETURNS 0 or -errno.
long CheckExport(int snapshot, int fd, const hostmm_export& options) {
  if (options.size != sizeof(hostmm_export)) return -EINVAL;
  if (!IsHandle(snapshot)) return -EBADF;
  if (options.earlier >= 0 && !IsHandle(options.earlier)) return -EBADF;
  const long mode = raw::Call(SYS_fcntl, fd, F_GETFL);
  if (raw::Failed(mode) || (mode & O_ACCMODE) == O_RDONLY) return -EBADF;
  return 0;
}

int RemoveMemoryThere(void* addr, size_t length) {
  const uint64_t va = Address(addr);
  const long removed = Manages(va, length) ? Advise(va, length, MADV_REMOVE, Asked::kPlainCall)
                                           : raw::Call(SYS_madvise, va, length, MADV_REMOVE);
  return removed == 0 ? 0 : -1;
}

constexpr hostmm_export kWholeExport = {sizeof(hostmm_export), 0, -1, nullptr, nullptr};

}  // namespace
}  // namespace hostmm::guest

using namespace hostmm;         // NOLINT: only the functions below
using namespace hostmm::guest;  // NOLINT

HOSTMM_API int hostmm_snapshot(const void* addr) {
  protocol::Message answer = {};
  const long result = IsOn() ? TakeSnapshot(Address(addr), &answer) : -ENOTCONN;
  if (raw::Failed(result)) {
    Explain(static_cast<int>(-result), "hostmm_snapshot(%p)%s", addr, Because(answer).text());
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API int hostmm_snapshot_info(int snapshot, struct hostmm_snapshot_info* info) {
  protocol::Message answer = {};
  const bool sane = info == nullptr || info->size == sizeof(*info);
  const long result =
      sane ? AskHandle(snapshot, NewMessage(protocol::Kind::kSnapshotInfo), &answer) : -EINVAL;
  if (result != 0) {
    Explain(static_cast<int>(-result), "hostmm_snapshot_info(%d)%s", snapshot,
            Because(answer).text());
  } else if (info != nullptr) {
    info->length = answer.length;
    info->unit = answer.va != 0 ? answer.va : 4096;
    info->copied_bytes = answer.offset;
    info->pages_copied = answer.value[0];
    info->views = answer.value[1];
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API void* hostmm_snapshot_map(int snapshot, void* addr, size_t length, int prot,
                                     off_t offset) {
  if (IsHandle(snapshot) && !EnsureOpen()) {
    errno = ENOTCONN;
    return MAP_FAILED;
  }
  protocol::Message answer = {};
  const long result =
      MapView(snapshot, {Address(addr), length, prot, static_cast<uint64_t>(offset)}, &answer);
  if (raw::Failed(result)) {
    Explain(static_cast<int>(-result), "hostmm_snapshot_map(%d, %p, %zu, prot %d, %lld)%s",
            snapshot, addr, length, prot, static_cast<long long>(offset), Because(answer).text());
  }
  return Pointer(result);
}

HOSTMM_API int hostmm_snapshot_export(int snapshot, int fd, const hostmm_export* options) {
  const hostmm_export& asked = options != nullptr ? *options : kWholeExport;
  protocol::Message answer = {};
  long result = CheckExport(snapshot, fd, asked);
  if (result == 0) result = Export(snapshot, asked).Run(fd, &answer);
  if (result != 0) {
    Explain(static_cast<int>(-result), "hostmm_snapshot_export(%d, %d)%s", snapshot, fd,
            Because(answer).text());
  }
  return static_cast<int>(Finish(result));
}

HOSTMM_API int hostmm_image_load(int fd, void* addr, size_t length) {
  char why[160] = "";
  const int error = LoadImage(fd, addr, length, &why[0], sizeof(why), RemoveMemoryThere);
  if (error != 0) Explain(error, "hostmm_image_load(%d, %p, %zu): %s", fd, addr, length, why);
  return static_cast<int>(Finish(-error));
}
