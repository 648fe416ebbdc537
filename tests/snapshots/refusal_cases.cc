// Every errno that hostmm_c.h names for snapshots, as far as a program can bring it about.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

long MapResult(int handle, void* addr, size_t length, int prot, off_t offset) {
  void* at = hostmm_snapshot_map(handle, addr, length, prot, offset);
  if (at == MAP_FAILED) return -1;
  hostmm_munmap(at, length);
  return 0;
}

HOSTMM_CASE(TakeRefusals) {
  Live live;
  int local = 0;
  WantErrno(hostmm_snapshot(&local), ENOMEM, "of the stack");
  WantErrno(hostmm_snapshot(nullptr), ENOMEM, "of nothing");
  WantErrno(hostmm_snapshot(live.at() + live.bytes()), ENOMEM, "behind the region");
  // A file of the program's own.
  const int file = memfd_create("own", 0);
  MUST(file >= 0 && ftruncate(file, kLiveBytes) == 0);
  void* adopted = hostmm_mmap(nullptr, kLiveBytes, kReadWrite, MAP_SHARED | MAP_SHARED_PT, file, 0);
  MUST(adopted != MAP_FAILED);
  WantErrno(hostmm_snapshot(adopted), ENOTSUP, "of a memfd");
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const View mine(snapshot, kReadWrite);
  WantErrno(hostmm_snapshot(view.at()), ENOTSUP, "of a view");
  WantErrno(hostmm_snapshot(mine.at()), ENOTSUP, "of a private-writable view");
}

HOSTMM_CASE(InfoRefusals) {
  Live live;
  const Snapshot snapshot(live.at());
  SnapshotInfo info = {};
  info.size = sizeof(info) - 1;
  WantErrno(hostmm_snapshot_info(snapshot.handle(), &info), EINVAL, "a wrong size");
  Want(hostmm_snapshot_info(snapshot.handle(), nullptr) == 0, "without room for an answer");
  WantErrno(hostmm_snapshot_info(-1, nullptr), EBADF, "no descriptor");
  int ends[2];
  MUST(pipe(ends) == 0);
  WantErrno(hostmm_snapshot_info(ends[0], nullptr), EBADF, "a pipe");
  WantErrno(hostmm_snapshot_info(STDOUT_FILENO, nullptr), EBADF, "standard output");
  MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  WantErrno(hostmm_snapshot_info(ends[0], nullptr), EBADF, "a stream socket");
  SnapshotInfo good = {};
  good.size = sizeof(good);
  Want(hostmm_snapshot_info(snapshot.handle(), &good) == 0 && good.length == live.bytes(),
       "the handle is still good");
}

HOSTMM_CASE(MapRefusals) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  const Snapshot snapshot(live.at());
  const int handle = snapshot.handle();
  const size_t bytes = live.bytes();
  const auto end = static_cast<off_t>(bytes);
  WantErrno(MapResult(handle, nullptr, bytes, PROT_NONE, 0), EINVAL, "PROT_NONE");
  WantErrno(MapResult(handle, nullptr, bytes, PROT_WRITE, 0), EINVAL, "PROT_WRITE alone");
  WantErrno(MapResult(handle, nullptr, bytes, PROT_READ | PROT_EXEC, 0), EINVAL, "PROT_EXEC");
  WantErrno(MapResult(handle, nullptr, 0, PROT_READ, 0), EINVAL, "nothing");
  WantErrno(MapResult(handle, nullptr, bytes, PROT_READ, static_cast<off_t>(Unit())), EINVAL,
            "more than there is");
  WantErrno(MapResult(handle, nullptr, Unit(), PROT_READ, end), EINVAL, "behind its end");
  WantErrno(MapResult(handle, nullptr, Unit(), PROT_READ, static_cast<off_t>(Unit() / 2)), EINVAL,
            "half a unit of offset");
  WantErrno(MapResult(handle, nullptr, Unit() / 2, PROT_READ, 0), EINVAL, "half a unit of length");
  WantErrno(MapResult(handle, reinterpret_cast<void*>(Unit() * 1000 + 8), Unit(), PROT_READ, 0),
            EINVAL, "an address in a page");
  WantErrno(MapResult(handle, nullptr, SIZE_MAX & ~(kBlock - 1), PROT_READ, 0), ENOMEM,
            "all memory there is");
  WantErrno(MapResult(handle, live.at(), bytes, PROT_READ, 0), EEXIST, "a place that is taken");
  WantErrno(MapResult(-1, nullptr, bytes, PROT_READ, 0), EBADF, "no descriptor");
  int ends[2];
  MUST(pipe(ends) == 0);
  WantErrno(MapResult(ends[0], nullptr, bytes, PROT_READ, 0), EBADF, "a pipe");
  MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
  WantErrno(MapResult(ends[0], nullptr, bytes, PROT_READ, 0), EBADF, "another socket");
  // None of it has changed anything.
  const View view(snapshot);
  Stamp(live.at(), live.bytes(), 2);
  Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot is good");
}

