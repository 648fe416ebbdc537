#include "runtime/guest/views.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "runtime/guest/client_state.h"
#include "runtime/guest/late_answer.h"
#include "runtime/guest/placement.h"
#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

using protocol::Kind;
using protocol::Message;

constexpr uint64_t kPagesPerBlock = kBlock / kPage;

// The snapshot's file: what a view is a mapping of.
struct ViewedFile {
  int fd;
  uint64_t bytes;
  uint64_t unit;
};

// RETURNS 0 or an errno.
int OpenViewedLocked(int handle, Message* answer, ViewedFile* file) {
  const Message ask = NewMessage(Kind::kViewFile);
  const Io got = AskQuietlyLocked(ask, &handle, 1, answer, &file->fd);
  if (got != Io::kOk) return CurrentPhase() == Phase::kOff ? ENOTCONN : ErrnoOf(*answer);
  if (file->fd < 0) return EMFILE;
  file->bytes = answer->length;
  file->unit = answer->value[0] == kBlock ? kBlock : kPage;
  return 0;
}

// Maps it, for nobody to touch yet. RETURNS the address or -errno.
long PlaceView(const ViewedFile& file, const ViewRange& ask) {
  const bool aligned = (ask.addr | ask.bytes | ask.offset) % file.unit == 0;
  if (!aligned || ask.offset > file.bytes || ask.bytes > file.bytes - ask.offset) return -EINVAL;
  uint64_t va = ask.addr;
  if (va == 0) {
    va = Reserve(ask.bytes, kBlock, ask.offset);
    if (va == 0) return -ENOMEM;
  } else {
    const Reservation at = ReserveAt(va, ask.bytes);
    if (at != Reservation::kDone) return at == Reservation::kTaken ? -EEXIST : -ENOMEM;
  }
  const int how = MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED;
  const long got = raw::Call(SYS_mmap, va, ask.bytes, PROT_NONE, how, file.fd, ask.offset);
  if (raw::Failed(got)) {
    Unreserve(va, ask.bytes);
    return got;
  }
  raw::Call(SYS_madvise, va, ask.bytes, MADV_DONTFORK);
  return got;
}

// Makes what is mapped at `va` a view. RETURNS 0 or an errno.
int EnterViewLocked(int handle, const ViewedFile& file, const ViewRange& ask, uint64_t va,
                    Message* answer) {
  Message map = RangeMessage(Kind::kMapView, va, ask.bytes);
  map.offset = ask.offset;
  map.prot = static_cast<uint32_t>(ask.prot);
  if (AskQuietlyLocked(map, &handle, 1, answer, nullptr) != Io::kOk) {
    return CurrentPhase() == Phase::kOff ? ENOTCONN : ErrnoOf(*answer);
  }
  const bool writable = (ask.prot & PROT_WRITE) != 0;
  Region view = {};
  view.va = va;
  view.bytes = ask.bytes;
  view.offset = ask.offset;
  view.mm = answer->mm;
  view.kind = file.unit == kBlock ? RegionKind::kOwnHugetlb : RegionKind::kOwnFrames;
  view.dont_fork = true;
  view.share = static_cast<uint32_t>(kRegionView | (writable ? kRegionViewWritable : 0));
  view.prot = static_cast<uint8_t>(ask.prot);
  g_client.regions.Add(view);
  return static_cast<int>(-raw::Call(SYS_mprotect, va, ask.bytes, ask.prot));
}

long MapViewLocked(int handle, const ViewRange& ask, Message* answer) {
  if (!EnsureAttachedLocked()) return -ENOTCONN;
  if (!g_client.regions.HasRoom()) return -ENOMEM;
  ViewedFile file = {};
  if (const int error = OpenViewedLocked(handle, answer, &file); error != 0) return -error;
  const long got = PlaceView(file, ask);
  raw::Call(SYS_close, file.fd);
  if (raw::Failed(got)) return got;
  const auto va = static_cast<uint64_t>(got);
  const int error = EnterViewLocked(handle, file, ask, va, answer);
  if (error == 0) return got;
  raw::Call(SYS_munmap, va, ask.bytes);
  ForgetLocked(va, ask.bytes);
  return -error;
}

// The pages [first, end) of the block at `va`, as far as they are in views of `mm`.
long ZapRunLocked(uint64_t va, uint64_t first, uint64_t end, protocol::MmHandle mm) {
  long error = 0;
  const uint64_t run_end = va + end * kPage;
  for (uint64_t at = va + first * kPage; at < run_end;) {
    const Region* region = g_client.regions.FindNext(at);
    if (region == nullptr || region->va >= run_end) break;
    const uint64_t from = region->va > at ? region->va : at;
    const uint64_t region_end = region->va + region->bytes;
    const uint64_t to = region_end < run_end ? region_end : run_end;
    const bool wanted = mm.generation == 0 || IsSame(region->mm, mm);
    if (IsView(*region) && !region->lost && wanted) {
      // The order may come late: what the program has written meanwhile is not to be dropped.
      const bool writable = (region->share & kRegionViewWritable) != 0;
      // Without /proc nobody knows what that is: better no snapshot than lost writes.
      const long shared = writable && !ZapSharedLocked(from, to - from) ? -EIO : 0;
      const long zapped = writable ? shared : Zap(from, to - from);
      if (error == 0) error = zapped;
    }
    at = to;
  }
  return error;
}

}  // namespace

