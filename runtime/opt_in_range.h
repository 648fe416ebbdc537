// Opt-in memory (MAP_SHARED_PT) of one guest, as the tables have it. Where protections differ the
// tables hold several regions for what the guest mapped as one; here they are one again.
//
// Threads:  the loop thread. Errors: nullopt, or a length of 0.
#ifndef HOSTMM_RUNTIME_OPT_IN_RANGE_H_
#define HOSTMM_RUNTIME_OPT_IN_RANGE_H_

#include <optional>

#include "vmm/host_tables.h"

namespace hostmm {

// Consecutive pages of one file.
struct OptInRange {
  MmId mm;
  FilePage first;
  PageCount count;
  uint32_t flags = 0;  // RegionFlags of any part
};

// What the guest maps at [va, va + length), if all of it is opt-in memory of one file in the file's
// order.
std::optional<OptInRange> FindOptInRange(const HostTables& tables, GuestId guest, GuestAddr va,
                                         PageCount length);

// From one address on, as far as it is the same.
struct AccessSpan {
  AccessSet access;
  PageCount length;  // 0: nothing opt-in is mapped there
};
AccessSpan AccessSpanAt(const HostTables& tables, GuestId guest, GuestAddr va);

enum class MapsOptIn : uint8_t { kNo, kYes };
MapsOptIn LookForOptIn(const HostTables& tables, GuestId guest, MmId mm);

// PROT_* of mprotect and the tables' access.
AccessSet AccessFromProt(uint32_t prot);
uint32_t ProtFromAccess(AccessSet access);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_OPT_IN_RANGE_H_