// Who has not attached, or no longer is.
HOSTMM_CASE(NotAttached) {
  if (TheKind() == Kind::kPlain) return Skip("hostmm_close does not end what `hostmm run` began");
  Live live;
  Partner other;
  const Snapshot snapshot(live.at());
  const int handle = other.Give(snapshot.handle());
  Want(snapshot.Condition() == "ok", "it is whole");
  // It has never mapped the region as long as it lives: it leaves nobody behind who writes.
  const int64_t taken = other.Do([at = live.at(), bytes = live.bytes()] {
    hostmm_munmap(at, bytes);
    MUST(hostmm_close() == 0);
    return hostmm_snapshot(at) == -1 ? errno : 0;
  });
  Want(taken == ENOTCONN || taken == ENOMEM, "hostmm_snapshot when it is closed: %s",
       ErrnoName(static_cast<int>(taken)));
  Want(other.Do([handle] { return hostmm_snapshot_info(handle, nullptr); }) == 0,
       "a handle can be asked without an attachment");
  Want(snapshot.Condition() == "ok", "who has left and mapped nothing harms nobody");
}

// It unmaps the region and leaves before the pager has heard of either: the views of others, which
// it would wait 10 s for, are no business of its.
HOSTMM_CASE(LeavingTakesNoTime) {
  if (TheKind() == Kind::kPlain) return Skip("hostmm_close does not end what `hostmm run` began");
  Live live;
  std::array<Partner, 12> others;
  const Snapshot snapshot(live.at());
  const View view(snapshot);
  const auto start = std::chrono::steady_clock::now();
  for (Partner& other : others) {
    other.Do([at = live.at(), bytes = live.bytes()] {
      MUST(hostmm_munmap(at, bytes) == 0 && hostmm_close() == 0);
      return 0;
    });
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  Want(took.count() < 5, "twelve processes have left after %.2f s", took.count());
  Want(snapshot.Condition() == "ok", "it is whole");
}

// More snapshots than descriptors at once; when they are closed, all is as before.
HOSTMM_CASE(ManyHandles) {
  Live live;
  Stamp(live.at(), live.bytes(), 1);
  std::vector<int> handles;
  for (int i = 0; i < 200; ++i) {
    const int handle = hostmm_snapshot(live.at());
    if (handle < 0) break;
    handles.push_back(handle);
  }
  Want(handles.size() == 200, "%zu snapshots: %s", handles.size(), hostmm_error());
  Stamp(live.at(), live.bytes(), 2);
  SnapshotInfo info = {};
  info.size = sizeof(info);
  MUST(hostmm_snapshot_info(handles.front(), &info) == 0);
  Want(info.copied_bytes == live.bytes(), "one copy for all: %zu", info.copied_bytes);
  {
    const View first(handles.front());
    const View last(handles.back());
    Want(IsStamped(first.at(), first.bytes(), 1) && IsStamped(last.at(), last.bytes(), 1),
         "the first and the last show it");
  }
  for (const int handle : handles) close(handle);
  Want(Eventually([&] { return IsNative(live.at()); }), "nothing is tracked in the end");
}

}  // namespace
}  // namespace hostmm::test
