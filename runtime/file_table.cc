#include "runtime/file_table.h"

namespace hostmm {

void FileTable::AddOwn(MmId mm, std::shared_ptr<const Backing> backing) {
  own_[Key(mm)] = std::move(backing);
}

void FileTable::AddAdopted(MmId mm, AdoptedKey key) {
  adopted_[Key(mm)] = key;
  adopted_by_key_[key] = mm;
}

void FileTable::AddNamed(MmId mm, std::shared_ptr<const Backing> backing, AdoptedKey key) {
  AddOwn(mm, std::move(backing));
  AddAdopted(mm, key);
}

std::shared_ptr<const Backing> FileTable::Find(MmId mm) const {
  const auto it = own_.find(Key(mm));
  return it == own_.end() ? nullptr : it->second;
}

std::optional<MmId> FileTable::FindAdopted(AdoptedKey key) const {
  const auto it = adopted_by_key_.find(key);
  if (it == adopted_by_key_.end()) return std::nullopt;
  return it->second;
}

void FileTable::Release(const std::vector<MmId>& mms) {
  for (const MmId mm : mms) {
    if (const auto it = own_.find(Key(mm)); it != own_.end()) {
      pool_->Submit([backing = std::move(it->second)]() mutable { backing.reset(); }, [] {});
      own_.erase(it);
    }
    if (const auto it = adopted_.find(Key(mm)); it != adopted_.end()) {
      adopted_by_key_.erase(it->second);
      adopted_.erase(it);
    }
    on_released_(mm);
  }
}

}  // namespace hostmm
