#include "runtime/arena.h"

#include <jemalloc/jemalloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace hostmm {
inline namespace v1 {
namespace {

constexpr size_t kPage = 4096;
constexpr uint64_t kMagic = 0x31'61'6d'6d'74'73'6f'68;  // "hostmma1", little endian

// The first page of the region. Readers take it as hostile input.
struct Header {
  uint64_t magic;
  uint64_t address;  // of the region, in the owner
  std::atomic<uint64_t> root;
};
static_assert(sizeof(Header) <= kPage && std::atomic<uint64_t>::is_always_lock_free);

Header* HeaderOf(const Region& region) { return reinterpret_cast<Header*>(region.data()); }

std::string ControlName(unsigned index, const char* what) {
  return absl::StrCat("arena.", index, ".", what);
}

}  // namespace

// What the hooks know. jemalloc keeps what it has been given once (Dalloc is absent), so a pointer
// that only grows is all the bookkeeping; split and merge need none, since it is one mapping.
struct Arena::Extents {
  extent_hooks_t hooks = {};  // first: the hooks are called with its address
  std::byte* base = nullptr;
  size_t bytes = 0;
  std::atomic<size_t> next = kPage;
  pid_t owner = 0;
  std::atomic<bool> keeps_frames = false;  // no purge now

  static Extents* Of(extent_hooks_t* hooks) { return reinterpret_cast<Extents*>(hooks); }

  static void* Alloc(extent_hooks_t* hooks, void* new_address, size_t size, size_t alignment,
                     bool* zero, bool* commit, unsigned) {
    Extents* self = Of(hooks);
    const auto base = reinterpret_cast<uintptr_t>(self->base);
    size_t old = self->next.load(std::memory_order_relaxed);
    size_t at = 0;
    do {
      at = (base + old + alignment - 1) / alignment * alignment - base;
      if (at > self->bytes || size > self->bytes - at) return nullptr;
      if (new_address != nullptr && new_address != self->base + at) return nullptr;
    } while (!self->next.compare_exchange_weak(old, at + size, std::memory_order_relaxed));
    // The file may have had another life before the arena.
    if (*zero) std::memset(self->base + at, 0, size);
    *commit = true;
    return self->base + at;
  }

  static bool PurgeLazy(extent_hooks_t* hooks, void* address, size_t, size_t offset, size_t length,
                        unsigned) {
    Extents* self = Of(hooks);
    // A forked child has a copy of jemalloc's records of the parent's arena, which are old by now:
    // what is free in them may be in use.
    if (self->owner != getpid() || self->keeps_frames.load(std::memory_order_relaxed)) return true;
    const size_t granule = Granule();
    const auto begin = reinterpret_cast<uintptr_t>(address) + offset;
    const uintptr_t first = (begin + granule - 1) / granule * granule;
    const uintptr_t last = (begin + length) / granule * granule;
    if (first >= last) return true;
    return hostmm_madvise(reinterpret_cast<void*>(first), last - first, MADV_REMOVE) != 0;
  }

  static bool Split(extent_hooks_t*, void*, size_t, size_t, size_t, bool, unsigned) {
    return false;
  }
  static bool Merge(extent_hooks_t*, void*, size_t, void*, size_t, bool, unsigned) { return false; }
};

Arena::Arena(Region region) : region_(std::move(region)), extents_(std::make_unique<Extents>()) {
  extents_->hooks.alloc = &Extents::Alloc;
  extents_->hooks.purge_lazy = &Extents::PurgeLazy;
  extents_->hooks.split = &Extents::Split;
  extents_->hooks.merge = &Extents::Merge;
  extents_->base = region_.data();
  extents_->bytes = region_.size();
  extents_->owner = getpid();
}

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(Region region) {
  const std::string call = absl::StrCat("Arena::Create(", region.size(), " bytes)");
  if (region.size() < Granule()) return internal::ErrorOf(EINVAL, call);
  std::unique_ptr<Arena> arena(new Arena(std::move(region)));
  size_t length = sizeof(arena->index_);
  // Made with the default hooks, which then stay those of its own records (jemalloc 5.3): private
  // memory. Nothing has been allocated from it when ours take over.
  int error = mallctl("arenas.create", &arena->index_, &length, nullptr, 0);
  if (error != 0) return internal::ErrorOf(error, absl::StrCat(call, ": arenas.create"));
  arena->made_ = true;
  extent_hooks_t* hooks = &arena->extents_->hooks;
  error = mallctl(ControlName(arena->index_, "extent_hooks").c_str(), nullptr, nullptr, &hooks,
                  sizeof(hooks));
  if (error != 0) return internal::ErrorOf(error, absl::StrCat(call, ": extent_hooks"));
  arena->TakeRegion();
  auto* header = new (arena->region_.data()) Header;
  header->address = reinterpret_cast<uint64_t>(arena->region_.data());
  header->root.store(0, std::memory_order_relaxed);
  header->magic = kMagic;
  return arena;
}

// Blocks that come from different calls of the hook never become one again (jemalloc 5.3 marks the
// first of each call as a head), so it is given most of the region at once: one allocation as large
// as its size classes allow, a fifth less than the region at worst, freed at once. The rest follows
// on demand.
void Arena::TakeRegion() {
  extents_->keeps_frames.store(true, std::memory_order_relaxed);
  void* most = nullptr;
  for (size_t bytes = region_.size(); most == nullptr && bytes > kPage; bytes -= bytes / 16) {
    most = Allocate(bytes, kPage);
  }
  Deallocate(most);
  // It counts as dirty, and has never been touched.
  Purge();
  extents_->keeps_frames.store(false, std::memory_order_relaxed);
}

Arena::~Arena() {
  if (!made_ || !IsOwner()) return;
  // jemalloc takes what is allocated back first; readers keep it.
  extents_->keeps_frames.store(true, std::memory_order_relaxed);
  mallctl(ControlName(index_, "destroy").c_str(), nullptr, nullptr, nullptr, 0);
}

bool Arena::IsOwner() const { return extents_->owner == getpid(); }

void* Arena::Allocate(size_t bytes, size_t alignment) {
  assert(std::has_single_bit(alignment));
  if (!IsOwner()) return nullptr;
  bytes = std::max<size_t>(bytes, 1);
  // Without the thread's cache: it would hold memory of the arena after its end.
  const int flags = MALLOCX_ARENA(index_) | MALLOCX_TCACHE_NONE | MALLOCX_ALIGN(alignment);
  void* allocated = mallocx(bytes, flags);
  if (allocated != nullptr) return allocated;
  // jemalloc does not cut small blocks from large ones that were freed a short while ago, and would
  // rather map more. Purged ones it does cut.
  Purge();
  return mallocx(bytes, flags);
}

void Arena::Deallocate(void* allocated) {
  if (allocated == nullptr || !IsOwner()) return;
  assert(Contains(allocated));
  dallocx(allocated, MALLOCX_TCACHE_NONE);
}

void Arena::Purge() {
  if (!IsOwner()) return;
  mallctl(ControlName(index_, "purge").c_str(), nullptr, nullptr, nullptr, 0);
}

void Arena::Publish(const void* root) {
  assert(Contains(root));
  HeaderOf(region_)->root.store(reinterpret_cast<uint64_t>(root), std::memory_order_release);
}

bool Arena::Contains(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto base = reinterpret_cast<uintptr_t>(region_.data());
  return at >= base + kPage && at - base < region_.size();
}

absl::StatusOr<Region> OpenArena(const Session& session, const std::string& name) {
  MapOptions options;
  options.protection = Protection::kRead;
  absl::StatusOr<Region> anywhere = session.OpenNamed(name, options);
  if (!anywhere.ok()) return anywhere;
  const Header* header = HeaderOf(*anywhere);
  const uint64_t address = header->address;
  if (header->magic != kMagic || address == 0) {
    return internal::ErrorOf(EINVAL, absl::StrCat("OpenArena(\"", name, "\"): no arena"));
  }
  if (address == reinterpret_cast<uint64_t>(anywhere->data())) return anywhere;
  if (absl::Status status = anywhere->Unmap(); !status.ok()) return status;
  options.address = reinterpret_cast<void*>(address);
  options.placement = Placement::kExactly;
  return session.OpenNamed(name, options);
}

namespace internal {

absl::StatusOr<const void*> RootAddress(const Region& region, size_t bytes, size_t alignment) {
  const auto base = reinterpret_cast<uint64_t>(region.data());
  if (region.size() < kPage || HeaderOf(region)->magic != kMagic ||
      HeaderOf(region)->address != base) {
    return ErrorOf(EINVAL, "RootOf: no arena at its owner's address");
  }
  const uint64_t root = HeaderOf(region)->root.load(std::memory_order_acquire);
  if (root == 0) return absl::NotFoundError("RootOf: nothing is published");
  const bool inside = root >= base + kPage && root - base <= region.size() &&
                      bytes <= region.size() - (root - base);
  if (!inside || root % alignment != 0) {
    return ErrorOf(EINVAL, "RootOf: the root is not in the region");
  }
  return reinterpret_cast<const void*>(root);
}

}  // namespace internal

}  // namespace v1
}  // namespace hostmm
