#include "runtime/guest/holds.h"

#include <errno.h>
#include <poll.h>
#include <time.h>

#include "runtime/guest/channel.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/guest/views.h"

namespace hostmm::guest {
namespace {

constexpr int kNone = -1;

// Of one file or one snapshot.
struct Hold {
  protocol::MmHandle mm;  // generation 0: free, and the rest means nothing
  int uffd;               // kNone, or a number from 0 on: the agent has closed what was there
  int life_read;
  int life_write;
};

// Each has a region here.
Hold g_holds[RegionTable::kCapacity];

// Until the pager has sent others.
FirstHold g_first = {kNone, false};

// How long a child that has no life pipe yet waits for the ends of views of others. Arbitrary: far
// above what agents need.
constexpr timespec kFirstPatience = {1, 0};
// How often it is looked whether a file is still mapped, while its end of life is waited for.
constexpr int64_t kLookMilliseconds = 20;

void Close(int* fd) {
  if (*fd != kNone) raw::Call(SYS_close, *fd);
  *fd = kNone;
}

void CloseAll(const int* fds, int count) {
  for (int i = 0; i < count; ++i) {
    if (fds[i] >= 0) raw::Call(SYS_close, fds[i]);
  }
}

void Release(Hold* hold) {
  Close(&hold->uffd);
  Close(&hold->life_read);
  Close(&hold->life_write);
  hold->mm = {};
}

bool IsUsed(const Hold& hold) { return hold.mm.generation != 0; }

Hold* Find(protocol::MmHandle mm) {
  for (Hold& hold : g_holds) {
    if (IsUsed(hold) && IsSame(hold.mm, mm)) return &hold;
  }
  return nullptr;
}

Hold* FindOrMake(protocol::MmHandle mm) {
  if (Hold* known = Find(mm); known != nullptr) return known;
  for (Hold& hold : g_holds) {
    if (IsUsed(hold)) continue;
    hold = {mm, kNone, kNone, kNone};
    return &hold;
  }
  return nullptr;
}

// REQUIRES: the lock. RETURNS whether all of it is zapped.
bool ZapFileLocked(protocol::MmHandle mm) {
  bool all = true;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    // What a view has of its own would be lost.
    if (!IsSame(region.mm, mm) || region.kind == RegionKind::kAdopted || IsView(region)) continue;
    all = Zap(region.va, region.bytes) == 0 && all;
  }
  return all;
}

// REQUIRES: the lock.
bool HasViewLocked(protocol::MmHandle mm) {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    if (IsSame(region.mm, mm) && IsView(region) && !region.lost) return true;
  }
  return false;
}

// What a child holds for itself goes when the pager has sent a hold for each file that is frozen.
// REQUIRES: the lock.
void CloseFirstIfAllAreHeldLocked() {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    const Hold* hold = region.frozen ? Find(region.mm) : nullptr;
    if (region.frozen && (hold == nullptr || hold->life_read == kNone)) return;
  }
  Close(&g_first.uffd);
}

