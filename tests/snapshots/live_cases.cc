// What happens to the live region while it has a snapshot: other mappings, other protection, holes,
// forks, exec, and system calls that write into frozen memory.
#include <fcntl.h>
#include <liburing.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

HOSTMM_CASE(ReadOnlyRegionMadeWritable) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  live.Protect(PROT_READ);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  Want(TryWrite(live.at()) == "SIGSEGV/ACCERR", "it cannot be written");
  live.Protect(kReadWrite);
  Stamp(live.at(), live.bytes(), 2);
  Want(IsStamped(view.at(), view.bytes(), 1), "what is written afterwards is not in the snapshot");
  Want(IsStamped(live.at(), live.bytes(), 2), "it is in the region");
}

HOSTMM_CASE(ProtectedAndBackWhileFrozen) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const size_t half = live.bytes() / 2;
  Stamp(live.at(), half, 2);
  live.Protect(PROT_READ);
  Want(TryWrite(live.at()) == "SIGSEGV/ACCERR" && TryWrite(live.at() + half) == "SIGSEGV/ACCERR",
       "a frozen page that is protected is the program's signal");
  live.Protect(PROT_NONE);
  Want(TryRead(live.at()) == "SIGSEGV/ACCERR", "so is reading");
  live.Protect(kReadWrite);
  Want(IsStamped(live.at(), half, 2) && IsStamped(live.at() + half, half, 1), "nothing was lost");
  Stamp(live.at(), live.bytes(), 3);
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot");
}

HOSTMM_CASE(NewMapperWhileFrozen) {
  if (TheKind() != Kind::kNamed) return Skip("needs a name");
  Live live;
  Partner other;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const int64_t done = other.Do([name = live.name(), bytes = live.bytes(), old = live.at()] {
    MUST(hostmm_munmap(old, bytes) == 0);
    const int file = hostmm_shm_open(name, O_RDWR, 0, 0);
    MUST(file >= 0);
    void* at = hostmm_mmap(nullptr, bytes, kReadWrite, MAP_SHARED | MAP_SHARED_PT, file, 0);
    MUST(at != MAP_FAILED);
    close(file);
    char* mine = static_cast<char*>(at);
    const bool right = IsStamped(mine, bytes / 2, 1);
    Stamp(mine, bytes, 2);
    return right && hostmm_munmap(at, bytes) == 0;
  });
  Want(done == 1, "it reads and writes the region");
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot is what it was");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region is not");
}

HOSTMM_CASE(SecondWindowWhileFrozen) {
  if (TheKind() != Kind::kNamed) return Skip("needs a name");
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const int file = hostmm_shm_open(live.name(), O_RDWR, 0, 0);
  MUST(file >= 0);
  const size_t half = live.bytes() / 2;
  void* at = hostmm_mmap(nullptr, half, kReadWrite, MAP_SHARED | MAP_SHARED_PT, file,
                         static_cast<off_t>(half));
  MUST(at != MAP_FAILED);
  close(file);
  char* window = static_cast<char*>(at);
  Stamp(window, half, 2);
  Stamp(live.at(), half, 3);
  const View view(snapshot);
  Want(IsStamped(view.at(), view.bytes(), 1), "both windows are watched");
  Want(IsStamped(live.at() + half, half, 2), "they are one memory");
  MUST(hostmm_munmap(at, half) == 0);
}

HOSTMM_CASE(MovedWhileFrozen) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const size_t half = live.bytes() / 2;
  Stamp(live.at(), half / 2, 2);
  // Of the same place in a block, so that it is managed there; and grown on the way, where the
  // kernel can.
  const size_t room = 3 * live.bytes();
  void* hole = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(hole != MAP_FAILED);
  void* to =
      reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(hole) + kBlock - 1) & ~(kBlock - 1));
  const int how = MREMAP_MAYMOVE | MREMAP_FIXED;
  const size_t grown = OnHugetlb() ? live.bytes() : 2 * live.bytes();
  void* moved = hostmm_mremap(live.at(), live.bytes(), grown, how, to);
  MUST(moved == to);
  if (grown > live.bytes()) MUST(hostmm_mremap(to, grown, live.bytes(), 0, nullptr) == to);
  live.IsAt(static_cast<char*>(moved));
  Stamp(live.at(), live.bytes(), 3);
  Want(IsStamped(view.at(), view.bytes(), 1), "what is written at the new address is seen");
  Want(IsStamped(live.at(), live.bytes(), 3), "the region has it");
}

