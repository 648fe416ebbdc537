// Pages of a frozen region that the kernel holds for itself: buffers registered with io_uring, an
// O_DIRECT read in flight, pages in a pipe. What is pinned is the live memory, and stays that; the
// snapshot keeps what it was wherever the pin is younger than the snapshot, or the page has been
// copied; else it shows old or new (docs/snapshots.md, "What it does not hold").
#include <fcntl.h>
#include <liburing.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {
namespace {

constexpr size_t kIoBytes = 64 * kKib;

bool IsAll(char byte, const char* at, size_t bytes) {
  return std::all_of(at, at + bytes, [byte](char found) { return found == byte; });
}

bool IsOldOrNew(const char* at, size_t bytes) {
  return std::all_of(at, at + bytes, [](char found) { return found == 'o' || found == 'n'; });
}

// Nothing but kIoBytes at `at` may be other than old.
bool IsOldBeside(const View& view, const Live& live, const char* at) {
  const auto before = static_cast<size_t>(at - live.at());
  return IsAll('o', view.at(), before) &&
         IsAll('o', view.at() + before + kIoBytes, view.bytes() - before - kIoBytes);
}

// A file full of 'n'; -1: it cannot be opened so.
int OpenFresh(size_t bytes, int more_flags) {
  const char* folder = getenv("TEST_TMPDIR");
  std::string path = std::string(folder != nullptr ? folder : "/var/tmp") + "/fresh.XXXXXX";
  const int file = mkstemp(path.data());
  MUST(file >= 0);
  const std::string fresh(bytes, 'n');
  MUST(write(file, fresh.data(), bytes) == static_cast<long>(bytes) && fsync(file) == 0);
  close(file);
  const int again = open(path.c_str(), O_RDONLY | O_CLOEXEC | more_flags);
  unlink(path.c_str());
  return again;
}

// Buffers that are registered with io_uring -------------------------------------------------------

class FixedBuffer {
 public:
  FixedBuffer() : ok_(io_uring_queue_init(4, &ring_, 0) == 0) {}
  ~FixedBuffer() {
    if (ok_) io_uring_queue_exit(&ring_);
  }
  FixedBuffer(const FixedBuffer&) = delete;
  FixedBuffer& operator=(const FixedBuffer&) = delete;
  bool ok() const { return ok_; }

  bool Register(char* at) {
    at_ = at;
    const iovec buffer = {at, kIoBytes};
    const int error = io_uring_register_buffers(&ring_, &buffer, 1);
    return Want(error == 0, "the buffer is registered: %s", ErrnoName(-error));
  }
  // Reads 'n' into all of it.
  void Read(int file) {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    io_uring_prep_read_fixed(entry, file, at_, kIoBytes, 0, 0);
    io_uring_cqe* done = nullptr;
    MUST(io_uring_submit_and_wait(&ring_, 1) >= 0 && io_uring_wait_cqe(&ring_, &done) == 0);
    const int got = done->res;
    io_uring_cqe_seen(&ring_, done);
    Want(got == static_cast<int>(kIoBytes), "the ring reads %d", got);
  }

