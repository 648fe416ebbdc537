// Named regions: files of the pager that processes find by name, as with shm_open.
//
// Life:     a name keeps its file, mapped or not, until it is unlinked or the pager ends. The file
//           of a name that is gone lives as long as somebody maps it.
// Access:   user, group and permission bits as for files, by the user and group that the process
//           had when it connected (its other groups do not count); uid 0 may do everything. A file
//           opened read-only is handed out as an open file that cannot be written, and the file's
//           own bits (0600, the pager's) keep others from opening it anew through /proc.
// Threads:  the loop thread.
// Errors:   an errno, as open and unlink would give.
#ifndef HOSTMM_RUNTIME_NAMES_H_
#define HOSTMM_RUNTIME_NAMES_H_

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "runtime/file_table.h"
#include "runtime/frame_maker.h"
#include "runtime/unique_fd.h"
#include "vmm/host_tables.h"

namespace hostmm {

class Names {
 public:
  struct Who {
    uid_t uid = 0;
    gid_t gid = 0;
    enum class Room : uint8_t { kFree, kFull } room_for_file = Room::kFree;
  };
  struct Wish {
    std::string_view name;
    uint64_t length = 0;  // bytes; with O_CREAT
    uint64_t flags = 0;   // O_RDONLY or O_RDWR, O_CREAT, O_EXCL
    uint64_t mode = 0;    // with O_CREAT
  };
  struct Opened {
    UniqueFd file;
    uint64_t length = 0;  // bytes
    uint64_t unit = 0;    // of lengths of its mappings
  };

  // All outlive it. `max_bytes`: of one file.
  Names(HostTables* tables, FileTable* files, FrameMaker* frames, uint64_t max_bytes)
      : tables_(tables), files_(files), frames_(frames), max_bytes_(max_bytes) {}

  // RETURNS: 0, or EINVAL (name, length or flags make no sense), EEXIST, ENOENT, EACCES, ENOSPC
  // (no frames, or no room in the tables), EMFILE.
  int Open(const Who& who, const Wish& wish, Opened* opened);
  // The region of that name, for who may read it. RETURNS: 0, ENOENT, EACCES.
  int Find(const Who& who, std::string_view name, MmId* mm) const;
  // RETURNS: 0, or EINVAL, ENOENT, EACCES (neither the owner nor root).
  int Unlink(const Who& who, std::string_view name);

 private:
  struct Named {
    MmId mm;
    uid_t uid;
    gid_t gid;
    uint32_t mode;
    uint64_t length;
  };
  int Create(const Who& who, const Wish& wish);
  int HandOut(const Named& named, uint64_t access, Opened* opened) const;
  static int WhyNot(const Named& named, const Who& who, uint64_t access);

  HostTables* const tables_;
  FileTable* const files_;
  FrameMaker* const frames_;
  const uint64_t max_bytes_;
  absl::flat_hash_map<std::string, Named> names_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_NAMES_H_
