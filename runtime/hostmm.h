// hostmm for C++: shared memory whose page tables and protection are shared by all processes that
// ask for it. A thin layer over the C library (hostmm_c.h), whole in headers, so that it builds
// with the Abseil of the program that includes it. This one brings the others.
//
//   absl::StatusOr<hostmm::Session> session = hostmm::Session::Open();
//   absl::StatusOr<hostmm::Region> pool = session->MapAnonymous(size_t{64} << 20);
//   absl::Status sealed = pool->Protect(hostmm::Protection::kRead);  // in every process
//   absl::StatusOr<hostmm::Snapshot> then = pool->Snapshot();        // while all go on writing
//
// Parts:     hostmm_options.h: what calls are told; hostmm_status.h: errors; hostmm_snapshot.h;
//            Region and Session are here.
// Use:       C++20; absl::status, absl::statusor, absl::strings, and libhostmm.so.1.
// Semantics: docs/semantics.md of the project. Each function names its C function, whose contract
//            in hostmm_c.h holds; where both say nothing, that of Linux's system call of the name.
// Units:     bytes. Offsets count from the start of the region. The granule is 2 MiB (Granule()).
// Errors:    absl::Status, of the code that absl::ErrnoToStatus gives, with the function, its
//            arguments and hostmm_error()'s line; ErrnoOf(status) has the errno. Nothing has been
//            changed then, unless the function says otherwise. Two that are made here: a closed
//            session is kFailedPrecondition (ENOTCONN), a range that is not within the region
//            kOutOfRange (ERANGE).
// Owner:     Session: an attachment of this process. Region: a mapping of this process; it may
//            outlive its Session and is served by the kernel then, with the protection that it has.
// Threads:   different objects: any threads. One object: const functions by several threads at
//            once, others by one alone. What is in the memory is the caller's to synchronise.
// fork:      the child has copies of the objects, its own mappings, and is attached; what it closes
//            or unmaps, it does so for itself.
#ifndef HOSTMM_RUNTIME_HOSTMM_H_
#define HOSTMM_RUNTIME_HOSTMM_H_

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <iterator>
#include <memory>
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
#include "hostmm_snapshot.h"
#include "hostmm_status.h"

