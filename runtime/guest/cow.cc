#include "runtime/guest/cow.h"

#include <errno.h>
#include <sys/mman.h>

#include "runtime/guest/client_state.h"
#include "runtime/guest/late_answer.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"
#include "runtime/guest/views.h"

namespace hostmm::guest {
namespace {

using protocol::Kind;
using protocol::Message;

struct CowFile {
  protocol::MmHandle mm;  // generation 0: free
  GuardedFd file;
};

CowFile g_files[kMaxCowFiles];

// Between the beginning and the end of a fork: a region that is a view in the child.
struct CowFork {
  uint64_t va;
  uint64_t bytes;
  protocol::MmHandle mm;  // of the view
  int file;
};

CowFork g_forks[protocol::kMaxCowForks];
int g_fork_count;
// The child cannot have the views of copy-on-write memory that its parent has.
bool g_child_loses_views;

CowFile* FindFile(protocol::MmHandle mm) {
  for (CowFile& file : g_files) {
    if (file.mm.generation != 0 && IsSame(file.mm, mm)) return &file;
  }
  return nullptr;
}

bool IsMappedCow(protocol::MmHandle mm) {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    if (IsCow(g_client.regions[i]) && IsSame(g_client.regions[i].mm, mm)) return true;
  }
  return false;
}

// RETURNS whether the i-th region is the kernel's now.
bool GoPrivateOneLocked(size_t i) {
  Region region = g_client.regions[i];
  const CowFile* kept = FindFile(region.mm);
  if (kept == nullptr || !kept->file.IsOurs()) return false;
  // hugetlb pages that cannot be had later would be a SIGBUS.
  const bool hugetlb = region.kind == RegionKind::kOwnHugetlb;
  const int how = MAP_PRIVATE | MAP_FIXED | (hugetlb ? 0 : MAP_NORESERVE);
  const long got = raw::Call(SYS_mmap, region.va, region.bytes, region.prot, how, kept->file.get(),
                             region.offset);
  if (raw::Failed(got)) return false;
  if (region.dont_fork) raw::Call(SYS_madvise, region.va, region.bytes, MADV_DONTFORK);
  region.kind = RegionKind::kAdopted;
  region.share = static_cast<uint32_t>(kRegionCow | kRegionPrivate);
  region.mm = {};
  region.frozen = false;
  g_client.regions.Replace(i, region);
  NoteLocked(RangeMessage(Kind::kUnmap, region.va, region.bytes));
  return true;
}

// Has the region's file frozen for this fork. RETURNS whether the child has a view.
bool AskForkLocked(const Region& region) {
  if (g_fork_count == protocol::kMaxCowForks) return false;
  Message answer = {};
  int file = -1;
  const Message ask = RangeMessage(Kind::kForkCow, region.va, region.bytes);
  if (AskQuietlyLocked(ask, nullptr, 0, &answer, &file) != Io::kOk || file < 0) return false;
  g_client.regions.SetFrozen(region.mm, true);
  g_forks[g_fork_count++] = {region.va, region.bytes, answer.mm, file};
  return true;
}

// Drops the page-table entries of all that this process has of the file: what it writes from here
// on is seen, and waits until the pager hears of the fork.
void ZapFileLocked(protocol::MmHandle mm) {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region region = g_client.regions[i];
    if (!IsCow(region) || !IsSame(region.mm, mm)) continue;
    // The kernel's own copy-on-write does as well.
    if (Zap(region.va, region.bytes) != 0) GoPrivateOneLocked(i);
  }
}

const CowFork* FindFork(const Region& region) {
  for (int i = 0; i < g_fork_count; ++i) {
    if (g_forks[i].va == region.va && g_forks[i].bytes == region.bytes) return &g_forks[i];
  }
  return nullptr;
}

// The i-th region, which the child has inherited as memory of its parent.
void BecomeViewLocked(size_t i) {
  Region region = g_client.regions[i];
  const CowFork* fork = FindFork(region);
  long got = -ENOENT;
  if (fork != nullptr) {
    const int how = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
    got = raw::Call(SYS_mmap, region.va, region.bytes, region.prot, how, fork->file, region.offset);
    region.mm = fork->mm;
  }
  region.share |= static_cast<uint32_t>(kRegionView | kRegionViewWritable);
  region.frozen = false;
  region.lost = raw::Failed(got);
  if (region.lost) MakeSigbus(region.va, region.bytes);
  g_client.regions.Replace(i, region);
}

