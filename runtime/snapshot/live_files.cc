#include "runtime/snapshot/live_files.h"

#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

#include <utility>

#include "runtime/sys_error.h"

namespace hostmm {

LiveFile* LiveFiles::Find(MmId mm) const {
  const auto it = files_.find(KeyOf(mm));
  return it == files_.end() ? nullptr : it->second.get();
}

absl::StatusOr<LiveFile*> LiveFiles::FindOrMake(MmId mm, std::shared_ptr<const Backing> backing,
                                                uint64_t limit_bytes) {
  if (LiveFile* found = Find(mm); found != nullptr) return found;
  absl::StatusOr<PreimageStore> store = PreimageStore::Create(limit_bytes);
  if (!store.ok()) return store.status();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return SysError("pipe2");
  auto file = std::make_unique<LiveFile>();
  file->mm = mm;
  file->backing = std::move(backing);
  file->store = std::make_shared<PreimageStore>(*std::move(store));
  file->life_read.reset(ends[0]);
  file->life_write.reset(ends[1]);
  if (getrandom(file->random.data(), sizeof(file->random), 0) !=
      static_cast<ssize_t>(sizeof(file->random))) {
    return SysError("getrandom");
  }
  LiveFile* made = file.get();
  files_[KeyOf(mm)] = std::move(file);
  return made;
}

std::vector<MmId> LiveFiles::all() const {
  std::vector<MmId> mms;
  mms.reserve(files_.size());
  for (const auto& [key, file] : files_) mms.push_back(file->mm);
  return mms;
}

}  // namespace hostmm
