// SysV shared memory: the kernel keeps the segment, its id, its permissions, its count of
// attachments and IPC_RMID. hostmm only chooses an address at which the segment can be mapped huge,
// and has it collapsed when its blocks are full.
#include <errno.h>
#include <sys/ipc.h>
#include <sys/shm.h>

#include "runtime/guest/client.h"
#include "runtime/guest/client_state.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

// The size of segment `shmid`, or 0 if this process may not know it.
uint64_t SegmentBytes(int shmid) {
  shmid_ds info = {};
  if (raw::Failed(raw::Call(SYS_shmctl, shmid, IPC_STAT, &info))) return 0;
  return info.shm_segsz;
}

}  // namespace

long AttachSysV(int shmid, uint64_t addr, int flags) {
  if (!g_client.transparent || CurrentPhase() == Phase::kOff) return kPlain;
  // An error, and the kernel's to report: below, SHM_REMAP is ours.
  if (addr == 0 && (flags & SHM_REMAP) != 0) return kPlain;
  const uint64_t bytes = RoundUp(SegmentBytes(shmid), kPage);
  if (bytes < protocol::kMinRegionBytes) return kPlain;
  GuestLockHolder hold(g_client.lock);
  if (const int error = WhyNotCutLocked(addr, addr + bytes); error != 0) return -error;
  uint64_t va = addr;
  if (addr == 0) {
    va = Reserve(bytes, kBlock, 0);
    if (va == 0) return kPlain;
  }
  const int how = addr == 0 ? flags | SHM_REMAP : flags;
  const long got = raw::Call(SYS_shmat, shmid, va, how);
  if (raw::Failed(got)) {
    if (addr == 0) Unreserve(va, bytes);
    return got;
  }
  va = static_cast<uint64_t>(got);
  if ((flags & SHM_REMAP) != 0) ForgetLocked(va, bytes);
  if (va % kBlock == 0 && g_client.regions.HasRoom() && EnsureAttachedLocked()) {
    protocol::Message adopt = NewMessage(protocol::Kind::kAdopt);
    adopt.va = va;
    adopt.length = bytes;
    adopt.prot = (flags & SHM_RDONLY) != 0 ? 1 : 3;  // PROT_READ, PROT_READ|PROT_WRITE
    adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kSysV);
    adopt.value[1] = static_cast<uint64_t>(shmid);
    protocol::Message answer;
    if (AskLocked(adopt, nullptr, 0, &answer, nullptr) == Io::kOk) {
      g_client.regions.Add({va, bytes, 0, answer.mm, RegionKind::kAdopted, false, 0});
    }
  }
  return got;
}

long DetachSysV(uint64_t addr) {
  GuestLockHolder hold(g_client.lock);
  const long result = raw::Call(SYS_shmdt, addr);
  if (result != 0) return result;
  // All that was left of the segment is gone: parts of it may have been unmapped before.
  for (size_t i = 0; i < g_client.regions.size();) {
    const Region region = g_client.regions[i];
    if (region.kind == RegionKind::kAdopted && region.va - region.offset == addr) {
      ForgetLocked(region.va, region.bytes);
    } else {
      ++i;
    }
  }
  return result;
}

}  // namespace hostmm::guest
