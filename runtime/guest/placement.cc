#include "runtime/guest/placement.h"

#include <errno.h>
#include <sys/mman.h>

#include "runtime/guest/raw_syscall.h"

namespace hostmm::guest {
namespace {

constexpr int kReserveFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

}  // namespace

uint64_t Reserve(uint64_t bytes, uint64_t alignment, uint64_t offset) {
  const uint64_t span = bytes + alignment;
  const long got = raw::Call(SYS_mmap, 0, span, PROT_NONE, kReserveFlags, -1, 0);
  if (raw::Failed(got)) return 0;
  const uint64_t start = static_cast<uint64_t>(got);
  // The highest fitting address: the end that lies against the existing mappings.
  const uint64_t last = start + span - bytes;
  const uint64_t va = last - (last - offset % alignment) % alignment;
  if (va > start) Unreserve(start, va - start);
  if (va + bytes < start + span) Unreserve(va + bytes, start + span - (va + bytes));
  return va;
}

Reservation ReserveAt(uint64_t va, uint64_t bytes) {
  const long got =
      raw::Call(SYS_mmap, va, bytes, PROT_NONE, kReserveFlags | MAP_FIXED_NOREPLACE, -1, 0);
  if (!raw::Failed(got)) return Reservation::kDone;
  return got == -EEXIST ? Reservation::kTaken : Reservation::kFailed;
}

void Unreserve(uint64_t va, uint64_t bytes) { raw::Call(SYS_munmap, va, bytes); }

}  // namespace hostmm::guest
