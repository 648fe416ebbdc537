#include "runtime/snapshot/preimage_store.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "runtime/sys_error.h"

namespace hostmm {
namespace {

// Copied at a time: a hugetlb block in eight steps. It lies on a thread's stack.
constexpr uint64_t kStep = uint64_t{256} << 10;

int WriteFrames(int file, uint64_t offset, const std::byte* from, uint64_t bytes) {
  while (bytes != 0) {
    const ssize_t put = pwrite(file, from, bytes, static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return put == 0 ? ENOSPC : errno;
    const auto done = static_cast<uint64_t>(put);
    from += done;
    offset += done;
    bytes -= done;
  }
  return 0;
}

}  // namespace

int ReadFrames(int file, uint64_t offset, std::byte* to, uint64_t bytes) {
  while (bytes != 0) {
    const ssize_t got = pread(file, to, bytes, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) {
      memset(to, 0, bytes);
      return 0;
    }
    const auto done = static_cast<uint64_t>(got);
    to += done;
    offset += done;
    bytes -= done;
  }
  return 0;
}

absl::StatusOr<PreimageStore> PreimageStore::Create(uint64_t limit_bytes) {
  UniqueFd file(memfd_create("hostmm-preimages", MFD_CLOEXEC));
  if (!file.ok()) return SysError("memfd_create(hostmm-preimages)");
  return PreimageStore(std::move(file), (limit_bytes + kPageSize - 1) / kPageSize);
}

void PreimageStore::Punch(const Run& run) const {
  fallocate(file_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            static_cast<off_t>(run.first * kPageSize), static_cast<off_t>(run.count * kPageSize));
}

void PreimageStore::Discard(FrameNumber first, PageCount count) {
  pool_.SetUses(first, count.value(), 0);
  unused_.push_back({first.value(), count.value()});
}

void PreimageStore::Drop(FrameNumber first, PageCount count) {
  for (uint64_t i = 0; i < count.value(); ++i) {
    const FrameNumber frame(first.value() + i);
    if (pool_.Drop(frame)) unused_.push_back({frame.value(), 1});
  }
}

// Tables name frames in the order of the file's pages, the frames were taken in that of writes.
std::vector<PreimageStore::Run> PreimageStore::Joined(std::vector<Run> runs) {
  std::ranges::sort(runs, {}, &Run::first);
  std::vector<Run> joined;
  for (const Run& run : runs) {
    if (!joined.empty() && joined.back().first + joined.back().count == run.first) {
      joined.back().count += run.count;
    } else {
      joined.push_back(run);
    }
  }
  return joined;
}

void PreimageStore::GiveBack(const std::shared_ptr<PreimageStore>& store, WorkerPool* pool) {
  if (store->unused_.empty()) return;
  auto runs = std::make_shared<std::vector<Run>>(std::exchange(store->unused_, {}));
  ++store->giving_back_;
  pool->Submit(
      [store, runs] {
        *runs = Joined(std::move(*runs));
        for (const Run& run : *runs) store->Punch(run);
      },
      // Not a reference: the last one is to go with a worker (Retire).
      [weak = std::weak_ptr(store), runs] {
        if (const auto still = weak.lock(); still != nullptr) still->OnGivenBack(*runs);
      },
      WorkerPool::Priority::kLater);
}

void PreimageStore::OnGivenBack(const std::vector<Run>& runs) {
  for (const Run& run : runs) pool_.Recycle(FrameNumber(run.first), run.count);
  --giving_back_;
  for (const std::function<void()>& then : TakeWaiting()) then();
}

void PreimageStore::Retire(std::shared_ptr<PreimageStore> store, WorkerPool* pool) {
  // The last reference goes with the work, and the worker closes the file.
  pool->Submit([store = std::move(store)] {}, [] {}, WorkerPool::Priority::kLater);
}

int PreimageStore::Copy(int live_file, FilePage first, PageCount count, FrameNumber frame) const {
  alignas(kPageSize) std::byte buffer[kStep];
  const uint64_t bytes = BytesOf(count);
  for (uint64_t at = 0; at < bytes; at += kStep) {
    const uint64_t step = std::min(kStep, bytes - at);
    int error = ReadFrames(live_file, first.value() * kPageSize + at, buffer, step);
    if (error == 0) error = WriteFrames(file_.get(), frame.value() * kPageSize + at, buffer, step);
    if (error != 0) return error;
  }
  return 0;
}

int PreimageStore::Read(FrameNumber frame, std::byte* page, uint64_t bytes) const {
  return ReadFrames(file_.get(), frame.value() * kPageSize, page, bytes);
}

}  // namespace hostmm
