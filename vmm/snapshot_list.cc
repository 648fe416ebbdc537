#include "vmm/snapshot_list.h"

#include <cassert>

namespace hostmm {

void LinkSnapshot(const Segment& segment, MmId source, RecordIndex snapshot) {
  MmRecord* file = segment.Find(source);
  MmRecord* record = segment.mm(snapshot);
  assert(file != nullptr && record != nullptr);
  const RecordIndex newest = file->snapshots.LoadLow();
  file->taken.Add(1);
  record->taken.Store(file->taken.Load());
  record->source.StoreHalves(source.slot, source.generation);
  record->snapshots.StoreHalves(newest, kNullRecord);
  if (MmRecord* older = segment.mm(newest)) older->snapshots.StoreHigh(snapshot);
  file->snapshots.StoreHalves(snapshot, file->snapshots.LoadHigh() + 1);
  file->regions_pins.StoreHigh(file->regions_pins.LoadHigh() + 1);
}

void UnlinkSnapshot(const Segment& segment, RecordIndex snapshot) {
  MmRecord* record = segment.mm(snapshot);
  MmRecord* file = segment.Find(SourceOf(*record));
  assert(file != nullptr);
  const RecordIndex older = record->snapshots.LoadLow();
  const RecordIndex newer = record->snapshots.LoadHigh();
  if (MmRecord* behind = segment.mm(older)) behind->snapshots.StoreHigh(newer);
  if (MmRecord* before = segment.mm(newer)) {
    before->snapshots.StoreLow(older);
  } else {
    file->snapshots.StoreLow(older);
  }
  file->snapshots.StoreHigh(file->snapshots.LoadHigh() - 1);
  record->snapshots.Store(0);
  record->source.Store(0);
}

}  // namespace hostmm
