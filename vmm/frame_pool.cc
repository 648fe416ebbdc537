#include "vmm/frame_pool.h"

#include <algorithm>
#include <cassert>

namespace hostmm {

std::optional<FrameNumber> FramePool::Allocate(uint64_t count) {
  assert(count != 0);
  if (count > limit_ - held_) return std::nullopt;
  // First fit: the stores of today ask for one size only, so that the first run nearly always fits.
  const auto run =
      std::find_if(free_.begin(), free_.end(), [&](const auto& at) { return at.second >= count; });
  uint64_t first;
  if (run != free_.end()) {
    first = run->first;
    const uint64_t left = run->second - count;
    free_.erase(run);
    if (left != 0) free_.emplace(first + count, left);
  } else {
    first = end();
    uses_.resize(first + count);
  }
  used_ += count;
  held_ += count;
  return FrameNumber(first);
}

void FramePool::SetUses(FrameNumber first, uint64_t count, uint32_t uses) {
  assert(first.value() + count <= end());
  for (uint64_t i = 0; i < count; ++i) {
    assert(uses_[first.value() + i] == 0);
    uses_[first.value() + i] = uses;
  }
  if (uses == 0) used_ -= count;
}

bool FramePool::Drop(FrameNumber frame) {
  assert(frame.value() < end() && uses_[frame.value()] != 0);
  if (--uses_[frame.value()] != 0) return false;
  --used_;
  return true;
}

void FramePool::Recycle(FrameNumber run, uint64_t count) {
  uint64_t first = run.value();
  assert(first + count <= end());
  assert(
      std::all_of(&uses_[first], &uses_[first] + count, [](uint32_t uses) { return uses == 0; }));
  held_ -= count;
  auto next = free_.lower_bound(first);
  assert(next == free_.end() || next->first >= first + count);
  if (next != free_.end() && next->first == first + count) {
    count += next->second;
    next = free_.erase(next);
  }
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    assert(before->first + before->second <= first);
    if (before->first + before->second == first) {
      first = before->first;
      count += before->second;
      free_.erase(before);
    }
  }
  if (first + count == end()) {
    uses_.resize(first);
  } else {
    free_.emplace(first, count);
  }
}

}  // namespace hostmm
