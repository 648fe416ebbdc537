#include "vmm/density_policy.h"

#include <algorithm>
#include <bit>

namespace hostmm {
namespace {

FaultCause SmallCause(const DensityInput& input) {
  return input.touches == 0 ? FaultCause::kFirstTouch : FaultCause::kFillAround;
}

bool CanBeHuge(const DensityInput& input) {
  return input.place == BlockPlace::kInner && input.huge_leaves == HugeLeaves::kPossible;
}

DensityChoice Small(const DensityInput& input, PageCount window, OnFull on_full) {
  return {.grain = Grain::kSmall, .cause = SmallCause(input), .window = window, .on_full = on_full};
}

// Sequential faults double what the block has, up to `most`; scattered ones never grow.
PageCount Window(const DensityInput& input, PageCount most) {
  if (input.order == Order::kScattered) return kFirstWindow;
  const uint64_t grown = std::bit_floor(std::max<uint64_t>(input.present.value(), 1));
  return PageCount(std::clamp(grown, kFirstWindow.value(), most.value()));
}

DensityChoice ChooseBase(const DensityInput& input) {
  const bool collapse = CanBeHuge(input) && input.hint != HugeHint::kSmall;
  return Small(input, Window(input, PageCount(kPagesPerBlock)),
               collapse ? OnFull::kCollapse : OnFull::kLeave);
}

DensityChoice ChooseHuge(const DensityInput& input, FaultCause cause) {
  if (input.fill == BlockFill::kSmall) return {.grain = Grain::kCollapse, .cause = cause};
  return {.grain = Grain::kHuge, .cause = cause, .window = kFirstWindow};
}

}  // namespace

DensityChoice ChooseGrain(const DensityInput& input) {
  if (input.frames == FrameKind::kHugetlb) {
    return {.grain = Grain::kHuge, .cause = FaultCause::kHugetlbFrames, .window = PageCount(0)};
  }
  if (input.tracking == Tracking::kOn) {
    return Small(input, input.tracked_around, OnFull::kLeave);
  }
  if (input.frames != FrameKind::kHuge) return ChooseBase(input);

  const PageCount window = Window(input, kMaxWindow);
  if (!CanBeHuge(input)) return Small(input, window, OnFull::kLeave);
  if (input.hint == HugeHint::kHuge) return ChooseHuge(input, FaultCause::kHugeHint);
  if (input.hint == HugeHint::kSmall) return Small(input, window, OnFull::kLeave);
  if (input.memory == MemoryClimate::kTight) return Small(input, kFirstWindow, OnFull::kLeave);
  if (input.fill == BlockFill::kUntouched && input.neighbour != HugeNeighbour::kNone) {
    DensityChoice choice = ChooseHuge(input, FaultCause::kHugeNeighbour);
    choice.probe = Probe::kNeighbour;
    return choice;
  }
  if (input.present >= kDensePages) {
    return {.grain = Grain::kCollapse, .cause = FaultCause::kDense};
  }
  return Small(input, window, OnFull::kCollapse);
}

}  // namespace hostmm
