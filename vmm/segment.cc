#include "vmm/segment.h"

#include <bit>

namespace hostmm {
namespace {

constexpr uint64_t kArrayAlignment = kPageSize;

uint64_t AlignUp(uint64_t bytes) { return (bytes + kArrayAlignment - 1) & ~(kArrayAlignment - 1); }

// Bytes of an array whose record 0 is unused.
template <class Record>
uint64_t ArrayBytes(uint32_t count) {
  return AlignUp((uint64_t{count} + 1) * sizeof(Record));
}

uint64_t PackGeometry(const Geometry& geometry) {
  const uint8_t bytes[8] = {geometry.page_shift,  geometry.bits[0], geometry.bits[1],
                            geometry.bits[2],     geometry.bits[3], geometry.huge_leaf_level,
                            geometry.share_level, geometry.levels};
  uint64_t word = 0;
  for (int i = 7; i >= 0; --i) word = word << 8 | bytes[i];
  return word;
}

Geometry UnpackGeometry(uint64_t word) {
  const auto byte = [word](int i) { return static_cast<uint8_t>(word >> (8 * i)); };
  return Geometry{.page_shift = byte(0),
                  .bits = {byte(1), byte(2), byte(3), byte(4)},
                  .huge_leaf_level = byte(5),
                  .share_level = byte(6),
                  .levels = byte(7)};
}

}  // namespace

SegmentView::SegmentView(const std::byte* base, const SegmentConfig& config)
    : base_(base), config_(config) {
  guests_ = kSegmentHeaderBytes;
  mms_ = guests_ + ArrayBytes<GuestRecord>(config.max_guests);
  regions_ = mms_ + ArrayBytes<MmRecord>(config.max_mms);
  attachments_ = regions_ + ArrayBytes<RegionRecord>(config.max_regions);
  node_records_ = attachments_ + ArrayBytes<AttachmentRecord>(config.max_regions);
  nodes_ = node_records_ + ArrayBytes<NodeRecord>(config.max_nodes);
  node_shift_ = std::countr_zero(config.geometry.NodeBytes());
}

AttachStatus SegmentView::Attach(std::span<const std::byte> bytes, SegmentView* view) {
  if (bytes.size() < kSegmentHeaderBytes) return AttachStatus::kTooSmall;
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(SegmentHeader) != 0) {
    return AttachStatus::kMisaligned;
  }
  const auto& header = *reinterpret_cast<const SegmentHeader*>(bytes.data());
  if (header.magic.Load() != kSegmentMagic) return AttachStatus::kBadMagic;
  if (header.version.LoadLow() != kSegmentVersion ||
      header.version.LoadHigh() != kSegmentHeaderBytes) {
    return AttachStatus::kBadVersion;
  }
  const SegmentConfig config{.max_guests = header.max_guests_mms.LoadLow(),
                             .max_mms = header.max_guests_mms.LoadHigh(),
                             .max_regions = header.max_regions_nodes.LoadLow(),
                             .max_nodes = header.max_regions_nodes.LoadHigh(),
                             .geometry = UnpackGeometry(header.geometry.Load())};
  if (!Segment::IsValid(config) || header.segment_bytes.Load() != Segment::Bytes(config)) {
    return AttachStatus::kBadGeometry;
  }
  if (header.segment_bytes.Load() > bytes.size()) return AttachStatus::kTruncated;
  *view = SegmentView(bytes.data(), config);
  return AttachStatus::kOk;
}

bool Segment::IsValid(const SegmentConfig& config) {
  for (uint32_t count : {config.max_guests, config.max_mms, config.max_regions, config.max_nodes}) {
    if (count == 0 || count > kMaxRecords) return false;
  }
  return config.geometry.IsValid();
}

size_t Segment::Bytes(const SegmentConfig& config) {
  assert(IsValid(config));
  return kSegmentHeaderBytes + ArrayBytes<GuestRecord>(config.max_guests) +
         ArrayBytes<MmRecord>(config.max_mms) + ArrayBytes<RegionRecord>(config.max_regions) +
         ArrayBytes<AttachmentRecord>(config.max_regions) +
         ArrayBytes<NodeRecord>(config.max_nodes) + config.max_nodes * config.geometry.NodeBytes();
}

Segment Segment::Format(std::span<std::byte> zeroed, const SegmentConfig& config) {
  assert(zeroed.size() >= Bytes(config));
  assert(reinterpret_cast<uintptr_t>(zeroed.data()) % alignof(SegmentHeader) == 0);
  Segment segment(zeroed.data(), config);
  SegmentHeader& header = segment.header();
  header.version.StoreHalves(kSegmentVersion, kSegmentHeaderBytes);
  header.segment_bytes.Store(Bytes(config));
  header.geometry.Store(PackGeometry(config.geometry));
  header.max_guests_mms.StoreHalves(config.max_guests, config.max_mms);
  header.max_regions_nodes.StoreHalves(config.max_regions, config.max_nodes);
  header.magic.Store(kSegmentMagic);
  return segment;
}

}  // namespace hostmm
