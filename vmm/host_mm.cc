#include "vmm/host_mm.h"

#include <algorithm>
#include <cstring>

namespace hostmm {
namespace {

constexpr size_t kNameWords = sizeof(MmRecord::name) / sizeof(SharedWord);
static_assert(sizeof(MmSpec::name) == kNameWords * sizeof(uint64_t));

}  // namespace

MmTraits MmTraits::Load(const MmRecord& record) {
  const uint64_t word = record.traits.Load();
  return {static_cast<FrameKind>(static_cast<uint8_t>(word)),
          static_cast<FrameKind>(static_cast<uint8_t>(word >> 8)), static_cast<uint8_t>(word >> 16),
          AccessSet::FromBits(static_cast<uint8_t>(word >> 24)), static_cast<uint32_t>(word >> 32)};
}

uint64_t MmTraits::Pack() const {
  return static_cast<uint8_t>(frames) | uint64_t{static_cast<uint8_t>(live_frames)} << 8 |
         uint64_t{top_level} << 16 | uint64_t{access.bits()} << 24 | uint64_t{owner_uid} << 32;
}

uint64_t TopEntries(const Geometry& geometry, PageCount length, int top_level) {
  const uint64_t span = geometry.SpanOf(top_level).value();
  // No overflow: a length that was accepted is at most 2^52 pages; a damaged one is cut here.
  const uint64_t pages = std::min(length.value(), kMaxFilePages);
  return std::min((pages + span - 1) / span, geometry.EntriesAt(top_level));
}

MmInfo LoadMmInfo(MmId id, const MmRecord& record) {
  const MmTraits traits = MmTraits::Load(record);
  MmInfo info{.id = id,
              .length = PageCount(record.length.Load()),
              .frames = traits.frames,
              .owner_uid = traits.owner_uid,
              .small_pages = PageCount(record.small_pages.Load()),
              .huge_blocks = record.huge_blocks.Load(),
              .in_flight = record.in_flight.Load(),
              .regions = record.regions_pins.LoadLow(),
              .mappers = record.mappers.LoadLow(),
              .pins = record.regions_pins.LoadHigh()};
  if (traits.frames == FrameKind::kSnapshot) {
    info.source = {record.source.LoadLow(), record.source.LoadHigh()};
    info.pages_copied = record.pages_copied.Load();
  } else {
    info.snapshots = record.snapshots.LoadHigh();
  }
  for (size_t i = 0; i < kNameWords; ++i) {
    const uint64_t word = record.name[i].Load();
    std::memcpy(info.name + i * sizeof(word), &word, sizeof(word));
  }
  info.name[sizeof(info.name) - 1] = '\0';
  return info;
}

}  // namespace hostmm
