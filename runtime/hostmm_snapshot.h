// Snapshots of a region: the content of its file at one moment, and mappings of it. hostmm.h brings
// it; Region::Snapshot takes one.
//
//   absl::StatusOr<hostmm::Snapshot> then = pool->Snapshot();  // while all go on writing
//   absl::StatusOr<hostmm::SnapshotView> view = then->Map();
//   absl::Status whole = then->Check();                        // what was read was the snapshot
//
// Semantics, errors, threads: as hostmm.h. Units: bytes.
// Owner: a Snapshot of its descriptor, a SnapshotView of its mapping.
#ifndef HOSTMM_RUNTIME_HOSTMM_SNAPSHOT_H_
#define HOSTMM_RUNTIME_HOSTMM_SNAPSHOT_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
// Beside this file in the tree and where it is installed: hence no path.
#include "hostmm_c.h"
#include "hostmm_options.h"
#include "hostmm_status.h"

namespace hostmm {
inline namespace v1 {

// What there is to know about a snapshot (hostmm_snapshot_info).
struct SnapshotInfo {
  size_t length = 0;        // bytes of the file
  size_t unit = 0;          // bytes that are copied at once
  size_t copied_bytes = 0;  // of pages that were copied for this and other snapshots of the file
  size_t pages_copied = 0;  // pages of 4 KiB that differ from the live memory, so far
  size_t views = 0;         // mappings of it
};

struct ViewOptions {
  size_t offset = 0;  // in the snapshot: a multiple of its unit
  size_t length = 0;  // a multiple of its unit; 0: all from `offset` on
  // kRead, or kReadWrite: changes stay this mapping's own.
  Protection protection = Protection::kRead;
  void* address = nullptr;  // where there is room; else exactly there, or EEXIST
};

class Snapshot;

struct ExportOptions {
  // Of so many bytes of the region so many are done: about ten times a second, and at the end. Runs
  // in the calling thread; must not throw.
  std::function<void(size_t done, size_t total)> progress = {};
  // Goes on behind the last whole record that the file has.
  bool resume = false;
  // Writes only what has changed since that snapshot of the same region; not needed afterwards.
  const Snapshot* earlier = nullptr;
};

// A mapping of a snapshot in this process, unmapped when the SnapshotView goes; it may outlive its
// Snapshot. A forked child has no such mapping. Empty (default-constructed, moved from, unmapped):
// size 0. If the snapshot is lost, or this process closes its last session, an access is SIGBUS.
class SnapshotView {
 public:
  SnapshotView() = default;
  SnapshotView(SnapshotView&& other) noexcept { *this = std::move(other); }
  SnapshotView& operator=(SnapshotView&& other) noexcept {
    if (this == &other) return *this;
    Drop();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  // What munmap refuses stays mapped.
  ~SnapshotView() { Drop(); }

  bool empty() const { return size_ == 0; }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  // All of it. A write to a view that was mapped with kRead is SIGSEGV.
  std::span<std::byte> bytes() const { return {data_, size_}; }
  // As many T as fit, from the start on.
  template <class T>
  std::span<T> As() const {
    static_assert(std::is_trivially_copyable_v<T>);
    return {reinterpret_cast<T*>(data_), size_ / sizeof(T)};
  }

  // hostmm_munmap. ERRORS: ENOMEM, as munmap; the view keeps the mapping.
  absl::Status Unmap() {
    if (empty()) return absl::OkStatus();
    if (hostmm_munmap(data_, size_) != 0) {
      return internal::LastError([] { return "SnapshotView::Unmap()"; });
    }
    data_ = nullptr;
    size_ = 0;
    return absl::OkStatus();
  }

 private:
  friend class Snapshot;
  SnapshotView(std::byte* data, size_t size) : data_(data), size_(size) {}
  void Drop() {
    if (!empty()) hostmm_munmap(data_, size_);
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// The content that a region's file had at one moment: the handle of it, a descriptor, which is
// closed when the Snapshot goes. The snapshot itself goes with the last handle and the last view,
// in whichever process. Region::Snapshot takes one. Empty (default-constructed, moved from,
// released): every function answers EBADF.
class Snapshot {
  // The text of a call, made when it failed.
  static auto Named(const char* name, std::string arguments) {
    return [name, arguments = std::move(arguments)] {
      return absl::StrCat("Snapshot::", name, "(", arguments, ")");
    };
  }

 public:
  Snapshot() = default;
  Snapshot(Snapshot&& other) noexcept : handle_(other.Release()) {}
  Snapshot& operator=(Snapshot&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  ~Snapshot() { Reset(-1); }

  // One that owns a copy of `handle`, a descriptor that was inherited or came from another process;
  // `handle` stays the caller's. ERRORS: EBADF; EMFILE. Whether it is a handle shows at its first
  // use.
  static absl::StatusOr<Snapshot> Duplicate(int handle) {
    const int copy = fcntl(handle, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) {
      return internal::SystemError(
          [&] { return absl::StrCat("Snapshot::Duplicate(", handle, ")"); }, "fcntl");
    }
    return Snapshot(copy);
  }

  bool empty() const { return handle_ < 0; }
  // To be passed to other processes; stays the Snapshot's.
  int handle() const { return handle_; }
  // Gives the handle up to the caller, who closes it. The Snapshot is empty then.
  int Release() { return std::exchange(handle_, -1); }

  // hostmm_snapshot_info. ERRORS: EBADF; EIO: the snapshot is lost, the message says why.
  absl::StatusOr<SnapshotInfo> Info() const {
    struct hostmm_snapshot_info raw = {};
    raw.size = sizeof(raw);
    if (hostmm_snapshot_info(handle_, &raw) != 0) return internal::LastError(Named("Info", ""));
    return SnapshotInfo{raw.length, raw.unit, raw.copied_bytes, raw.pages_copied, raw.views};
  }

  // Whether the snapshot is whole: OK says that everything that has been read of its views before
  // was the snapshot. ERRORS: as Info.
  absl::Status Check() const {
    if (hostmm_snapshot_info(handle_, nullptr) != 0) {
      return internal::LastError(Named("Check", ""));
    }
    return absl::OkStatus();
  }

  // hostmm_snapshot_map, in this process. Pages that nobody has written since are shared with the
  // live region. ERRORS: EBADF; EINVAL: alignment, beyond the end, a protection that is neither
  // kRead nor kReadWrite; ENOMEM; EEXIST; EIO: lost; ENOSPC: the pager's tables are full; EPERM: no
  // agent thread; ENOTCONN: no pager.
  absl::StatusOr<SnapshotView> Map(const ViewOptions& options = {}) const {
    const auto call = Named("Map", absl::StrCat(options.offset, ", ", options.length, ", ",
                                                internal::Number(options.protection), ", ",
                                                internal::Text(options.address)));
    size_t length = options.length;
    if (length == 0) {
      struct hostmm_snapshot_info info = {};
      info.size = sizeof(info);
      if (hostmm_snapshot_info(handle_, &info) != 0) return internal::LastError(call);
      if (options.offset >= info.length) return internal::ErrorOf(EINVAL, call());
      length = info.length - options.offset;
    }
    void* at =
        hostmm_snapshot_map(handle_, options.address, length, static_cast<int>(options.protection),
                            static_cast<off_t>(options.offset));
    if (at == MAP_FAILED) return internal::LastError(call);
    return SnapshotView(static_cast<std::byte*>(at), length);
  }

  // hostmm_snapshot_export: writes an image of the snapshot to `fd`, a file or a pipe, while
  // everybody goes on writing to the region. No fsync. By any thread, also several at once. ERRORS:
  // EBADF; EIO: lost; EINVAL: `earlier` is of another region or not earlier, `resume` on what is no
  // image of this snapshot; those of the write (ENOSPC, EPIPE, EFBIG); ENOTCONN: the pager is gone.
  // What has been written then can be gone on with by `resume`.
  absl::Status ExportTo(int fd, const ExportOptions& options = {}) const {
    const bool bad_earlier = options.earlier != nullptr && options.earlier->empty();
    const auto call =
        Named("ExportTo", absl::StrCat(fd, options.resume ? ", resume" : "",
                                       options.earlier != nullptr ? ", earlier" : ""));
    if (bad_earlier) return internal::ErrorOf(EBADF, call());
    hostmm_export raw = {};
    raw.size = sizeof(raw);
    raw.resume = options.resume ? 1 : 0;
    raw.earlier = options.earlier != nullptr ? options.earlier->handle() : -1;
    if (options.progress) {
      raw.progress = [](void* arg, size_t done, size_t total) noexcept {
        static_cast<const ExportOptions*>(arg)->progress(done, total);
      };
      raw.arg = const_cast<ExportOptions*>(&options);
    }
    if (hostmm_snapshot_export(handle_, fd, &raw) != 0) return internal::LastError(call);
    return absl::OkStatus();
  }

 private:
  friend class Region;
  explicit Snapshot(int handle) : handle_(handle) {}

  void Reset(int handle) {
    if (handle_ >= 0) close(handle_);
    handle_ = handle;
  }

  int handle_ = -1;
};

}  // namespace v1
}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_HOSTMM_SNAPSHOT_H_
