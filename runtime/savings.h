// What sharing saves, by the kernel's own counters: the page tables of the guests (VmPTE of
// /proc/PID/status) beside what 4 KiB pages would need for the same memory, 8 bytes per page and
// process.
//
// "Up to", because not every process of a plain program touches every page. VmPTE counts all of a
// process's page tables, not only those of the shared region, so the comparison is to our
// disadvantage.
//
// Units:   bytes. Threads: the loop thread. Cost: about 25 us per guest and sample (reading /proc).
#ifndef HOSTMM_RUNTIME_SAVINGS_H_
#define HOSTMM_RUNTIME_SAVINGS_H_

#include <cstdint>

#include "runtime/file_table.h"
#include "runtime/guest.h"
#include "vmm/host_tables.h"

namespace hostmm {

struct Savings {
  uint64_t guests = 0;
  uint64_t page_table_bytes = 0;  // sum of VmPTE
  uint64_t plain_bytes = 0;       // what 4 KiB pages would need at most
};

// A sample of now.
Savings MeasureSavings(const HostTables& tables, const FileTable& files, const GuestSet& guests);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SAVINGS_H_
