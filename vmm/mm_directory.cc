#include "vmm/mm_directory.h"

#include <cassert>
#include <cstring>

#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/page_table.h"
#include "vmm/record_pool.h"
#include "vmm/snapshot_list.h"

namespace hostmm {
namespace {

constexpr size_t kNameWords = sizeof(MmRecord::name) / sizeof(SharedWord);

void StoreName(const char (&name)[sizeof(MmSpec::name)], MmRecord* record) {
  uint64_t words[kNameWords] = {};
  std::memcpy(words, name, strnlen(name, sizeof(name) - 1));
  for (size_t i = 0; i < kNameWords; ++i) record->name[i].Store(words[i]);
}

}  // namespace

TableStatus MmDirectory::Create(const MmSpec& spec, MmId* id) {
  const Geometry& geometry = segment_.geometry();
  const int top_level = geometry.TopLevelFor(spec.length);
  if (!FitsInFile(FilePage(0), spec.length) || top_level >= geometry.levels ||
      spec.frames == FrameKind::kSnapshot ||
      (spec.frames == FrameKind::kHugetlb && !geometry.HasHugeLeaf())) {
    return TableStatus::kBadRange;
  }
  auto pool = MmPool(segment_);
  NodeAllocator nodes(segment_);
  if (pool.available() == 0 || nodes.available() == 0) return TableStatus::kNoSpace;
  *id = Enter(
      {spec.frames, spec.frames, static_cast<uint8_t>(top_level), AccessSet::All(), spec.owner_uid},
      spec.length, nodes.Allocate(top_level, NodeKind::kTable));
  StoreName(spec.name, segment_.Find(*id));
  return TableStatus::kOk;
}

MmId MmDirectory::Enter(const MmTraits& traits, PageCount length, HostOffset top) {
  const RecordIndex slot = MmPool(segment_).Take();
  MmRecord* record = segment_.mm(slot);
  const uint32_t generation = NextGeneration(record->identity);
  record->length.Store(length.value());
  record->traits.Store(traits.Pack());
  record->top.Store(top.value());
  for (SharedWord* word :
       {&record->lists, &record->regions_pins, &record->mappers, &record->small_pages,
        &record->huge_blocks, &record->in_flight, &record->snapshots, &record->source,
        &record->taken, &record->pages_copied}) {
    word->Store(0);
  }
  record->identity.StoreHalves(generation, 1);
  return {slot, generation};
}

TableStatus MmDirectory::CreateSnapshot(MmId source, uint32_t min_shared_tables, uint32_t owner_uid,
                                        MmId* id) {
  MmRecord* file = segment_.Find(source);
  assert(file != nullptr);
  SnapshotTables tables(segment_, file);
  const SnapshotTables::Depth depth = tables.DepthOfTake(min_shared_tables);
  const uint32_t nodes = tables.TablesAtTake(depth);
  if (MmPool(segment_).available() == 0 || NodePool(segment_).available() < nodes) {
    return TableStatus::kNoSpace;
  }
  MmTraits traits = MmTraits::Load(*file);
  traits.frames = FrameKind::kSnapshot;
  traits.owner_uid = owner_uid;
  *id = Enter(traits, PageCount(file->length.Load()), tables.CopyTop(depth));
  MmRecord* record = segment_.Find(*id);
  for (size_t i = 0; i < kNameWords; ++i) record->name[i].Store(file->name[i].Load());
  LinkSnapshot(segment_, source, id->slot);
  SharedWord* stats = segment_.header().stats;
  stats[StatIndex(FaultCounter::kSnapshotsTaken)].Add(1);
  stats[StatIndex(FaultCounter::kTablesCopiedAtTake)].Add(nodes);
  return TableStatus::kOk;
}

TableStatus MmDirectory::Grow(MmRecord* record, PageCount length) {
  if (length.value() <= record->length.Load()) return TableStatus::kOk;
  // The top stays what it is: its guests have copies of it.
  const bool fits = FitsInFile(FilePage(0), length) &&
                    MmTraits::Load(*record).frames != FrameKind::kSnapshot &&
                    segment_.geometry().TopLevelFor(length) == MmTraits::Load(*record).top_level;
  if (!fits) return TableStatus::kBadRange;
  record->length.Store(length.value());
  return TableStatus::kOk;
}

void MmDirectory::EndSnapshot(MmId id, Released* released) {
  MmRecord* record = segment_.mm(id.slot);
  const MmId source = SourceOf(*record);
  MmRecord* file = segment_.Find(source);
  assert(file != nullptr);
  SnapshotTables(segment_, file).Drop(record, &released->frames);
  UnlinkSnapshot(segment_, id.slot);
  file->regions_pins.StoreHigh(file->regions_pins.LoadHigh() - 1);
  ReleaseIfUnused(source, released);
}

void MmDirectory::ReleaseIfUnused(MmId id, Released* released) {
  MmRecord* record = segment_.Find(id);
  if (record == nullptr || record->regions_pins.Load() != 0) return;
  record->identity.StoreHigh(0);
  released->mms.push_back(id);
  if (MmTraits::Load(*record).frames == FrameKind::kSnapshot) {
    if (SourceOf(*record).valid()) EndSnapshot(id, released);
    NodeAllocator(segment_).Free(HostOffset(record->top.Load()));
    record->top.Store(kNullOffset.value());
  } else {
    PageTable(segment_, record).FreeAll();
  }
  MmPool(segment_).GiveBack(id.slot);
}

}  // namespace hostmm
