// Arena: malloc in a Region, for C++ containers in shared memory.
//
//   absl::StatusOr<std::unique_ptr<hostmm::Arena>> arena =
//   hostmm::Arena::Create(std::move(region)); std::vector<int, hostmm::ArenaAllocator<int>>
//   squares(arena->get());
//
// Memory:   jemalloc manages the region's extents; every byte that it gives out lies in the region.
//           Its own records lie outside, in private memory: they hold locks, which a fork would
//           tear if they were shared, and which must be writable while the region is not. The first
//           page of the region is the header (Publish).
// Owner:    the process that calls Create. It alone allocates and frees; others read, at the same
//           address: children that it forks, and programs that map the region there (OpenArena).
//           Nothing in an Arena stops them from writing: protection does (Region::Protect).
// Pointers: as they are, so they hold in all who map the region at the owner's address. What has a
//           virtual table or points out of the region is right in forked children only.
// Threads:  Allocate, Deallocate, Purge, Publish: any thread of the owner. Between the owner and
//           its readers nothing is synchronised but Publish and RootOf.
// Errors:   no room: nullptr, or std::bad_alloc from ArenaAllocator; never memory from elsewhere.
// Linking:  brings libjemalloc into the program, and with it jemalloc's malloc.
#ifndef HOSTMM_RUNTIME_ARENA_H_
#define HOSTMM_RUNTIME_ARENA_H_

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/status/statusor.h"
#include "runtime/hostmm.h"

namespace hostmm {
inline namespace v1 {

class Arena {
 public:
  // REQUIRES: `region` is mapped shared and can be written; what is in it is lost.
  // ERRORS: EINVAL: it is smaller than a granule; EAGAIN, ENOMEM: jemalloc has no arena left. The
  // region is unmapped then.
  static absl::StatusOr<std::unique_ptr<Arena>> Create(Region region);

  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  // Unmaps the region in this process. What others have mapped stays, with its content.
  ~Arena();

  // Does not touch the memory, which may be protected now. bytes: 0 counts as 1. alignment: a power
  // of two. RETURNS nullptr if there is no room, and in a process that is not the owner.
  void* Allocate(size_t bytes, size_t alignment = alignof(std::max_align_t));
  // nullptr, and any pointer in a process that is not the owner: nothing happens.
  // REQUIRES: `allocated` came from this arena's Allocate and has not been freed.
  void Deallocate(void* allocated);

  // Allocates and constructs; throws std::bad_alloc, and what the constructor throws. Nothing
  // destroys it: what is shared with readers may be read as long as the region is mapped.
  template <class T, class... Args>
  T* New(Args&&... args) {
    void* place = Allocate(sizeof(T), alignof(T));
    if (place == nullptr) throw std::bad_alloc();
    try {
      return new (place) T(std::forward<Args>(args)...);
    } catch (...) {
      Deallocate(place);
      throw;
    }
  }

  // Gives the frames of free memory back: whole granules only, since a hole in a granule would turn
  // one page-table entry into 512 in every process. jemalloc does so by itself, 10 s after they
  // were freed, when the arena is used. Readers of freed memory then see zeros.
  void Purge();

  // Says where a reader begins (RootOf): `root` was made by this arena, and all that it leads to is
  // written. A later call replaces it.
  void Publish(const void* root);

  bool Contains(const void* address) const;
  const Region& region() const { return region_; }

 private:
  struct Extents;

  explicit Arena(Region region);
  void TakeRegion();
  bool IsOwner() const;

  Region region_;
  std::unique_ptr<Extents> extents_;
  unsigned index_ = 0;  // jemalloc's
  bool made_ = false;
};

// Standard allocator over an Arena, which must outlive it. Containers keep a pointer to the arena
// beside their data: readers must not change them.
template <class T>
class ArenaAllocator {
 public:
  using value_type = T;
  using propagate_on_container_copy_assignment = std::true_type;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;

  // Implicit, as a container is made from a memory resource in the standard library.
  ArenaAllocator(Arena* arena) noexcept : arena_(arena) {}
  template <class U>
  ArenaAllocator(const ArenaAllocator<U>& other) noexcept : arena_(other.arena()) {}

  T* allocate(size_t count) {
    if (count > std::numeric_limits<size_t>::max() / sizeof(T)) throw std::bad_array_new_length();
    void* place = arena_->Allocate(count * sizeof(T), alignof(T));
    if (place == nullptr) throw std::bad_alloc();
    return static_cast<T*>(place);
  }
  void deallocate(T* allocated, size_t) noexcept { arena_->Deallocate(allocated); }

  Arena* arena() const { return arena_; }
  template <class U>
  friend bool operator==(const ArenaAllocator& a, const ArenaAllocator<U>& b) {
    return a.arena() == b.arena();
  }

 private:
  Arena* arena_;
};

// Maps the named region that another process has made an Arena of: read-only, at the owner's
// address. ERRORS: as Session::OpenNamed; EINVAL: there is no Arena in it; EEXIST: something else
// is mapped at that address in this process.
absl::StatusOr<Region> OpenArena(const Session& session, const std::string& name);

namespace internal {
// The published address in `region`, if [address, address + bytes) lies in it.
absl::StatusOr<const void*> RootAddress(const Region& region, size_t bytes, size_t alignment);
}  // namespace internal

// What the owner has published in `region`. The caller says what type it is; only that it lies in
// the region is checked.
// ERRORS: EINVAL: no Arena, or not at the owner's address, or a wrong pointer; kNotFound: nothing
// is published.
template <class T>
absl::StatusOr<const T*> RootOf(const Region& region) {
  absl::StatusOr<const void*> root = internal::RootAddress(region, sizeof(T), alignof(T));
  if (!root.ok()) return root.status();
  return static_cast<const T*>(*root);
}

}  // namespace v1
}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_ARENA_H_
