#include "runtime/guest/guest_lock.h"

#include <linux/futex.h>
#include <signal.h>

#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {

uint64_t BlockSignals() {
  const uint64_t all = ~uint64_t{0};
  uint64_t old = 0;
  raw::Call(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
  return old;
}

void RestoreSignals(uint64_t mask) {
  raw::Call(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
}

void GuestLock::Lock() {
  const uint64_t mask = BlockSignals();
  uint32_t seen = 0;
  if (!__atomic_compare_exchange_n(&word_, &seen, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
    while (__atomic_exchange_n(&word_, 2, __ATOMIC_ACQUIRE) != 0) {
      raw::Call(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, 2, nullptr);
    }
  }
  saved_mask_ = mask;
}

void GuestLock::Unlock() {
  const uint64_t mask = saved_mask_;
  if (__atomic_exchange_n(&word_, 0, __ATOMIC_RELEASE) == 2) {
    raw::Call(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, 1);
  }
  RestoreSignals(mask);
}

}  // namespace hostmm::guest
