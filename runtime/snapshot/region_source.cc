#include "runtime/snapshot/region_source.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

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
  if (earlier_ == nullptr) return;
  set_->Hold(earlier_);
  // What lies between two snapshots is over: later writes are copied for both of them.
  cow_.ForEachChange(earlier_->mm, snapshot_->mm, [this](FilePage first, PageCount count) {
    for (FilePage page = first; page < first + count; page = page + PageCount(1)) {
      changed_[BlockFloor(page).value()].Set(static_cast<uint32_t>(IndexInBlock(page)));
    }
  });
}

RegionSource::~RegionSource() {
  set_->Unhold(snapshot_);
  if (earlier_ != nullptr) set_->Unhold(earlier_);
  PreimageStore::Retire(std::move(store_), pool_);
}

bool RegionSource::HasPreimage(uint64_t block) const {
  if (!snapshot_->lost.empty()) return false;
  const FilePage first = FirstPageOf(BlockIndex(block));
  for (uint64_t i = 0; i < kPagesPerBlock; ++i) {
    if (cow_.Find(snapshot_->mm, first + PageCount(i)).from == CowTables::Page::From::kPreimage) {
      return true;
    }
  }
  return false;
}

std::optional<uint64_t> RegionSource::NextBlock(uint64_t from) {
  if (earlier_ != nullptr) {
    const auto next = changed_.lower_bound(from);
    return next == changed_.end() ? std::nullopt : std::optional<uint64_t>(next->first);
  }
  const off_t data =
      lseek(backing_->file().get(), static_cast<off_t>(from * kBlockSize), SEEK_DATA);
  const uint64_t next_data = data < 0 ? blocks() : static_cast<uint64_t>(data) / kBlockSize;
  // What has been removed from the live file since stands in the store alone.
  for (uint64_t block = from; block < std::min(next_data, blocks()); ++block) {
    if (HasPreimage(block)) return block;
  }
  return next_data < blocks() ? std::optional<uint64_t>(next_data) : std::nullopt;
}

void RegionSource::ReadBlock(uint64_t block, std::byte* buffer, PageBitmap* pages,
                             std::function<void(int error)> done) {
  if (earlier_ != nullptr) *pages = changed_[block];
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
  for (uint64_t i = 0; i < kPagesPerBlock; ++i) {
    const CowTables::Page page = cow_.Find(snapshot_->mm, first + PageCount(i));
    if (page.from == CowTables::Page::From::kPreimage) patches->pages.emplace_back(i, page.frame);
  }
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