HOSTMM_CASE(PartUnmappedWhileFrozen) {
  Live live;
  Partner other;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const size_t half = live.bytes() / 2;
  const int64_t left = other.Do([at = live.at(), half] {
    MUST(hostmm_munmap(at, half) == 0);
    Stamp(at + half, half, 2);
    return TryRead(at) == "SIGSEGV/MAPERR";
  });
  Want(left == 1, "the other has half of it");
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot");
  Stamp(live.at(), half, 2);
  Want(IsStamped(view.at(), view.bytes(), 1) && IsStamped(live.at(), live.bytes(), 2), "and all");
}

HOSTMM_CASE(RemovedWhileFrozen) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View early(snapshot);
  const size_t quarter = live.bytes() / 4;
  Want(IsStamped(early.at(), quarter / 2, 1), "a part is mapped in a view");
  Stamp(live.at() + quarter / 2, Unit(), 2);
  const int removed = hostmm_madvise(live.at(), quarter, MADV_REMOVE);
  if (!Want(removed == 0, "MADV_REMOVE: %s", Outcome(removed))) return;
  Want(IsZero(live.at(), quarter), "the region has zeros");
  Want(IsStamped(early.at(), early.bytes(), 1), "the snapshot has what was there");
  Stamp(live.at(), quarter, 3);
  const View late(snapshot);
  Want(IsStamped(late.at(), late.bytes(), 1), "also in a later view");
  Want(IsStamped(live.at(), quarter, 3), "the region is written again");
}

// The copy of a block is on its way when nobody needs it any more, and is done when a later
// snapshot does: what was removed in between must not come back with it. (Only of 2 MiB frames: a
// page is copied at once.)
HOSTMM_CASE(RemovedWhileItIsCopied) {
  if (!OnHugetlb()) return Skip("a page is copied at once");
  constexpr size_t kRounds = 100;
  constexpr size_t kBlocks = kLiveBytes / kBlock;
  Live live;
  std::array<Partner, kBlocks> writers;
  memset(live.at(), 1, live.bytes());
  // Of another moment: memory for copies goes with the last snapshot that has one.
  const Snapshot keeper(live.at());
  size_t wrong = 0;
  for (size_t round = 0; round < kRounds; ++round) {
    memset(live.at(), 1, live.bytes());
    auto needed = std::make_unique<Snapshot>(live.at());
    for (size_t i = 0; i < kBlocks; ++i) {
      writers[i].Start([at = live.at() + i * kBlock] {
        *at = 2;
        return 0;
      });
      // The first block is under way before others ask for the processors.
      if (i == 0) std::this_thread::sleep_for(std::chrono::microseconds(round * 5));
    }
    needed.reset();
    // The pager has heard of the closed handle before it hears of the call.
    keeper.Info();
    keeper.Info();
    MUST(hostmm_madvise(live.at(), kBlock, MADV_REMOVE) == 0);
    const Snapshot later(live.at());
    for (const Partner& writer : writers) writer.Await();
    const View view(later);
    for (size_t i = 1; i < kBlock; i += kPage) wrong += view.at()[i] != 0;
  }
  Want(wrong == 0, "%zu pages in %zu snapshots have what had been removed", wrong, kRounds);
}

