#include "runtime/time_slice.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace hostmm {
namespace {

// struct sched_attr in its first form (SCHED_ATTR_SIZE_VER0). <linux/sched/types.h> cannot be had
// beside <sched.h>: both define sched_param.
struct SchedAttr {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime_ns;
  uint64_t deadline_ns;
  uint64_t period_ns;
};
static_assert(sizeof(SchedAttr) == 48);

}  // namespace

void TakeTimeSlice(std::chrono::nanoseconds slice) {
  SchedAttr attr = {};
  if (syscall(SYS_sched_getattr, 0, &attr, sizeof(attr), 0) != 0) return;
  // Whoever gave the pager a policy of its own knows better.
  if (attr.policy != SCHED_OTHER) return;
  attr.runtime_ns = static_cast<uint64_t>(slice.count());
  syscall(SYS_sched_setattr, 0, &attr, 0);
}

}  // namespace hostmm
