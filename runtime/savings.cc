#include "runtime/savings.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "absl/container/flat_hash_map.h"

namespace hostmm {
namespace {

uint64_t PageTableBytes(pid_t pid) {
  char path[64];
  std::snprintf(path, sizeof(path), "/proc/%d/status", pid);
  UniqueFd file(open(path, O_RDONLY | O_CLOEXEC));
  if (!file.ok()) return 0;
  char text[4096];
  const ssize_t got = read(file.get(), text, sizeof(text) - 1);
  if (got <= 0) return 0;
  text[got] = '\0';
  const char* found = strstr(text, "VmPTE:");
  return found == nullptr ? 0 : strtoull(found + strlen("VmPTE:"), nullptr, 10) * 1024;
}

// Bytes of the file that are in memory, by the kernel's count for our own files.
uint64_t ResidentBytes(const MmInfo& mm, const FileTable& files) {
  const std::shared_ptr<const Backing> backing = files.Find(mm.id);
  struct stat info;
  if (backing != nullptr && fstat(backing->file().get(), &info) == 0) {
    return static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return mm.huge_blocks * kBlockSize + BytesOf(mm.small_pages);
}

}  // namespace

Savings Survey(const HostTables& tables, const FileTable& files, const GuestSet& guests) {
  absl::flat_hash_map<uint32_t, uint64_t> resident;  // by slot of the mm
  tables.ForEachMm([&](const MmInfo& mm) { resident[mm.id.slot] = ResidentBytes(mm, files); });
  Savings now;
  guests.ForEach([&](const Guest& guest) {
    if (guest.pid == 0) return;
    now.guests.push_back(guest.pid);
    tables.ForEachRegion(guest.id, [&](const Region& region) {
      now.plain_bytes += std::min(resident[region.mm.slot], BytesOf(region.length)) / kPageSize * 8;
    });
  });
  return now;
}

uint64_t SumPageTables(const std::vector<pid_t>& guests) {
  uint64_t sum = 0;
  for (const pid_t pid : guests) sum += PageTableBytes(pid);
  return sum;
}

}  // namespace hostmm
