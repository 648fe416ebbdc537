// What `hostmm stats` and `hostmm dump` print, gathered from a segment at one moment, as plain
// values.
//
// Units:    bytes where a name says so. page_table_bytes is the kernel's own VmPTE of a guest, read
//           from /proc after the tables: nullopt if the process is gone or of another pid
//           namespace.
// Estimate: PlainTableBytes() is what 4 KiB mappings of everything that is populated would need in
//           all guests: 8 bytes per page, region and guest. It is an upper bound ("up to"): a guest
//           may never touch all of its region.
// Errors:   on a segment that changes during every attempt the values are from the last one, and
//           consistent is kBusy.
#ifndef HOSTMM_RUNTIME_CLI_SNAPSHOT_H_
#define HOSTMM_RUNTIME_CLI_SNAPSHOT_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "runtime/cli/segment_fetch.h"
#include "vmm/fault_stats.h"
#include "vmm/table_reader.h"

namespace hostmm {

struct GuestRow {
  GuestInfo info;
  std::vector<Region> regions;
  std::optional<uint64_t> page_table_bytes;
};

struct Snapshot {
  ReadStatus consistent = ReadStatus::kBusy;
  FaultStats faults;
  PoolUse pools;
  std::vector<GuestRow> guests;
  std::vector<MmInfo> mms;
  OptInCounts opt_in;  // not from the segment: whoever took that has it

  const MmInfo* Find(MmId id) const;
  uint64_t RegionCount() const;
  uint64_t PopulatedBytes() const;
  // Sum of what is known of the guests' page_table_bytes.
  uint64_t KernelTableBytes() const;
  uint64_t PlainTableBytes() const;
};

uint64_t PopulatedBytesOf(const MmInfo& mm);

// Name of a file for one line of text; the segment's bytes are not trusted.
std::string NameOf(const MmInfo& mm);
// "huge", "hugetlb", "base", "adopted", "foreign".
std::string_view NameOf(FrameKind frames);

using PageTableLookup = std::function<std::optional<uint64_t>(int64_t pid)>;

Snapshot TakeSnapshot(const TableReader& reader, const PageTableLookup& page_tables);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_SNAPSHOT_H_
