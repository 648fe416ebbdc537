#include "vmm/guest_directory.h"

#include <cassert>

#include "vmm/record_pool.h"

namespace hostmm {

GuestInfo LoadGuestInfo(GuestId id, const GuestRecord& record) {
  return {.id = id,
          .pid = static_cast<int32_t>(record.process.LoadLow()),
          .uid = record.process.LoadHigh(),
          .regions = record.regions.LoadHigh()};
}

GuestId GuestDirectory::Add(int32_t pid, uint32_t uid) {
  const RecordIndex slot = GuestPool(segment_).Take();
  if (slot == kNullRecord) return {};
  GuestRecord* record = segment_.guest(slot);
  const uint32_t generation = NextGeneration(record->identity);
  record->process.StoreHalves(static_cast<uint32_t>(pid), uid);
  record->regions.Store(0);
  record->attachments.Store(kNullRecord);
  record->identity.StoreHalves(generation, 1);
  return {slot, generation};
}

void GuestDirectory::Remove(GuestId id) {
  GuestRecord* record = segment_.Find(id);
  assert(record != nullptr && record->regions.Load() == 0 && record->attachments.Load() == 0);
  record->identity.StoreHigh(0);
  segment_.BumpFreeEpoch();
  GuestPool(segment_).GiveBack(id.slot);
}

}  // namespace hostmm