namespace hostmm {
// A name of its own in symbols: the pager has classes Session and Region, too.
inline namespace v1 {

// hostmm_granule: address, length and offset of opt-in mappings are multiples of it. Any thread.
inline size_t Granule() { return hostmm_granule(); }

namespace internal {

// One hostmm_open, closed once.
class Attachment {
 public:
  Attachment() = default;
  Attachment(const Attachment&) = delete;
  Attachment& operator=(const Attachment&) = delete;
  ~Attachment() { Close(); }

  bool open() const { return open_.load(std::memory_order_acquire); }
  // RETURNS what hostmm_close returns; -1, ENOTCONN if it has been closed.
  int Close() {
    if (open_.exchange(false, std::memory_order_acq_rel)) return hostmm_close();
    errno = ENOTCONN;
    return -1;
  }

 private:
  std::atomic<bool> open_ = true;
};

template <class Call>
absl::Status Closed(const Call& call) {
  return ErrorOf(ENOTCONN, absl::StrCat(call(), ": the session is closed"));
}

inline std::string Text(const MapOptions& options) {
  return absl::StrCat("share=", Number(options.share), ", protection=", Number(options.protection),
                      ", address=", Text(options.address),
                      ", placement=", Number(options.placement),
                      ", visibility=", Number(options.visibility));
}

inline int FlagsOf(const MapOptions& options) {
  const bool cow = options.share == ShareMode::kCow;
  int flags = cow || options.visibility == Visibility::kPrivate ? MAP_PRIVATE : MAP_SHARED;
  if (cow) flags |= MAP_PRIVATE_COW;
  if (!cow && options.share != ShareMode::kUnshare) flags |= MAP_SHARED_PT;
  if (options.share == ShareMode::kDedicated) flags |= MAP_SHARED_DEDICATED;
  if (options.placement == Placement::kExactly) flags |= MAP_FIXED_NOREPLACE;
  if (options.populate == Populate::kYes) flags |= MAP_POPULATE;
  return flags;
}

// Closes a descriptor at the end of a scope.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace internal

// One mapping of this process, unmapped when the Region goes. An empty Region (default-constructed,
// moved from, unmapped, released) has size 0; its functions that take a range answer kOutOfRange.
class Region {
 public:
  Region() = default;
  Region(Region&& other) noexcept { *this = std::move(other); }
  Region& operator=(Region&& other) noexcept {
    if (this == &other) return *this;
    Drop();
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
    share_ = other.share_;
    attachment_ = std::move(other.attachment_);
    return *this;
  }
  // What munmap refuses (the kernel's limit of mappings, reached by unmapping a part) stays mapped.
  ~Region() { Drop(); }

  bool empty() const { return size_ == 0; }
  std::byte* data() const { return data_; }
  void* address() const { return data_; }
  // As it was asked for; opt-in: a multiple of the granule.
  size_t size() const { return size_; }
  ShareMode share_mode() const { return share_; }
  // All of it. An access against the protection, or behind the end of the file, is the kernel's:
  // SIGSEGV, SIGBUS.
  std::span<std::byte> bytes() const { return {data_, size_}; }

  // As many T as fit, from the start on. What is there is not constructed: T must be a type whose
  // bytes are its value.
  template <class T>
  std::span<T> As() const {
    static_assert(std::is_trivially_copyable_v<T>);
    return {reinterpret_cast<T*>(data_), size_ / sizeof(T)};
  }

  // `count` T at `offset`.
  // ERRORS: kOutOfRange; EINVAL: offset is not aligned for T.
  template <class T>
  absl::StatusOr<std::span<T>> At(size_t offset, size_t count) const {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto call = [&] { return absl::StrCat("Region::At(", offset, ", ", count, ")"); };
    if (count > size_ / sizeof(T)) return OutOfRange(call);
    if (absl::Status status = Within(call, offset, count * sizeof(T)); !status.ok()) return status;
    if (offset % alignof(T) != 0) return internal::ErrorOf(EINVAL, call());
    return std::span<T>(reinterpret_cast<T*>(data_ + offset), count);
  }

  // hostmm_mprotect. Opt-in: when it returns OK, everybody who maps those pages opt-in has the
  // protection, and those who map them later; a mapping of a read-only descriptor does without
  // write. kUnshare: mprotect(2). offset: a multiple of 4 KiB (hugetlb: 2 MiB); length is rounded
  // up. ERRORS: kOutOfRange; closed; EINVAL; EACCES; those after which some may have it and some
  // not: ENOMEM, ETIMEDOUT (a process that is stopped will have it before it does anything else
  // with hostmm); ENOTCONN: the pager is gone.
  absl::Status Protect(size_t offset, size_t length, Protection protection) const {
    const auto call = [&] {
      return absl::StrCat("Region::Protect(", offset, ", ", length, ", ",
                          static_cast<int>(protection), ")");
    };
    if (absl::Status status = Ready(call, offset, length); !status.ok()) return status;
    if (hostmm_mprotect(data_ + offset, length, static_cast<int>(protection)) != 0) {
      return internal::LastError(call);
    }
    return absl::OkStatus();
  }
  absl::Status Protect(Protection protection) const { return Protect(0, size_, protection); }

  // hostmm_madvise, madvise(2): see Advice. offset: as in Protect.
  // ERRORS: kOutOfRange; closed; EINVAL (an advice that is not in the list, guards among them); as
  // madvise.
  absl::Status Advise(size_t offset, size_t length, Advice advice) const {
    const auto call = [&] {
      return absl::StrCat("Region::Advise(", offset, ", ", length, ", ", static_cast<int>(advice),
                          ")");
    };
    if (absl::Status status = Ready(call, offset, length); !status.ok()) return status;
    if (hostmm_madvise(data_ + offset, length, static_cast<int>(advice)) != 0) {
      return internal::LastError(call);
    }
    return absl::OkStatus();
  }
  absl::Status Advise(Advice advice) const { return Advise(0, size_, advice); }

  // hostmm_is_shared: whether the page table that covers `offset` is one that others may share.
  // ERRORS: kOutOfRange; closed; ENOMEM: hostmm does not manage it; ENOTCONN.
  absl::StatusOr<bool> IsShared(size_t offset) const {
    const auto call = [&] { return absl::StrCat("Region::IsShared(", offset, ")"); };
    if (absl::Status status = Ready(call, offset, 1); !status.ok()) return status;
    const int shared = hostmm_is_shared(data_ + offset);
    if (shared < 0) return internal::LastError(call);
    return shared == 1;
  }

  // hostmm_snapshot: the content of the whole file of which this is a mapping, as it is at one
  // moment between the call and its return, while everybody goes on. What is not held: see there.
  // ERRORS: closed; kOutOfRange: the region is empty; ENOMEM: hostmm does not manage it; ENOTSUP:
  // its frames are not the pager's, there is no userfaultfd, or a process that maps it cannot be
  // frozen; ENOSPC: the pager's tables are full; ETIMEDOUT: a process could not be frozen;
  // ENOTCONN.
  absl::StatusOr<hostmm::Snapshot> Snapshot() const {
    const auto call = [] { return "Region::Snapshot()"; };
    if (absl::Status status = Ready(call, 0, 0); !status.ok()) return status;
    const int handle = hostmm_snapshot(data_);
    if (handle < 0) return internal::LastError(call);
    return hostmm::Snapshot(handle);
  }

  // hostmm_mremap, mremap(2), in this process alone. Data and protection stay. length: not 0; the
  // kernel rounds it up to 4 KiB (hugetlb: 2 MiB). Behind the end of the file an access is SIGBUS,
  // as in Linux: an anonymous region's file does not grow. ERRORS: closed; EINVAL; ENOMEM: no room,
  // with kMayNot or at all; EFAULT: a region that grows has parts of different protection.
  absl::Status Resize(size_t length, Move move = Move::kMay) {
    const auto call = [&] {
      return absl::StrCat("Region::Resize(", length, move == Move::kMay ? ", kMay)" : ", kMayNot)");
    };
    if (length == 0) return internal::ErrorOf(EINVAL, call());
    return Remap(call, length, move == Move::kMay ? MREMAP_MAYMOVE : 0, nullptr);
  }

  // hostmm_mremap with MREMAP_FIXED, in this process alone: what is mapped at [address, address +
  // size()) is replaced. address: a multiple of 4 KiB (hugetlb: 2 MiB); page tables are shared
  // again where it is one of the granule. ERRORS: closed; EINVAL: alignment, or it overlaps the
  // region; ENOMEM; EFAULT: parts of the region differ in protection.
  absl::Status MoveTo(void* address) {
    const auto call = [&] { return absl::StrCat("Region::MoveTo(", internal::Text(address), ")"); };
    return Remap(call, size_, MREMAP_MAYMOVE | MREMAP_FIXED, address);
  }

  // Cuts the region in two: this one keeps [0, offset), the result is the rest. The memory is not
  // touched: a part is unmapped by dropping its Region. offset: a multiple of 4 KiB (hugetlb: 2
  // MiB). ERRORS: kOutOfRange (also offset 0 or size()); EINVAL: alignment.
  absl::StatusOr<Region> SplitAt(size_t offset) {
    const auto call = [&] { return absl::StrCat("Region::SplitAt(", offset, ")"); };
    if (offset == 0 || offset >= size_) return OutOfRange(call);
    if (offset % kPage != 0) return internal::ErrorOf(EINVAL, call());
    const size_t rest = size_ - offset;
    size_ = offset;
    return Region(data_ + offset, rest, share_, attachment_);
  }

  // hostmm_munmap, munmap(2), in this process alone; of an empty Region: nothing. Allowed when the
  // session is closed. ERRORS: ENOMEM, as munmap; the Region keeps the mapping.
  absl::Status Unmap() {
    if (empty()) return absl::OkStatus();
    if (hostmm_munmap(data_, size_) != 0) {
      return internal::LastError([] { return "Region::Unmap()"; });
    }
    release();
    return absl::OkStatus();
  }

  // Gives the mapping up to the caller, who unmaps it (hostmm_munmap). The Region is empty then.
  std::span<std::byte> release() {
    const std::span<std::byte> all = bytes();
    data_ = nullptr;
    size_ = 0;
    attachment_.reset();
    return all;
  }

 private:
  friend class Session;
  static constexpr size_t kPage = 4096;

  Region(std::byte* data, size_t size, ShareMode share,
         std::shared_ptr<const internal::Attachment> attachment)
      : data_(data), size_(size), share_(share), attachment_(std::move(attachment)) {}

  void Drop() {
    if (!empty()) hostmm_munmap(data_, size_);
    release();
  }

  template <class Call>
  absl::Status OutOfRange(const Call& call) const {
    return internal::ErrorOf(ERANGE, absl::StrCat(call(), ": the region has ", size_, " bytes"));
  }
  template <class Call>
  absl::Status Within(const Call& call, size_t offset, size_t length) const {
    if (offset > size_ || length > size_ - offset) return OutOfRange(call);
    return absl::OkStatus();
  }
  template <class Call>
  absl::Status Ready(const Call& call, size_t offset, size_t length) const {
    if (empty()) return OutOfRange(call);
    if (!attachment_->open()) return internal::Closed(call);
    return Within(call, offset, length);
  }
  template <class Call>
  absl::Status Remap(const Call& call, size_t length, int flags, void* address) {
    if (absl::Status status = Ready(call, 0, 0); !status.ok()) return status;
    void* moved = hostmm_mremap(data_, size_, length, flags, address);
    if (moved == MAP_FAILED) return internal::LastError(call);
    data_ = static_cast<std::byte*>(moved);
    size_ = length;
    return absl::OkStatus();
  }

  std::byte* data_ = nullptr;
  size_t size_ = 0;
  ShareMode share_ = ShareMode::kUnshare;
  std::shared_ptr<const internal::Attachment> attachment_;
};

// An attachment of this process to a pager; closed when it goes. A process may have several, all to
// one pager. A default-constructed or moved-from Session is closed.
class Session {
 public:
  Session() = default;
  Session(Session&&) noexcept = default;
  Session& operator=(Session&& other) noexcept {
    if (this != &other) {
      Drop();
      attachment_ = std::move(other.attachment_);
    }
    return *this;
  }
  ~Session() { Drop(); }

  // hostmm_open. ERRORS: ECONNREFUSED, ENOENT, EPROTO, EBUSY, ENAMETOOLONG, ECHILD: see there.
  static absl::StatusOr<Session> Open(const Options& options = {}) {
    static constexpr const char* kFrames[] = {"auto", "huge", "hugetlb", "base"};
    const auto call = [&] {
      return absl::StrCat("Session::Open(socket=\"", options.socket, "\", program=\"",
                          options.program, "\", frames=", internal::Number(options.frames), ")");
    };
    const auto frames = static_cast<size_t>(options.frames);
    if (frames >= std::size(kFrames)) return internal::ErrorOf(EINVAL, call());
    hostmm_options raw = {};
    raw.size = sizeof(raw);
    raw.socket = options.socket.empty() ? nullptr : options.socket.c_str();
    raw.program = options.program.empty() ? nullptr : options.program.c_str();
    raw.frames = kFrames[frames];
    if (hostmm_open(&raw) != 0) return internal::LastError(call);
    Session session;
    session.attachment_ = std::make_shared<internal::Attachment>();
    return session;
  }

  bool is_open() const { return attachment_ != nullptr && attachment_->open(); }

  // hostmm_close. Mappings stay, served by the kernel with the protection that they have; the last
  // session of the process makes them plain. Its Regions can only be read, written and unmapped.
  // ERRORS: closed. By any thread, while others use the session: they succeed or find it closed.
  absl::Status Close() {
    const auto call = [] { return "Session::Close()"; };
    if (!is_open()) return internal::Closed(call);
    if (attachment_->Close() != 0) return internal::LastError(call);
    return absl::OkStatus();
  }

  // hostmm_mmap with MAP_ANONYMOUS: zeros. Shared with children that are forked while it is mapped.
  // length: opt-in, a multiple of the granule. kCow: not shared, and a child has a private view of
  // what was there; below 8 MiB, and beyond 16 such mappings, plain private memory.
  // ERRORS: closed; EINVAL: alignment, length 0, kPrivate with write; ENOMEM; EEXIST (kExactly);
  // ENOSPC, EPERM, ENOTCONN: see hostmm_mmap.
  absl::StatusOr<Region> MapAnonymous(size_t length, const MapOptions& options = {}) const {
    const auto call = [&] {
      return absl::StrCat("Session::MapAnonymous(", length, ", ", internal::Text(options), ")");
    };
    return Map(call, -1, 0, length, options, MAP_ANONYMOUS);
  }

  // hostmm_mmap of a file from `offset` on. The descriptor stays the caller's, who may close it.
  // offset and length: opt-in, multiples of the granule. A file that is neither of a tmpfs nor of
  // hugetlbfs stays the kernel's: its protection is shared, its page tables are not.
  // ERRORS: as MapAnonymous; EINVAL: kCow; EBADF; ENODEV: the descriptor has no memory (a socket, a
  // pipe); EACCES: it is read-only and the mapping would be written, or it cannot be read;
  // EOVERFLOW.
  absl::StatusOr<Region> MapFile(int fd, off_t offset, size_t length,
                                 const MapOptions& options = {}) const {
    const auto call = [&] {
      return absl::StrCat("Session::MapFile(", fd, ", ", offset, ", ", length, ", ",
                          internal::Text(options), ")");
    };
    if (options.share == ShareMode::kCow) return internal::ErrorOf(EINVAL, call());
    return Map(call, fd, offset, length, options, 0);
  }

  // hostmm_shm_open with O_CREAT|O_EXCL, and maps it whole: memory of the pager's under a name, for
  // programs that have the same pager. length: rounded up to the granule. mode: permission bits, as
  // of a file (S_IRUSR...). It lives until it is unlinked and unmapped by all, or
  // the pager ends.
  // ERRORS: closed; EEXIST: the name is taken; EINVAL: it is empty, longer than 63 bytes or has a
  // '/', or length is 0; ENOSPC; as MapAnonymous. If it cannot be mapped it has no name either.
  absl::StatusOr<Region> CreateNamed(const std::string& name, size_t length, mode_t mode,
                                     const MapOptions& options = {}) const {
    const auto call = [&] {
      return absl::StrCat("Session::CreateNamed(\"", name, "\", ", length, ", mode=", mode, ", ",
                          internal::Text(options), ")");
    };
    if (!is_open()) return internal::Closed(call);
    const internal::Descriptor file(
        hostmm_shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, mode, length));
    if (file.get() < 0) return internal::LastError(call);
    absl::StatusOr<Region> region = MapWhole(call, file.get(), options);
    if (!region.ok()) hostmm_shm_unlink(name.c_str());
    return region;
  }

  // hostmm_shm_open, and maps it whole. `options.protection` with write wants the right to write.
  // ERRORS: closed; ENOENT: no such name; EACCES; as MapAnonymous.
  absl::StatusOr<Region> OpenNamed(const std::string& name, const MapOptions& options = {}) const {
    const auto call = [&] {
      return absl::StrCat("Session::OpenNamed(\"", name, "\", ", internal::Text(options), ")");
    };
    if (!is_open()) return internal::Closed(call);
    const bool writes = (static_cast<int>(options.protection) & PROT_WRITE) != 0;
    const internal::Descriptor file(
        hostmm_shm_open(name.c_str(), writes ? O_RDWR : O_RDONLY, 0, 0));
    if (file.get() < 0) return internal::LastError(call);
    return MapWhole(call, file.get(), options);
  }

  // hostmm_shm_unlink: removes the name; who maps the memory keeps it.
  // ERRORS: closed; ENOENT; EACCES: neither the owner nor root.
  absl::Status UnlinkNamed(const std::string& name) const {
    const auto call = [&] { return absl::StrCat("Session::UnlinkNamed(\"", name, "\")"); };
    if (!is_open()) return internal::Closed(call);
    if (hostmm_shm_unlink(name.c_str()) != 0) return internal::LastError(call);
    return absl::OkStatus();
  }

 private:
  void Drop() {
    if (attachment_ != nullptr) attachment_->Close();
    attachment_.reset();
  }

  // The whole of a named region, whose length is that of its file.
  template <class Call>
  absl::StatusOr<Region> MapWhole(const Call& call, int fd, const MapOptions& options) const {
    struct stat file = {};
    if (options.share == ShareMode::kCow) return internal::ErrorOf(EINVAL, call());
    if (fstat(fd, &file) != 0) return internal::SystemError(call, "fstat");
    return Map(call, fd, 0, static_cast<size_t>(file.st_size), options, 0);
  }

  template <class Call>
  absl::StatusOr<Region> Map(const Call& call, int fd, off_t offset, size_t length,
                             const MapOptions& options, int more_flags) const {
    if (!is_open()) return internal::Closed(call);
    void* at = hostmm_mmap(options.address, length, static_cast<int>(options.protection),
                           internal::FlagsOf(options) | more_flags, fd, offset);
    if (at == MAP_FAILED) return internal::LastError(call);
    return Region(static_cast<std::byte*>(at), length, options.share, attachment_);
  }

  std::shared_ptr<internal::Attachment> attachment_;
};

// hostmm_image_load: reads an image of a snapshot into the region, checking it. A full image leaves
// zeros where it has nothing; an incremental one leaves the memory as it is (load the earlier ones
// first). fd: at the start of the image, and behind it when this returns OK.
// ERRORS: kOutOfRange: the region is empty; EILSEQ: damaged, or not whole; what was read before
// stays. EFBIG: the image is longer than the region; EINVAL: no image; EBADF, EIO: of read.
inline absl::Status LoadImage(int fd, const Region& region) {
  const auto call = [&] { return absl::StrCat("LoadImage(", fd, ", ", region.size(), " bytes)"); };
  if (region.empty()) return internal::ErrorOf(ERANGE, call());
  if (hostmm_image_load(fd, region.data(), region.size()) != 0) return internal::LastError(call);
  return absl::OkStatus();
}

}  // namespace v1
}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_HOSTMM_H_
