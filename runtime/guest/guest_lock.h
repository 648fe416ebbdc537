// The one lock of the guest side. While it is held, all signals of the holder are blocked: a
// handler that calls mmap would otherwise wait for itself.
//
// Threads:  any thread of the program. fork takes it before and releases it on both sides
//           (attach.cc), so that a child never inherits it locked by a thread that it does not
//           have.
// Futex:    private is right here: the word lies in memory of this process alone.
// Errors:   none.
#ifndef HOSTMM_RUNTIME_GUEST_GUEST_LOCK_H_
#define HOSTMM_RUNTIME_GUEST_GUEST_LOCK_H_

#include <cstdint>

namespace hostmm::guest {

class GuestLock {
 public:
  void Lock();
  void Unlock();

 private:
  // 0 free, 1 held, 2 held and somebody waits.
  uint32_t word_;
  // The holder's signal mask from before; guarded by the lock itself.
  uint64_t saved_mask_;
};

class GuestLockHolder {
 public:
  explicit GuestLockHolder(GuestLock& lock) : lock_(lock) { lock_.Lock(); }
  ~GuestLockHolder() { lock_.Unlock(); }
  GuestLockHolder(const GuestLockHolder&) = delete;
  GuestLockHolder& operator=(const GuestLockHolder&) = delete;

 private:
  GuestLock& lock_;
};

// Blocks all signals of the calling thread; returns the mask to give to RestoreSignals.
uint64_t BlockSignals();
void RestoreSignals(uint64_t mask);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_GUEST_LOCK_H_