// Somewhere in MADV_REMOVE, of whose end the pager has not heard: what the kernel takes away no
// snapshot misses.
HOSTMM_CASE(RemoverIsStopped) {
  constexpr int kRounds = 8;
  Live live;
  auto* const over = SharedCounters<std::atomic<int>>();
  Partner other;
  int refused = 0;
  int lost = 0;
  for (int round = 0; round < kRounds; ++round) {
    *over = 0;
    other.Start([at = live.at(), bytes = live.bytes(), over] {
      int failed = 0;
      while (*over == 0) failed += hostmm_madvise(at, bytes, MADV_REMOVE) != 0 ? 1 : 0;
      return failed;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(1 + round));
    other.Stop();
    const int handle = hostmm_snapshot(live.at());
    const int error = errno;
    other.Continue();
    *over = 1;
    MUST(other.Await() == 0 && (handle >= 0 || error == EAGAIN));
    if (handle < 0) {
      ++refused;
      continue;
    }
    lost += hostmm_snapshot_info(handle, nullptr) != 0 ? 1 : 0;
    close(handle);
  }
  Want(lost == 0 && refused > 0, "%d of %d were not taken, %d were lost", refused, kRounds, lost);
}

HOSTMM_CASE(RemovedAtTheLimitOfDescriptors) {
  const Live live;
  Stamp(live.at(), live.bytes(), 1);
  Partner other;
  const int64_t removed = other.Do([at = live.at(), bytes = live.bytes()] {
    rlimit limit = {};
    MUST(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    const rlimit none = {0, limit.rlim_max};
    MUST(setrlimit(RLIMIT_NOFILE, &none) == 0);
    const int result = hostmm_madvise(at, bytes, MADV_REMOVE);
    MUST(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    return result;
  });
  Want(removed == 0 && IsZero(live.at(), live.bytes()), "it is removed");
  Want(other.Do([at = live.at()] { return hostmm_snapshot(at); }) >= 0, "and stays with hostmm");
}

HOSTMM_CASE(DroppedWhileFrozen) {
  Live live;
  Partner other;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  Stamp(live.at(), live.bytes() / 2, 2);
  // A vote on opt-in memory; on plain memory this process's own matter.
  const auto drop = [at = live.at(), bytes = live.bytes()] {
    return hostmm_madvise(at, bytes, MADV_DONTNEED);
  };
  Want(drop() == 0 && other.Do(drop) == 0, "both drop it");
  const size_t half = live.bytes() / 2;
  Want(IsStamped(live.at(), half, 2) && IsStamped(live.at() + half, half, 1), "data stays");
  Stamp(live.at(), live.bytes(), 3);
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot is what it was");
}

HOSTMM_CASE(ForkedWhileFrozen) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const size_t quarter = live.bytes() / 4;
  const int ended = InChild([&] {
    Stamp(live.at(), quarter, 2);
    return InChild([&] {
      Stamp(live.at() + quarter, quarter, 2);
      return 0;
    });
  });
  Want(ended == 0, "a child and its child write");
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot");
  Stamp(live.at() + 2 * quarter, 2 * quarter, 2);
  Want(IsStamped(view.at(), view.bytes(), 1), "when the parent writes, too");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region");
}

// A child that is forked during a snapshot writes after its end, and during the next one.
HOSTMM_CASE(ForkedBetweenSnapshots) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  std::vector<Partner*> children;
  for (uint64_t round = 1; round <= 4; ++round) {
    const Snapshot snapshot(live.at());
    children.push_back(new Partner());
    bool right = true;
    for (Partner* child : children) {
      child->Do([at = live.at(), bytes = live.bytes(), seed = 10 * round + 1] {
        Stamp(at, bytes, seed);
        return 0;
      });
    }
    const View view(snapshot);
    right = IsStamped(view.at(), view.bytes(), round == 1 ? 1 : 10 * (round - 1) + 1);
    Want(right, "round %d", static_cast<int>(round));
  }
  for (Partner* child : children) {
    child->Do([at = live.at(), bytes = live.bytes()] {
      Stamp(at, bytes, 99);
      return 0;
    });
    delete child;
  }
  Want(Eventually([&] { return IsNative(live.at()); }), "nothing is tracked in the end");
}

HOSTMM_PEER(write_named) {
  Attach();
  const int file = hostmm_shm_open(words[0].c_str(), O_RDWR, 0, 0);
  MUST(file >= 0);
  void* at = hostmm_mmap(nullptr, kLiveBytes, kReadWrite, MAP_SHARED | MAP_SHARED_PT, file, 0);
  MUST(at != MAP_FAILED);
  Stamp(static_cast<char*>(at), kLiveBytes, 2);
  return 0;
}

// A writer execs a program that maps the region anew and writes.
HOSTMM_CASE(ExecOfAWriterWhileFrozen) {
  if (TheKind() != Kind::kNamed) return Skip("needs a name");
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const int ended = WaitFor(StartPeer("write_named", {live.name()}));
  Want(ended == 0, "the program ended with %d", ended);
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot is what it was");
  Want(IsStamped(live.at(), live.bytes(), 2), "the region is what it has written");
}

// ---- System calls that write into frozen memory.

constexpr size_t kIoBytes = 64 * kKib;

// RETURNS whether `transfer` puts kIoBytes of 'n' at a place that has been frozen, once where
// nothing has touched it since, once where it has been read.
template <class Transfer>
void WantWritten(const char* call, Transfer transfer) {
  Live live;
  memset(live.at(), 'o', live.bytes());
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  char* unread = live.at() + kBlock;
  char* read = live.at() + 3 * kBlock;
  Want(std::string(read, kIoBytes) == std::string(kIoBytes, 'o'), "%s: read before", call);
  const std::string fresh(kIoBytes, 'n');
  for (char* at : {unread, read}) {
    const long got = transfer(at);
    Want(got == static_cast<long>(kIoBytes), "%s transfers %ld: %s", call, got,
         got < 0 ? ErrnoName(errno) : "ok");
    Want(memcmp(at, fresh.data(), kIoBytes) == 0, "%s: the region has it", call);
  }
  const std::string old(view.bytes(), 'o');
  Want(memcmp(view.at(), old.data(), view.bytes()) == 0, "%s: the snapshot has not", call);
}

// A file of kIoBytes of 'n'; -1: it cannot be opened so.
int OpenFresh(int more_flags) {
  const char* folder = getenv("TEST_TMPDIR");
  std::string path = std::string(folder != nullptr ? folder : "/tmp") + "/fresh.XXXXXX";
  const int file = mkstemp(path.data());
  MUST(file >= 0);
  const std::string fresh(kIoBytes, 'n');
  MUST(write(file, fresh.data(), kIoBytes) == static_cast<long>(kIoBytes) && fsync(file) == 0);
  close(file);
  const int again = open(path.c_str(), O_RDONLY | more_flags);
  unlink(path.c_str());
  return again;
}

HOSTMM_CASE(PreadIntoFrozen) {
  const int file = OpenFresh(0);
  WantWritten("pread", [file](char* at) { return pread(file, at, kIoBytes, 0); });
}

HOSTMM_CASE(DirectReadIntoFrozen) {
  const int file = OpenFresh(O_DIRECT);
  if (file < 0) return Skip("no O_DIRECT where temporary files are");
  WantWritten("pread with O_DIRECT", [file](char* at) { return pread(file, at, kIoBytes, 0); });
}

HOSTMM_CASE(RecvIntoFrozen) {
  int ends[2];
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  WantWritten("recv", [&ends](char* at) {
    const std::string fresh(kIoBytes, 'n');
    MUST(send(ends[0], fresh.data(), kIoBytes, 0) == static_cast<long>(kIoBytes));
    return recv(ends[1], at, kIoBytes, MSG_WAITALL);
  });
}

HOSTMM_CASE(ReadvIntoFrozen) {
  const int file = OpenFresh(0);
  WantWritten("preadv", [file](char* at) {
    const iovec parts[] = {{at, kIoBytes / 2}, {at + kIoBytes / 2, kIoBytes / 2}};
    return preadv(file, parts, 2, 0);
  });
}

// The same memory written by another process's system call (process_vm_writev).
HOSTMM_CASE(WrittenByAnotherProcess) {
  WantWritten("process_vm_writev", [](char* at) -> long {
    const pid_t writer = getpid();
    long* result = SharedCounters<long>();
    const int ended = InChild([&] {
      std::string fresh(kIoBytes, 'n');
      const iovec from = {fresh.data(), kIoBytes};
      const iovec to = {at, kIoBytes};
      *result = process_vm_writev(writer, &from, 1, &to, 1, 0);
      return 0;
    });
    return ended == 0 ? *result : -1;
  });
}

HOSTMM_CASE(IoUringReadIntoFrozen) {
  io_uring ring;
  if (io_uring_queue_init(4, &ring, 0) != 0) return Skip("no io_uring");
  const int file = OpenFresh(0);
  WantWritten("io_uring read", [&ring, file](char* at) -> long {
    io_uring_sqe* entry = io_uring_get_sqe(&ring);
    io_uring_prep_read(entry, file, at, kIoBytes, 0);
    MUST(io_uring_submit(&ring) == 1);
    io_uring_cqe* done = nullptr;
    MUST(io_uring_wait_cqe(&ring, &done) == 0);
    const long got = done->res;
    io_uring_cqe_seen(&ring, done);
    if (got < 0) errno = static_cast<int>(-got);
    return got < 0 ? -1 : got;
  });
  io_uring_queue_exit(&ring);
}

// A system call that reads a view, and one that would write to it.
HOSTMM_CASE(SystemCallsOnViews) {
  Live live;
  Fill(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const View mine(snapshot, kReadWrite);
  Stamp(live.at(), live.bytes() / 2, 2);
  int ends[2];
  MUST(pipe(ends) == 0);
  std::string got(kPage, 0);
  for (const size_t offset : {size_t{0}, live.bytes() / 2}) {
    MUST(write(ends[1], view.at() + offset, kPage) == static_cast<long>(kPage));
    MUST(read(ends[0], got.data(), kPage) == static_cast<long>(kPage));
    Want(memcmp(got.data(), view.at() + offset, kPage) == 0, "written out of a view");
    MUST(write(ends[1], got.data(), kPage) == static_cast<long>(kPage));
    WantErrno(read(ends[0], view.at() + offset, kPage), EFAULT, "read into a view");
    MUST(read(ends[0], mine.at() + offset, kPage) == static_cast<long>(kPage));
    Want(memcmp(got.data(), mine.at() + offset, kPage) == 0, "read into a private view");
  }
  Want(Holds(mine.at(), mine.bytes(), 1), "a private view is the snapshot");
}

}  // namespace
}  // namespace hostmm::test
