// Which grain the next populate of a block takes: huge at once, a few small pages, or fill and
// collapse.
//
// Why:     a program that touches one page per 2 MiB must not pay 512 times its memory, and a
//          program that fills its region should pay one fault per 2 MiB. Neither says which it
//          is; the first touches of a block do.
// Units:   windows in 4 KiB pages, powers of two, to be aligned around the fault by the caller.
// Threads: pure function of its input.
// Errors:  none.

#ifndef HOSTMM_VMM_DENSITY_POLICY_H_
#define HOSTMM_VMM_DENSITY_POLICY_H_

#include <cstdint>

#include "vmm/access.h"
#include "vmm/fault.h"
#include "vmm/units.h"

namespace hostmm {

enum class MemoryClimate : uint8_t { kAmple, kTight };

// What a fault gets at least: 16 KiB, the kernel's own readahead grain for a random access, 1/128
// of a block. A random toucher gets no more, whatever it has touched already.
inline constexpr PageCount kFirstWindow{4};
// A fault behind a page that is there goes on with what was begun: it gets as much as the block has
// already, up to this.
inline constexpr PageCount kMaxWindow{64};
// As many pages as make a block dense: a quarter. To fill the rest costs at most four times what
// was asked for, and the random toucher has come 32 times by then.
inline constexpr PageCount kDensePages{kPagesPerBlock / 4};

enum class HugeHint : uint8_t { kNone, kHuge, kSmall };
enum class Tracking : uint8_t { kOff, kOn };
// kTail: the file ends inside the block, so that it can never be one huge frame.
enum class BlockPlace : uint8_t { kInner, kTail };
enum class BlockFill : uint8_t { kUntouched, kSmall };
enum class HugeNeighbour : uint8_t { kNone, kBefore, kBehind };
// Whether the page-table geometry has a leaf of the block's size at all.
enum class HugeLeaves : uint8_t { kPossible, kImpossible };

// kSequential: the page before the fault is there.
enum class Order : uint8_t { kScattered, kSequential };

struct DensityInput {
  FrameKind frames = FrameKind::kHuge;
  HugeHint hint = HugeHint::kNone;
  Tracking tracking = Tracking::kOff;
  MemoryClimate memory = MemoryClimate::kAmple;
  BlockPlace place = BlockPlace::kInner;
  BlockFill fill = BlockFill::kUntouched;
  HugeNeighbour neighbour = HugeNeighbour::kNone;
  HugeLeaves huge_leaves = HugeLeaves::kPossible;
  uint32_t touches = 0;  // faults that were populated in this block before this one
  PageCount present{0};  // small pages of the block that are there
  Order order = Order::kScattered;
  PageCount tracked_around{1};
};

// Whether a window that closes the last hole of the block should be followed by a collapse.
enum class OnFull : uint8_t { kLeave, kCollapse };

struct DensityChoice {
  Grain grain = Grain::kSmall;
  FaultCause cause = FaultCause::kFirstTouch;
  PageCount window{1};  // kSmall; for kHuge the size of the fallback (0: there is none)
  Probe probe = Probe::kNone;
  OnFull on_full = OnFull::kLeave;
};

DensityChoice ChooseGrain(const DensityInput& input);

}  // namespace hostmm

#endif  // HOSTMM_VMM_DENSITY_POLICY_H_
