// What one user may take of the files (mm records) that all guests share. Snapshots are files of
// whoever took them.
//
// Threads:  the loop thread. Errors: none.
#ifndef HOSTMM_RUNTIME_FILE_QUOTA_H_
#define HOSTMM_RUNTIME_FILE_QUOTA_H_

#include <sys/types.h>

#include <cstdint>

#include "vmm/host_tables.h"
#include "vmm/segment.h"

namespace hostmm {

// Three quarters. Arbitrary.
inline constexpr uint32_t kFilesPerUser = SegmentConfig{}.max_mms / 4 * 3;

inline bool HasRoomForFile(const HostTables& tables, uid_t uid) {
  uint32_t files = 0;
  tables.ForEachMm([&](const MmInfo& mm) { files += mm.owner_uid == uid ? 1 : 0; });
  return files < kFilesPerUser;
}

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_FILE_QUOTA_H_
