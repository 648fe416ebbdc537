#include "runtime/opt_in_range.h"

#include <sys/mman.h>

#include <algorithm>

namespace hostmm {
namespace {

// Whether `next` goes on in the same file where `region` ends.
bool Continues(const Region& region, const Region& next) {
  return next.IsOptIn() && next.mm == region.mm && next.file_page == region.file_end();
}

}  // namespace

std::optional<OptInRange> FindOptInRange(const HostTables& tables, GuestId guest, GuestAddr va,
                                         PageCount length) {
  if (!FitsInGuest(va, length)) return std::nullopt;
  std::optional<Region> region = tables.FindRegion(guest, va);
  if (!region.has_value() || !region->IsOptIn()) return std::nullopt;
  OptInRange range{region->mm, region->PageAt(va), length, region->flags};
  while (region->end() < va + length) {
    const std::optional<Region> next = tables.FindRegion(guest, region->end());
    if (!next.has_value() || !Continues(*region, *next)) return std::nullopt;
    range.flags |= next->flags;
    region = next;
  }
  return range;
}

AccessSpan AccessSpanAt(const HostTables& tables, GuestId guest, GuestAddr va) {
  std::optional<Region> region = tables.FindRegion(guest, va);
  if (!region.has_value() || !region->IsOptIn()) return {};
  AccessSpan span{region->access, PagesBetween(PageFloor(va), region->end())};
  for (;;) {
    const std::optional<Region> next = tables.FindRegion(guest, region->end());
    if (!next.has_value() || !Continues(*region, *next) || !(next->access == span.access)) {
      return span;
    }
    span.length = span.length + next->length;
    region = next;
  }
}

MapsOptIn LookForOptIn(const HostTables& tables, GuestId guest, MmId mm) {
  MapsOptIn found = MapsOptIn::kNo;
  tables.ForEachRegion(guest, [&](const Region& region) {
    if (region.IsOptIn() && region.mm == mm) found = MapsOptIn::kYes;
  });
  return found;
}

AccessSet AccessFromProt(uint32_t prot) {
  AccessSet access;
  if ((prot & PROT_READ) != 0) access = access | Access::kRead;
  if ((prot & PROT_WRITE) != 0) access = access | Access::kWrite;
  if ((prot & PROT_EXEC) != 0) access = access | Access::kExec;
  return access;
}

uint32_t ProtFromAccess(AccessSet access) {
  uint32_t prot = PROT_NONE;
  if (access.Contains(Access::kRead)) prot |= PROT_READ;
  if (access.Contains(Access::kWrite)) prot |= PROT_WRITE;
  if (access.Contains(Access::kExec)) prot |= PROT_EXEC;
  return prot;
}

}  // namespace hostmm
