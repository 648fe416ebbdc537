#include "runtime/guest/guest_lock.h"

#include <linux/futex.h>
#include <signal.h>

#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

// Beside the holder's process id, which is less than 2^22.
constexpr uint32_t kWaited = 1U << 31;

}  // namespace

uint64_t BlockSignals() {
  const uint64_t all = ~uint64_t{0};
  uint64_t old = 0;
  raw::Call(SYS_rt_sigprocmask, SIG_SETMASK, &all, &old, sizeof(all));
  return old;
}

void RestoreSignals(uint64_t mask) {
  raw::Call(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
}

void GuestLock::Take() {
  const auto self = static_cast<uint32_t>(raw::Call(SYS_getpid));
  uint32_t mine = self;
  uint32_t seen = 0;
  while (!__atomic_compare_exchange_n(&word_, &seen, mine, false, __ATOMIC_ACQUIRE,
                                      __ATOMIC_RELAXED)) {
    // From here on others may wait too, so that whoever gives it back must wake.
    mine = self | kWaited;
    // Held in another process: a child of _Fork has the lock as its parent's agent held it, and
    // nobody who would give it back. The next exchange takes it.
    if ((seen & ~kWaited) != self) continue;
    if (seen == mine || __atomic_compare_exchange_n(&word_, &seen, mine, false, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED)) {
      raw::Call(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, mine, nullptr);
    }
    seen = 0;
  }
}

void GuestLock::Give() {
  if ((__atomic_exchange_n(&word_, 0, __ATOMIC_RELEASE) & kWaited) != 0) {
    raw::Call(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, 1);
  }
}

void GuestLock::Lock() {
  const uint64_t mask = BlockSignals();
  Take();
  saved_mask_ = mask;
}

void GuestLock::Unlock() {
  const uint64_t mask = saved_mask_;
  Give();
  RestoreSignals(mask);
}

void GuestLock::LockWithSignalsBlocked() { Take(); }

bool GuestLock::TryLockWithSignalsBlocked() {
  uint32_t free = 0;
  const auto self = static_cast<uint32_t>(raw::Call(SYS_getpid));
  return __atomic_compare_exchange_n(&word_, &free, self, false, __ATOMIC_ACQUIRE,
                                     __ATOMIC_RELAXED);
}

void GuestLock::UnlockWithSignalsBlocked() { Give(); }

}  // namespace hostmm::guest