// The first view that has not been settled, or a message without length.
Message NextToSettle() {
  Message ask = NewMessage(Kind::kSettleView);
  GuestLockHolder hold(g_client.lock);
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    const bool settled = (region.share & kRegionCopyOnly) != 0 || region.lost;
    if (IsCowView(region) && !settled && !region.dont_fork)
      return RangeMessage(ask.kind, region.va, region.bytes);
  }
  return ask;
}

void SetCopyOnly(uint64_t va, uint64_t bytes) {
  GuestLockHolder hold(g_client.lock);
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    Region region = g_client.regions[i];
    const bool within = region.va >= va && region.va + region.bytes <= va + bytes;
    if (!within || !IsCowView(region)) continue;
    region.share |= static_cast<uint32_t>(kRegionCopyOnly);
    g_client.regions.Replace(i, region);
  }
}

}  // namespace

bool HasRoomForCowLocked() {
  for (const CowFile& file : g_files) {
    if (file.mm.generation == 0) return true;
  }
  return false;
}

void KeepCowFileLocked(protocol::MmHandle mm, int file) {
  for (CowFile& free : g_files) {
    if (free.mm.generation != 0) continue;
    free.mm = mm;
    free.file.Set(file);
    return;
  }
  raw::Call(SYS_close, file);
}

void DropCowFilesLocked() {
  for (CowFile& kept : g_files) {
    if (kept.mm.generation == 0 || IsMappedCow(kept.mm)) continue;
    kept.file.Close();
    kept.mm = {};
  }
}

void GoPrivateLocked() {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    if (IsCow(g_client.regions[i])) GoPrivateOneLocked(i);
  }
  DropCowFilesLocked();
}

void SettleCowViews() {
  while (CurrentPhase() == Phase::kAttached && g_client.regions.HasViews()) {
    const Message ask = NextToSettle();
    if (ask.length == 0) return;
    Message answer;
    if (AskLate(ask, nullptr, 0, &answer, nullptr) != 0) return;
    SetCopyOnly(ask.va, ask.length);
  }
}

void PrepareCowLocked() {
  if (!g_client.regions.HasTracked()) return;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region region = g_client.regions[i];
    if (IsCowView(region) && !region.lost && !region.dont_fork) {
      const bool settled = (region.share & kRegionCopyOnly) != 0;
      if (!settled || !ZapSharedLocked(region.va, region.bytes)) g_child_loses_views = true;
    }
    if (!IsCow(region) || region.dont_fork) continue;
    if (AskForkLocked(region)) {
      ZapFileLocked(region.mm);
    } else if (g_client.phase == Phase::kAttached) {
      GoPrivateOneLocked(i);
    } else {
      return;  // gone off: all of it is the kernel's
    }
  }
  DropCowFilesLocked();
}

void BecomeViewsLocked() {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region region = g_client.regions[i];
    if (IsCow(region)) {
      BecomeViewLocked(i);
    } else if (IsCowView(region) && g_child_loses_views) {
      LoseViewsInLocked(region.va, region.bytes);
    }
  }
  DropCowFilesLocked();
}

void CancelCowForkLocked() {
  GoPrivateLocked();
  EndCowForkLocked();
  g_child_loses_views = true;
}

void EndCowForkLocked() {
  for (int i = 0; i < g_fork_count; ++i) raw::Call(SYS_close, g_forks[i].file);
  g_fork_count = 0;
  g_child_loses_views = false;
}

long ReplaceByZerosLocked(uint64_t va, uint64_t bytes) {
  // Room for the piece behind it.
  if (!g_client.regions.HasRoom()) return -EAGAIN;
  const Region* region = g_client.regions.Find(va);
  if (region == nullptr || !(IsCowView(*region) || IsGonePrivate(*region))) return 0;
  // Another thread has unmapped a part meanwhile.
  if (bytes > region->va + region->bytes - va) return -EAGAIN;
  const bool dont_fork = region->dont_fork;
  const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  const long got = raw::Call(SYS_mmap, va, bytes, region->prot, how, -1, 0);
  if (raw::Failed(got)) return got;
  if (dont_fork) raw::Call(SYS_madvise, va, bytes, MADV_DONTFORK);
  ForgetLocked(va, bytes);
  return 0;
}

}  // namespace hostmm::guest
