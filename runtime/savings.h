// What sharing saves, by the kernel's own counters: the page tables of the guests (VmPTE of
// /proc/PID/status) beside what 4 KiB pages would need for the same memory, 8 bytes per page and
// process.
//
// "Up to", because not every process of a plain program touches every page. VmPTE counts all of a
// process's page tables, not only those of the shared region, so the comparison is to our
// disadvantage.
//
// Units:    bytes.
// Threads:  Survey on the loop thread; SumPageTables on any, and best on a worker: reading /proc
//           costs about 25 us per guest.
#ifndef HOSTMM_RUNTIME_SAVINGS_H_
#define HOSTMM_RUNTIME_SAVINGS_H_

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "runtime/file_table.h"
#include "runtime/guest.h"
#include "vmm/host_tables.h"

namespace hostmm {

struct Savings {
  std::vector<pid_t> guests;
  uint64_t plain_bytes = 0;       // what 4 KiB pages would need at most
  uint64_t page_table_bytes = 0;  // sum of the guests' VmPTE
};

// Who is there, and what plain pages would need for what they map. Leaves page_table_bytes at 0.
Savings Survey(const HostTables& tables, const FileTable& files, const GuestSet& guests);

// The kernel's page tables of these processes; one that is gone counts nothing.
uint64_t SumPageTables(const std::vector<pid_t>& guests);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SAVINGS_H_