 private:
  io_uring ring_ = {};
  char* at_ = nullptr;
  bool ok_;
};

// Its pins are taken for writing: they are the first write.
HOSTMM_CASE(BufferRegisteredWhileFrozen) {
  FixedBuffer unread;
  FixedBuffer read;
  if (!unread.ok() || !read.ok()) return Skip("no io_uring");
  const int file = OpenFresh(kIoBytes, 0);
  Live live;
  memset(live.at(), 'o', live.bytes());
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  char* first = live.at() + kBlock;
  char* second = live.at() + 3 * kBlock;
  Want(IsAll('o', second, kIoBytes) && IsAll('o', view.at(), view.bytes() / 2), "read before");
  if (!unread.Register(first) || !read.Register(second)) return;
  for (int round = 0; round < 2; ++round) {
    unread.Read(file);
    read.Read(file);
    Want(IsAll('n', first, kIoBytes) && IsAll('n', second, kIoBytes), "the region has it");
    Want(IsAll('o', view.at(), view.bytes()), "the snapshot has not");
  }
  // Of the next snapshot both are pins from before.
  const Snapshot next(live.at());
  memset(first, 'x', kIoBytes);
  memset(second, 'x', kIoBytes);
  const View later(next);
  unread.Read(file);
  read.Read(file);
  Want(IsAll('n', first, kIoBytes) && IsAll('n', second, kIoBytes), "the pages are still the live");
  const auto offset = static_cast<size_t>(first - live.at());
  Want(IsAll('n', later.at() + offset, kIoBytes), "what is copied already is held");
  Want(IsAll('o', view.at(), view.bytes()), "the first snapshot");
}

// The exception: nobody sees the write. After the program's own, the copy is there.
HOSTMM_CASE(BufferRegisteredBefore) {
  FixedBuffer quiet;
  FixedBuffer written;
  if (!quiet.ok() || !written.ok()) return Skip("no io_uring");
  const int file = OpenFresh(kIoBytes, 0);
  Live live;
  memset(live.at(), 'o', live.bytes());
  char* first = live.at() + kBlock;
  char* second = live.at() + 3 * kBlock;
  if (!quiet.Register(first) || !written.Register(second)) return;
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  Want(IsAll('o', view.at(), view.bytes()), "read before");
  memset(second, 'x', kIoBytes);
  quiet.Read(file);
  written.Read(file);
  Want(IsAll('n', first, kIoBytes) && IsAll('n', second, kIoBytes), "the region has both");
  Want(IsOldBeside(view, live, first), "the snapshot has nothing of what the program wrote first");
  const auto offset = static_cast<size_t>(first - live.at());
  Want(IsOldOrNew(view.at() + offset, kIoBytes), "of the other, old or new");
  Want(snapshot.Condition() == "ok", "it is whole");
  memset(live.at(), 'x', live.bytes());
  Want(IsOldBeside(view, live, first) && IsOldOrNew(view.at() + offset, kIoBytes),
       "also when all is written");
  Want(IsAll('x', live.at(), live.bytes()), "the region has that");
}

// An O_DIRECT read in flight ----------------------------------------------------------------------

// A read whose first part goes to `at`, and which then comes to memory whose fault this program
// itself serves: until it does, the pages at `at` are pinned and not yet written.
class HeldRead {
 public:
  // REQUIRES: `file` has a page more than kIoBytes.
  HeldRead(int file, char* at) {
    void* tail = mmap(nullptr, kPage, kReadWrite, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(tail != MAP_FAILED);
    tail_ = static_cast<char*>(tail);
    uffd_ = TestUffd::Open();
    MUST(uffd_.valid() && uffd_.Register(tail_, kPage, UFFDIO_REGISTER_MODE_MISSING) == 0);
    thread_ = std::thread([this, file, at] {
      const iovec parts[] = {{at, kIoBytes}, {tail_, kPage}};
      got_ = preadv(file, parts, 2, 0);
    });
    MUST(uffd_.WaitFault().has_value());
  }
  ~HeldRead() { munmap(tail_, kPage); }
  HeldRead(const HeldRead&) = delete;
  HeldRead& operator=(const HeldRead&) = delete;

  // RETURNS what the read says.
  long GoOn() {
    const std::string page(kPage, '\0');
    MUST(uffd_.Copy(tail_, page.data(), kPage) == 0);
    thread_.join();
    return got_;
  }

 private:
  char* tail_ = nullptr;
  TestUffd uffd_;
  std::thread thread_;
  long got_ = 0;
};

HOSTMM_CASE(DirectReadInFlight) {
  const int file = OpenFresh(kIoBytes + kPage, O_DIRECT);
  if (file < 0) return Skip("no O_DIRECT where temporary files are");
  Live live;
  Partner writer;
  for (const bool writes : {false, true}) {
    memset(live.at(), 'o', live.bytes());
    char* at = live.at() + 3 * kBlock;
    HeldRead read(file, at);
    if (!IsAll('o', at, kIoBytes)) {
      read.GoOn();
      return Skip("the file system writes the first part before it pins the second");
    }
    const Snapshot snapshot(live.at());
    const View view(snapshot);
    Want(IsAll('o', view.at(), view.bytes()), "the snapshot before the data comes");
    if (writes) {
      writer.Do([at] {
        memset(at, 'x', kIoBytes);
        return 0;
      });
    }
    const long got = read.GoOn();
    Want(got == static_cast<long>(kIoBytes + kPage), "the read ends with %ld", got);
    Want(IsAll('n', at, kIoBytes), "the region has what was read");
    const auto offset = static_cast<size_t>(at - live.at());
    Want(IsOldBeside(view, live, at), "nothing beside it");
    if (writes) {
      Want(IsAll('o', view.at() + offset, kIoBytes), "what was copied before is held");
    } else {
      Want(IsOldOrNew(view.at() + offset, kIoBytes), "the snapshot has old or new");
    }
    // From now on it is memory like other.
    memset(live.at(), 'x', live.bytes());
    Want(IsOldBeside(view, live, at) && IsOldOrNew(view.at() + offset, kIoBytes),
         "what is written later is not in it");
    Want(IsAll('x', live.at(), live.bytes()) && snapshot.Condition() == "ok", "it is whole");
  }
}

// Pages in a pipe ---------------------------------------------------------------------------------

class Pipe {
 public:
  Pipe() {
    MUST(pipe2(ends_, O_CLOEXEC) == 0);
    MUST(fcntl(ends_[1], F_SETPIPE_SZ, static_cast<int>(kIoBytes)) >= static_cast<int>(kIoBytes));
  }
  ~Pipe() {
    close(ends_[0]);
    close(ends_[1]);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  void Splice(char* at) const {
    const iovec pages = {at, kIoBytes};
    const ssize_t put = vmsplice(ends_[1], &pages, 1, 0);
    Want(put == static_cast<ssize_t>(kIoBytes), "vmsplice: %zd", put);
  }
  std::string Take() const {
    std::string all;
    while (all.size() < kIoBytes) {
      char part[kPage];
      const ssize_t got = read(ends_[0], part, sizeof(part));
      MUST(got > 0);
      all.append(part, static_cast<size_t>(got));
    }
    return all;
  }

 private:
  int ends_[2];
};

// As in plain Linux the pipe has the pages, and not what they held.
HOSTMM_CASE(FrozenPagesInAPipe) {
  Live live;
  memset(live.at(), 'o', live.bytes());
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  for (char* at : {live.at() + kBlock, live.at() + 3 * kBlock}) {
    if (at != live.at() + kBlock) Want(IsAll('o', at, kIoBytes), "read before");
    const Pipe quiet;
    quiet.Splice(at);
    const std::string unwritten = quiet.Take();
    Want(IsAll('o', unwritten.data(), kIoBytes), "nobody has written: it is old");
    const Pipe pipe;
    pipe.Splice(at);
    memset(at, 'n', kIoBytes);
    const std::string taken = pipe.Take();
    Want(IsOldOrNew(taken.data(), kIoBytes), "what the pipe gives is old or new");
    pipe.Splice(at);
    Want(IsAll('n', pipe.Take().data(), kIoBytes), "what is put in later is new");
    Want(IsAll('n', at, kIoBytes), "the region");
  }
  Want(IsAll('o', view.at(), view.bytes()) && snapshot.Condition() == "ok", "the snapshot");
}

// A view's pages are live ones until those are written: in a pipe they go on being that.
HOSTMM_CASE(PagesOfAViewInAPipe) {
  Live live;
  memset(live.at(), 'o', live.bytes());
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const View mine(snapshot, kReadWrite);
  for (const View* from : {&view, &mine}) {
    const size_t offset = from == &view ? kBlock : 3 * kBlock;
    const Pipe pipe;
    pipe.Splice(from->at() + offset);
    memset(live.at() + offset, 'n', kIoBytes);
    const std::string taken = pipe.Take();
    Want(IsOldOrNew(taken.data(), kIoBytes), "what the pipe gives is old or new");
    // The view itself has given the pages back.
    Want(IsAll('o', from->at() + offset, kIoBytes), "the view is old");
    pipe.Splice(from->at() + offset);
    memset(live.at() + offset, 'x', kIoBytes);
    Want(IsAll('o', pipe.Take().data(), kIoBytes), "what it puts in now is its own");
  }
  Want(IsAll('o', view.at(), view.bytes()) && IsAll('o', mine.at(), mine.bytes()), "the views");
}

}  // namespace
}  // namespace hostmm::test
