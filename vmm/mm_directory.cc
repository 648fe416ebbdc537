#include "vmm/mm_directory.h"

#include <cstring>

#include "vmm/host_mm.h"
#include "vmm/node_allocator.h"
#include "vmm/page_table.h"
#include "vmm/record_pool.h"

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
      (spec.frames == FrameKind::kHugetlb && !geometry.HasHugeLeaf())) {
    return TableStatus::kBadRange;
  }
  auto pool = MmPool(segment_);
  NodeAllocator nodes(segment_);
  if (pool.available() == 0 || nodes.available() == 0) return TableStatus::kNoSpace;
  const RecordIndex slot = pool.Take();
  MmRecord* record = segment_.mm(slot);
  const uint32_t generation = NextGeneration(record->identity);
  record->length.Store(spec.length.value());
  record->traits.Store(
      MmTraits{spec.frames, static_cast<uint8_t>(top_level), AccessSet::All(), spec.owner_uid}
          .Pack());
  record->top.Store(nodes.Allocate(top_level, NodeKind::kTable).value());
  for (SharedWord* word : {&record->lists, &record->regions_pins, &record->mappers,
                           &record->small_pages, &record->huge_blocks, &record->in_flight}) {
    word->Store(0);
  }
  StoreName(spec.name, record);
  record->identity.StoreHalves(generation, 1);
  *id = MmId{slot, generation};
  return TableStatus::kOk;
}

TableStatus MmDirectory::Grow(MmRecord* record, PageCount length) {
  if (length.value() <= record->length.Load()) return TableStatus::kOk;
  // The top stays what it is: its guests have copies of it.
  const bool fits = FitsInFile(FilePage(0), length) &&
                    segment_.geometry().TopLevelFor(length) == MmTraits::Load(*record).top_level;
  if (!fits) return TableStatus::kBadRange;
  record->length.Store(length.value());
  return TableStatus::kOk;
}

void MmDirectory::ReleaseIfUnused(MmId id, std::vector<MmId>* released) {
  MmRecord* record = segment_.Find(id);
  if (record == nullptr || record->regions_pins.Load() != 0) return;
  record->identity.StoreHigh(0);
  PageTable(segment_, record).FreeAll();
  MmPool(segment_).GiveBack(id.slot);
  released->push_back(id);
}

}  // namespace hostmm
