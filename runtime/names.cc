#include "runtime/names.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "runtime/protocol.h"

namespace hostmm {
namespace {

bool IsName(std::string_view name) {
  return !name.empty() && name.find('/') == std::string_view::npos;
}

}  // namespace

int Names::Open(const Who& who, const Wish& wish, Opened* opened) {
  constexpr uint64_t kKnown = O_ACCMODE | O_CREAT | O_EXCL;
  const uint64_t access = wish.flags & O_ACCMODE;
  if ((wish.flags & ~kKnown) != 0 || (access != O_RDONLY && access != O_RDWR)) return EINVAL;
  if (!IsName(wish.name)) return EINVAL;
  const auto it = names_.find(wish.name);
  if (it != names_.end()) {
    if ((wish.flags & O_CREAT) != 0 && (wish.flags & O_EXCL) != 0) return EEXIST;
    const int error = WhyNot(it->second, who, access);
    return error != 0 ? error : HandOut(it->second, access, opened);
  }
  if ((wish.flags & O_CREAT) == 0) return ENOENT;
  if (const int error = Create(who, wish); error != 0) return error;
  const int error = HandOut(names_.find(wish.name)->second, access, opened);
  if (error != 0) Unlink(who, wish.name);
  return error;
}

int Names::Find(const Who& who, std::string_view name, MmId* mm) const {
  const auto it = names_.find(name);
  if (it == names_.end()) return ENOENT;
  *mm = it->second.mm;
  return WhyNot(it->second, who, O_RDONLY);
}

int Names::HandOut(const Named& named, uint64_t access, Opened* opened) const {
  const std::shared_ptr<const Backing> backing = files_->Find(named.mm);
  if (backing == nullptr) return ENOENT;
  opened->file = backing->OpenAnew(static_cast<int>(access));
  if (!opened->file.ok()) return errno == EMFILE || errno == ENFILE ? EMFILE : EACCES;
  opened->length = named.length;
  opened->unit = UnitOf(backing->kind());
  return 0;
}

int Names::WhyNot(const Named& named, const Who& who, uint64_t access) {
  if (who.uid == 0) return 0;
  int shift = 0;
  if (who.uid == named.uid) {
    shift = 6;
  } else if (who.gid == named.gid) {
    shift = 3;
  }
  const uint32_t wanted = access == O_RDONLY ? 4 : 6;
  return ((named.mode >> shift) & wanted) == wanted ? 0 : EACCES;
}

int Names::Create(const Who& who, const Wish& wish) {
  if (wish.length == 0) return EINVAL;
  if (wish.length > max_bytes_ || who.room_for_file == Who::Room::kFull) return ENOSPC;
  const uint64_t bytes =
      (wish.length + protocol::kGranule - 1) / protocol::kGranule * protocol::kGranule;
  absl::StatusOr<std::shared_ptr<const Backing>> backing = frames_->Make(bytes);
  if (!backing.ok()) return ENOSPC;
  const int file = (*backing)->file().get();
  struct stat info;
  if (fchmod(file, 0600) != 0 || fstat(file, &info) != 0) return ENOSPC;
  HostTables::MmSpec spec;
  spec.length = PageCount(bytes / kPageSize);
  spec.frames = (*backing)->kind();
  spec.owner_uid = who.uid;
  wish.name.copy(spec.name, sizeof(spec.name) - 1);
  MmId mm;
  if (tables_->CreateMm(spec, &mm) != TableStatus::kOk) return ENOSPC;
  tables_->PinMm(mm);
  files_->AddNamed(mm, *std::move(backing), {info.st_dev, info.st_ino});
  names_[std::string(wish.name)] = {mm, who.uid, who.gid, static_cast<uint32_t>(wish.mode & 0777),
                                    bytes};
  return 0;
}

int Names::Unlink(const Who& who, std::string_view name) {
  if (!IsName(name)) return EINVAL;
  const auto it = names_.find(name);
  if (it == names_.end()) return ENOENT;
  if (who.uid != 0 && who.uid != it->second.uid) return EACCES;
  ReleasedMms released;
  tables_->UnpinMm(it->second.mm, &released);
  names_.erase(it);
  files_->Release(released);
  return 0;
}

}  // namespace hostmm
