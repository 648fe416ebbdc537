#include "tests/oracle/known_differences.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

namespace hostmm::oracle {
namespace {

// Plain Linux names anonymous shared memory after /dev/zero; a file of the pager's store has no
// name, in a file system that is mounted nowhere.
bool IsAnonymousShared(const char* line) {
  return strstr(line, " /dev/zero (deleted)") != nullptr || strstr(line, " /#") != nullptr;
}

}  // namespace

bool MovesSeveralMappings(uint64_t address, uint64_t bytes) {
  FILE* const maps = fopen("/proc/self/maps", "re");
  if (maps == nullptr) return false;
  const uint64_t limit = address + bytes;
  uint64_t covered = 0;
  int mappings = 0;
  bool anonymous = false;
  char line[512];
  while (fgets(line, sizeof(line), maps) != nullptr) {
    uint64_t begin = 0;
    uint64_t end = 0;
    if (sscanf(line, "%" SCNx64 "-%" SCNx64, &begin, &end) != 2) continue;
    if (end <= address || begin >= limit) continue;
    covered += std::min(end, limit) - std::max(begin, address);
    ++mappings;
    anonymous = anonymous || IsAnonymousShared(line);
  }
  fclose(maps);
  return anonymous && (mappings > 1 || covered != bytes);
}

}  // namespace hostmm::oracle
