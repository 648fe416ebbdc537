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
  // For a caller that has all signals blocked, as the agent has for ever: saves two system calls.
  void LockWithSignalsBlocked();
  // RETURNS whether it was free, and is the caller's now.
  bool TryLockWithSignalsBlocked();
  void UnlockWithSignalsBlocked();
  // In a forked child: nobody here holds it.
  void Forget() { word_ = 0; }

 private:
  void Take();
  void Give();

  // 0: free. Else the process that holds it, and whether somebody waits.
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

class AgentLockHolder {
 public:
  explicit AgentLockHolder(GuestLock& lock) : lock_(lock) { lock_.LockWithSignalsBlocked(); }
  ~AgentLockHolder() { lock_.UnlockWithSignalsBlocked(); }
  AgentLockHolder(const AgentLockHolder&) = delete;
  AgentLockHolder& operator=(const AgentLockHolder&) = delete;

 private:
  GuestLock& lock_;
};

// Blocks all signals of the calling thread; returns the mask to give to RestoreSignals.
uint64_t BlockSignals();
void RestoreSignals(uint64_t mask);

}  // namespace hostmm::guest

#endif  // HOSTMM_RUNTIME_GUEST_GUEST_LOCK_H_