int64_t MonotonicMilliseconds() {
  timespec now = {};
  raw::Call(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

// Without waiting for the lock: who has it may be waiting for memory that is frozen.
bool MayWrite(protocol::MmHandle mm) {
  if (!g_client.lock.TryLockWithSignalsBlocked()) return true;
  const bool may = g_client.regions.MayWrite(mm);
  g_client.lock.UnlockWithSignalsBlocked();
  return may;
}

// Waits until nobody has a write end of the pipe any more, or this process has unmapped the file
// (which the pager, that would have sent kThaw, may not have heard), or until that moment.
void AwaitEndOfLife(const Hold& hold, int64_t until) {
  while (MayWrite(hold.mm)) {
    const int64_t left = until - MonotonicMilliseconds();
    if (left <= 0) return;
    const int64_t wait = left < kLookMilliseconds ? left : kLookMilliseconds;
    pollfd poll{hold.life_read, 0, 0};
    const timespec timeout{0, wait * 1'000'000};
    const long result = raw::Call(SYS_ppoll, &poll, 1, &timeout, nullptr, 8);
    if (result != 0 && result != -EINTR) return;
  }
}

}  // namespace

void HoldFirst(const FirstHold& first) { g_first = first; }

void Freeze(int channel, const protocol::Message& order, const int* fds) {
  AgentLockHolder lock(g_client.lock);
  Hold* hold = FindOrMake(order.mm);
  if (hold == nullptr || fds[kUffdFd] < 0 || fds[kLifeFd] < 0) {
    hold = nullptr;
    CloseAll(fds, kHoldFds);
  } else {
    Close(&hold->uffd);
    Close(&hold->life_read);
    hold->uffd = fds[kUffdFd];
    hold->life_read = fds[kLifeFd];
  }
  // Gone off: as its pager will see. It is held like others until no view is left.
  if (CurrentPhase() != Phase::kAttached) return;
  g_client.regions.SetFrozen(order.mm, true);
  CloseFirstIfAllAreHeldLocked();
  const bool zapped = order.value[0] == 1 || ZapFileLocked(order.mm);
  protocol::Message done = NewMessage(protocol::Kind::kFreezeDone);
  done.mm = order.mm;
  done.order = order.order;
  if (!zapped || hold == nullptr) done.status = protocol::Status::kRefused;
  // Under the lock, which fork takes too: the pager hears of a fork and of this in the order in
  // which they were.
  SendOn(channel, done, nullptr, 0);
}

void Thaw(const protocol::Message& order) {
  if (Hold* hold = Find(order.mm); hold != nullptr) Release(hold);
  AgentLockHolder lock(g_client.lock);
  g_client.regions.SetFrozen(order.mm, false);
  CloseFirstIfAllAreHeldLocked();
  // What is mapped by single pages, write-protected or not, is mapped huge again at the next touch.
  ZapFileLocked(order.mm);
}

void HoldLife(const protocol::Message& order, int life) {
  Hold* hold = life >= 0 ? FindOrMake(order.mm) : Find(order.mm);
  if (hold == nullptr) {
    if (life >= 0) raw::Call(SYS_close, life);
    return;
  }
  if (life < 0) return Release(hold);
  Close(&hold->life_write);
  hold->life_write = life;
}

void ReleaseWithoutViews() {
  // Under the lock no view is just being mapped.
  AgentLockHolder lock(g_client.lock);
  for (Hold& hold : g_holds) {
    if (IsUsed(hold) && hold.life_write != kNone && !HasViewLocked(hold.mm)) Release(&hold);
  }
}

void EndHolds() {
  bool views = g_client.regions.HasViews() || g_first.uffd != kNone;
  // One may just be being mapped.
  for (const Hold& hold : g_holds) views = views || (IsUsed(hold) && hold.life_write != kNone);
  // Else without the lock: a thread that has it may be waiting for memory that is frozen.
  if (views) {
    AgentLockHolder lock(g_client.lock);
    LoseViewsLocked(DontForkViews::kLose);
  }
  for (Hold& hold : g_holds) {
    if (!IsUsed(hold) || hold.life_write == kNone) continue;
    Close(&hold.life_write);
    // Of views, which are gone: it is who writes that has to wait for others.
    Close(&hold.life_read);
  }
  const int64_t until = MonotonicMilliseconds() + kLifeMilliseconds;
  for (const Hold& hold : g_holds) {
    if (IsUsed(hold) && hold.life_read != kNone) AwaitEndOfLife(hold, until);
  }
  if (g_first.uffd != kNone && g_first.writes) {
    raw::Call(SYS_nanosleep, &kFirstPatience, nullptr);
  }
  DropHolds();
}

void DropHolds() {
  Close(&g_first.uffd);
  for (Hold& hold : g_holds) {
    if (IsUsed(hold)) Release(&hold);
  }
}

void ForgetHolds() {
  g_first = {kNone, false};
  for (Hold& hold : g_holds) hold = {};
}

}  // namespace hostmm::guest
