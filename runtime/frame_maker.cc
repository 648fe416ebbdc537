#include "runtime/frame_maker.h"

#include <utility>

namespace hostmm {

absl::StatusOr<std::shared_ptr<const Backing>> FrameMaker::Make(uint64_t bytes) {
  const FrameStore* store = store_;
  const auto whole = [&store, bytes] {
    const uint64_t unit = UnitOf(store->kind());
    return (bytes + unit - 1) / unit * unit;
  };
  absl::StatusOr<UniqueFd> file = store->NewFile(whole());
  if (!file.ok() && second_ != nullptr) {
    why_weaker_ = std::string(file.status().message());
    store = second_;
    file = store->NewFile(whole());
  }
  if (!file.ok()) return file.status();
  absl::StatusOr<Backing> backing =
      Backing::Create(store->kind(), *std::move(file), PageCount(whole() / kPageSize));
  if (!backing.ok()) return backing.status();
  return std::make_shared<const Backing>(*std::move(backing));
}

}  // namespace hostmm
