#include "runtime/backing.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/sys_error.h"
#include "runtime/uapi_compat.h"

namespace hostmm {
namespace {

struct View {
  Mapping mapping;
  std::byte* base = nullptr;
};

// Maps the file 2 MiB-aligned: file offset 0 at a block boundary, so that blocks can be mapped huge
// here too.
absl::StatusOr<View> MapAligned(int file, uint64_t bytes) {
  View view;
  const uint64_t span = bytes + kBlockSize;
  view.mapping = Mapping(
      mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), span);
  if (!view.mapping.ok()) return SysError(absl::StrCat("mmap(reserve ", span, ")"));
  const auto start = reinterpret_cast<uintptr_t>(view.mapping.data());
  const uintptr_t aligned = (start + kBlockSize - 1) / kBlockSize * kBlockSize;
  view.base = view.mapping.data() + (aligned - start);
  if (mmap(view.base, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
      MAP_FAILED) {
    return SysError(absl::StrCat("mmap(frames, ", bytes, ")"));
  }
  return view;
}

Backing::FillResult Populate(std::byte* start, uint64_t bytes) {
  for (;;) {
    if (madvise(start, bytes, MADV_POPULATE_WRITE) == 0) return Backing::FillResult::kDone;
    if (errno == EINTR || errno == EAGAIN) continue;
    // EFAULT is a full tmpfs (a touch would raise SIGBUS), ENOMEM no memory.
    return errno == EFAULT || errno == ENOMEM ? Backing::FillResult::kOutOfFrames
                                              : Backing::FillResult::kRefused;
  }
}

bool AnyByteSet(const uint64_t* words, size_t count) {
  uint64_t seen = 0;
  for (size_t i = 0; i < count; ++i) seen |= words[i];
  return seen != 0;
}

}  // namespace

absl::StatusOr<Backing> Backing::Create(FrameKind kind, UniqueFd file, PageCount length) {
  Backing backing(kind, std::move(file));
  const uint64_t bytes = BytesOf(length);
  absl::StatusOr<View> huge = MapAligned(backing.file_.get(), bytes);
  if (!huge.ok()) return huge.status();
  backing.huge_view_ = std::move(huge->mapping);
  backing.huge_base_ = huge->base;
  // With the usual defrag=madvise only an advised mapping may compact memory for a huge frame;
  // others fall back to small ones on a fragmented machine.
  if (kind == FrameKind::kHuge) madvise(backing.huge_base_, bytes, MADV_HUGEPAGE);
  if (kind != FrameKind::kHugetlb) {
    absl::StatusOr<View> small = MapAligned(backing.file_.get(), bytes);
    if (!small.ok()) return small.status();
    backing.small_view_ = std::move(small->mapping);
    backing.small_base_ = small->base;
    // Refused only where the kernel has no transparent huge pages at all; then every frame is small
    // anyway.
    madvise(backing.small_base_, bytes, MADV_NOHUGEPAGE);
  }
  return backing;
}

UniqueFd Backing::OpenAnew(int access) const {
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", file_.get());
  return UniqueFd(open(path, access | O_CLOEXEC));
}

Backing::FillResult Backing::FillHuge(BlockIndex block) const {
  std::byte* start = huge_base_ + block.value() * kBlockSize;
  const FillResult result = Populate(start, kBlockSize);
  // The frame stays in the file. Left mapped here, all guests' memory would count as the pager's,
  // and the OOM killer would take the pager first.
  madvise(start, kBlockSize, MADV_DONTNEED);
  return result;
}

Backing::FillResult Backing::FillSmall(FilePage first, PageCount count) const {
  const FillResult result = Populate(small_base_ + first.value() * kPageSize, BytesOf(count));
  // Our own page table of that block has served: emptied as a whole, the kernel frees it (6.14;
  // before, it is kept until the file goes). The frames stay in the file.
  std::byte* block = small_base_ + BlockFloor(first).value() * kBlockSize;
  madvise(
      block,
      std::min(kBlockSize, static_cast<uint64_t>(small_view_.data() + small_view_.size() - block)),
      MADV_DONTNEED);
  return result;
}

Backing::FillResult Backing::Collapse(BlockIndex block) const {
  std::byte* start = huge_base_ + block.value() * kBlockSize;
  if (madvise(start, kBlockSize, MADV_COLLAPSE) != 0) {
    return errno == ENOMEM ? FillResult::kOutOfFrames : FillResult::kRefused;
  }
  madvise(start, kBlockSize, MADV_DONTNEED);  // as in FillHuge
  return FillResult::kDone;
}

Backing::Use Backing::Sample(BlockIndex block) const {
  // 16 pages, evenly spread; used if half of them hold anything. Arbitrary: enough to tell a filled
  // block from one that has one page in use, cheap beside making a frame (about 16 us against 250).
  constexpr uint64_t kSamples = 16;
  constexpr uint64_t kStride = kPagesPerBlock / kSamples;
  uint64_t used = 0;
  alignas(8) uint64_t page[kPageSize / sizeof(uint64_t)];
  for (uint64_t i = 0; i < kSamples; ++i) {
    const uint64_t number = block.value() * kPagesPerBlock + i * kStride + kStride / 2;
    const ssize_t got =
        pread(file_.get(), page, sizeof(page), static_cast<off_t>(number * kPageSize));
    if (got > 0 && AnyByteSet(page, static_cast<size_t>(got) / sizeof(uint64_t))) ++used;
  }
  return used * 2 >= kSamples ? Use::kUsed : Use::kUnused;
}

}  // namespace hostmm
