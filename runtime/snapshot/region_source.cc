#include "runtime/snapshot/region_source.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

namespace hostmm {

RegionSource::RegionSource(const CowTables& cow, SnapshotSet* set, const LiveFile& file,
                           WorkerPool* pool, TakenSnapshot* snapshot, TakenSnapshot* earlier)
    : cow_(cow),
      set_(set),
      backing_(file.backing),
      store_(file.store),
      pool_(pool),
      snapshot_(snapshot),
      earlier_(earlier) {
  set_->Hold(snapshot_);
  if (earlier_ != nullptr) set_->Hold(earlier_);
}

RegionSource::~RegionSource() {
  set_->Unhold(snapshot_);
  if (earlier_ != nullptr) set_->Unhold(earlier_);
  PreimageStore::Retire(std::move(store_), pool_);
}

uint64_t RegionSource::NextChanged(MmId earlier, MmId later, uint64_t from) const {
  const auto run = cow_.NextChange(earlier, later, FirstPageOf(BlockIndex(from)));
  return run.has_value() ? std::min(BlockFloor(run->first).value(), blocks()) : blocks();
}

template <class Fn>
void RegionSource::ForEachChanged(MmId earlier, MmId later, uint64_t block, Fn fn) const {
  const FilePage first = FirstPageOf(BlockIndex(block));
  const FilePage end = EndPageOf(BlockIndex(block));
  FilePage at = first;
  while (const auto run = cow_.NextChange(earlier, later, at)) {
    at = run->first + run->count;
    const FilePage stop = std::min(at, end);
    for (FilePage page = run->first; page < stop; page = page + PageCount(1)) {
      fn(static_cast<uint32_t>((page - first).value()));
    }
    if (at >= end) return;
  }
}

std::optional<uint64_t> RegionSource::NextBlock(uint64_t from) {
  // Its tables may have gone.
  if (!snapshot_->lost.empty()) return std::nullopt;
  uint64_t next = blocks();
  if (earlier_ != nullptr) {
    // The answer does not change: what lies between two snapshots is over, and later writes are
    // copied for both of them.
    next = NextChanged(earlier_->mm, snapshot_->mm, from);
  } else {
    const off_t data =
        lseek(backing_->file().get(), static_cast<off_t>(from * kBlockSize), SEEK_DATA);
    if (data >= 0) next = std::min(next, static_cast<uint64_t>(data) / kBlockSize);
    // What has been removed from the live file since stands in the store alone.
    if (next > from) next = std::min(next, NextChanged(snapshot_->mm, snapshot_->source, from));
  }
  return next < blocks() ? std::optional<uint64_t>(next) : std::nullopt;
}

void RegionSource::ReadBlock(uint64_t block, std::byte* buffer, PageBitmap* pages,
                             std::function<void(int error)> done) {
  if (earlier_ != nullptr) {
    *pages = {};
    ForEachChanged(earlier_->mm, snapshot_->mm, block,
                   [pages](uint32_t page) { pages->Set(page); });
  }
  auto error = std::make_shared<int>(0);
  pool_->Submit(
      [backing = backing_, error, block, buffer] {
        *error = ReadFrames(backing->file().get(), block * kBlockSize, buffer, kBlockSize);
      },
      [this, error, block, buffer, done = std::move(done)] {
        if (*error != 0 || !snapshot_->lost.empty()) return done(*error != 0 ? *error : EIO);
        ReadPreimages(block, buffer, done);
      });
}

void RegionSource::ReadPreimages(uint64_t block, std::byte* buffer,
                                 const std::function<void(int error)>& done) {
  struct Patches {
    std::vector<std::pair<uint64_t, FrameNumber>> pages;  // index in the block, where it stands
    int error = 0;
  };
  auto patches = std::make_shared<Patches>();
  const FilePage first = FirstPageOf(BlockIndex(block));
  ForEachChanged(snapshot_->mm, snapshot_->source, block, [&](uint32_t i) {
    const CowTables::Page page = cow_.Find(snapshot_->mm, first + PageCount(i));
    if (page.from == CowTables::Page::From::kPreimage) patches->pages.emplace_back(i, page.frame);
  });
  if (patches->pages.empty()) return done(0);
  pool_->Submit(
      [store = store_, patches, buffer] {
        for (const auto& [index, frame] : patches->pages) {
          patches->error = store->Read(frame, buffer + index * kPageSize, kPageSize);
          if (patches->error != 0) return;
        }
      },
      // Lost meanwhile: its frames may have been given back while they were read.
      [this, patches, done] {
        done(patches->error == 0 && !snapshot_->lost.empty() ? EIO : patches->error);
      });
}

}  // namespace hostmm
