#include "runtime/cli/snapshot.h"

#include <algorithm>
#include <cstring>

#include "runtime/cli/failure.h"

namespace hostmm {
namespace {

// A pager under load changes its tables for microseconds at a time; this many tries find a gap.
// Arbitrary.
constexpr int kAttempts = 1000;

// An entry of the lowest page table: 8 bytes for 4 KiB.
constexpr uint64_t kTableBytesPerPage = 8;

}  // namespace

uint64_t PopulatedBytesOf(const MmInfo& mm) {
  return BytesOf(mm.small_pages) + mm.huge_blocks * kBlockSize;
}

std::string NameOf(const MmInfo& mm) {
  return OneLine(std::string_view(mm.name, strnlen(mm.name, sizeof(mm.name))));
}

std::string_view NameOf(FrameKind frames) {
  switch (frames) {
    case FrameKind::kHuge:
      return "huge";
    case FrameKind::kHugetlb:
      return "hugetlb";
    case FrameKind::kBase:
      return "base";
    case FrameKind::kAdopted:
      return "adopted";
    case FrameKind::kForeign:
      return "foreign";
    case FrameKind::kSnapshot:
      return "snapshot";
  }
  return "unknown";
}

const MmInfo* Snapshot::Find(MmId id) const {
  const auto found = std::ranges::find_if(mms, [id](const MmInfo& mm) { return mm.id == id; });
  return found == mms.end() ? nullptr : &*found;
}

uint64_t Snapshot::RegionCount() const {
  uint64_t count = 0;
  for (const GuestRow& guest : guests) count += guest.regions.size();
  return count;
}

uint64_t Snapshot::PopulatedBytes() const {
  uint64_t bytes = 0;
  for (const MmInfo& mm : mms) bytes += PopulatedBytesOf(mm);
  return bytes;
}

uint64_t Snapshot::KernelTableBytes() const {
  uint64_t bytes = 0;
  for (const GuestRow& guest : guests) bytes += guest.page_table_bytes.value_or(0);
  return bytes;
}

uint64_t Snapshot::PlainTableBytes() const {
  uint64_t bytes = 0;
  for (const GuestRow& guest : guests) {
    for (const Region& region : guest.regions) {
      const MmInfo* mm = Find(region.mm);
      if (mm == nullptr) continue;
      const uint64_t mapped = std::min(BytesOf(region.length), PopulatedBytesOf(*mm));
      bytes += mapped / kPageSize * kTableBytesPerPage;
    }
  }
  return bytes;
}

Snapshot TakeSnapshot(const TableReader& reader, const PageTableLookup& page_tables) {
  Snapshot snapshot;
  const ReadStatus status = reader.ReadConsistently(kAttempts, [&] {
    snapshot = Snapshot();
    snapshot.faults = reader.Stats();
    snapshot.pools = reader.Pools();
    reader.ForEachGuest([&](const GuestInfo& info) {
      GuestRow row{info, {}, std::nullopt};
      reader.ForEachRegion(info.id, [&](const Region& region) { row.regions.push_back(region); });
      snapshot.guests.push_back(std::move(row));
    });
    reader.ForEachMm([&](const MmInfo& info) { snapshot.mms.push_back(info); });
  });
  snapshot.consistent = status;
  for (GuestRow& guest : snapshot.guests) {
    if (guest.info.pid > 0) guest.page_table_bytes = page_tables(guest.info.pid);
  }
  return snapshot;
}

}  // namespace hostmm