long TakeSnapshot(uint64_t addr, Message* answer) {
  *answer = {};
  {
    GuestLockHolder hold(g_client.lock);
    const Region* region = g_client.regions.Find(addr);
    if (region == nullptr || IsGonePrivate(*region)) return -ENOMEM;
    if (IsView(*region)) {
      strcpy(answer->text, "a view is no live memory");
      return -ENOTSUP;
    }
  }
  int handle = -1;
  const long taken =
      AskLate(RangeMessage(Kind::kTakeSnapshot, addr, 0), nullptr, 0, answer, &handle);
  if (taken != 0) return taken;
  return handle >= 0 ? handle : -EMFILE;
}

bool IsHandle(int fd) {
  int domain = 0;
  int type = 0;
  socklen_t length = sizeof(int);
  return !raw::Failed(raw::Call(SYS_getsockopt, fd, SOL_SOCKET, SO_DOMAIN, &domain, &length)) &&
         domain == AF_UNIX &&
         !raw::Failed(raw::Call(SYS_getsockopt, fd, SOL_SOCKET, SO_TYPE, &type, &length)) &&
         type == SOCK_SEQPACKET;
}

long MapView(int handle, const ViewRange& ask, Message* answer) {
  *answer = {};
  // User space of x86-64 and of 48-bit aarch64 with room to spare.
  constexpr uint64_t kMostBytes = uint64_t{1} << 47;
  if (!IsHandle(handle)) return -EBADF;
  const bool known = ask.prot == PROT_READ || ask.prot == (PROT_READ | PROT_WRITE);
  if (!known || ask.bytes == 0 || (ask.addr | ask.bytes | ask.offset) % kPage != 0) return -EINVAL;
  if (ask.bytes > kMostBytes || ask.addr > kMostBytes - ask.bytes) return -ENOMEM;
  GuestLockHolder hold(g_client.lock);
  return MapViewLocked(handle, ask, answer);
}

void MakeSigbus(uint64_t va, uint64_t bytes) {
  const long file = raw::Call(SYS_memfd_create, "hostmm-lost", MFD_CLOEXEC);
  long got = file;
  if (!raw::Failed(file)) {
    got = raw::Call(SYS_mmap, va, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    raw::Call(SYS_close, file);
  }
  if (!raw::Failed(got)) return;
  // No SIGBUS to be had: SIGSEGV, in the way that takes the least.
  const int nothing = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  got = raw::Call(SYS_mmap, va, bytes, PROT_NONE, nothing, -1, 0);
  if (raw::Failed(got)) raw::Call(SYS_mprotect, va, bytes, PROT_NONE);
}

void LoseViewsInLocked(uint64_t va, uint64_t bytes) {
  const uint64_t end = va + bytes;
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region& region = g_client.regions[i];
    const uint64_t from = region.va > va ? region.va : va;
    const uint64_t region_end = region.va + region.bytes;
    const uint64_t to = region_end < end ? region_end : end;
    if (!IsView(region) || region.lost || from >= to) continue;
    MakeSigbus(from, to - from);
    // As what it replaces: a child that does not know of it has no such mapping.
    if (region.dont_fork) raw::Call(SYS_madvise, from, to - from, MADV_DONTFORK);
  }
  g_client.regions.SetLost(va, bytes);
}

void LoseViewsLocked(DontForkViews dont_fork) {
  for (size_t i = 0; i < g_client.regions.size(); ++i) {
    const Region region = g_client.regions[i];
    const bool here = !region.dont_fork || dont_fork == DontForkViews::kLose;
    if (IsView(region) && !region.lost && here) LoseViewsInLocked(region.va, region.bytes);
  }
}

bool ZapSharedLocked(uint64_t va, uint64_t bytes) {
  const long pagemap = raw::Call(SYS_openat, AT_FDCWD, "/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (raw::Failed(pagemap)) return false;
  // Bits of Linux's pagemap.
  constexpr uint64_t kPresent = uint64_t{1} << 63;
  constexpr uint64_t kOfFile = uint64_t{1} << 61;
  constexpr uint64_t kEntries = 128;  // the agent has a small stack
  uint64_t entries[kEntries];
  bool sure = true;
  uint64_t run = 0;  // where a run of such pages begins; 0: there is none
  const uint64_t end = va + bytes;
  while (va < end && sure) {
    const uint64_t left = (end - va) / kPage;
    const uint64_t count = left < kEntries ? left : kEntries;
    const uint64_t wanted = count * sizeof(entries[0]);
    const long got =
        raw::Call(SYS_pread64, pagemap, &entries[0], wanted, va / kPage * sizeof(entries[0]));
    sure = got == static_cast<long>(wanted);
    for (uint64_t i = 0; i < count && sure; ++i, va += kPage) {
      const bool shared = (entries[i] & kPresent) != 0 && (entries[i] & kOfFile) != 0;
      if (shared && run == 0) run = va;
      if (shared || run == 0) continue;
      sure = Zap(run, va - run) == 0;
      run = 0;
    }
  }
  if (run != 0 && sure) sure = Zap(run, end - run) == 0;
  raw::Call(SYS_close, pagemap);
  return sure;
}

long ZapViewPagesLocked(uint64_t va, protocol::MmHandle mm, const unsigned char* pages) {
  const auto is_set = [&](uint64_t page) { return (pages[page / 8] >> (page % 8) & 1) != 0; };
  long error = 0;
  for (uint64_t page = 0; page < kPagesPerBlock;) {
    if (!is_set(page)) {
      ++page;
      continue;
    }
    uint64_t end = page + 1;
    while (end < kPagesPerBlock && is_set(end)) ++end;
    const long zapped = ZapRunLocked(va, page, end, mm);
    if (error == 0) error = zapped;
    page = end;
  }
  return error;
}

}  // namespace hostmm::guest
