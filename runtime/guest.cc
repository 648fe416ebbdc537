#include "runtime/guest.h"

#include <utility>

namespace hostmm {

Guest* GuestSet::Add(std::unique_ptr<Guest> guest) {
  Guest* added = guest.get();
  ++per_user_[added->uid];
  guests_[added->id.slot] = std::move(guest);
  return added;
}

Guest* GuestSet::Find(GuestId id) const {
  const auto it = guests_.find(id.slot);
  return it != guests_.end() && it->second->id == id ? it->second.get() : nullptr;
}

void GuestSet::Erase(GuestId id) {
  const Guest* guest = Find(id);
  if (guest == nullptr) return;
  if (--per_user_[guest->uid] == 0) per_user_.erase(guest->uid);
  guests_.erase(id.slot);
}

}  // namespace hostmm
