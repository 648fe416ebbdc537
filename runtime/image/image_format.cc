#include "runtime/image/image_format.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstring>

namespace hostmm {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);

template <class Part>
uint64_t HashOf(const Part& part, uint64_t seed) {
  static_assert(offsetof(Part, hash) == kImagePage - sizeof(uint64_t));
  return ImageHash(&part, offsetof(Part, hash), seed);
}

bool IsZero(const uint8_t* bytes, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (bytes[i] != 0) return false;
  }
  return true;
}

bool HeaderMakesSense(const ImageHeader& header) {
  if (header.unit != kImagePage && header.unit != kImageBlock) return false;
  if (header.length == 0 || header.length > kMaxImageLength) return false;
  if (header.length % kImagePage != 0) return false;
  if (header.id.sequence == 0 || header.name[sizeof(header.name) - 1] != '\0') return false;
  if (!header.incremental()) return true;
  return header.base.SameRegion(header.id) && header.base.sequence < header.id.sequence;
}

// The pages of `block` that the region has.
PageBitmap PagesWithin(uint64_t length, uint64_t block) {
  const uint64_t rest = length - block * kImageBlock;
  if (rest >= kImageBlock) return PageBitmap::All();
  return PageBitmap::FirstOnes(static_cast<uint32_t>(rest / kImagePage));
}

bool IsWithin(const PageBitmap& pages, const PageBitmap& within) {
  for (size_t i = 0; i < kPagesOfBlock / 64; ++i) {
    if ((pages.words[i] & ~within.words[i]) != 0) return false;
  }
  return true;
}

bool RecordMakesSense(const ImageHeader& header, const ImagePosition& position,
                      const ImageRecord& record) {
  const uint64_t blocks = (header.length + kImageBlock - 1) / kImageBlock;
  if (record.block < position.next_block || record.block >= blocks) return false;
  if (record.data.Count() != record.data_pages || record.zero.Count() != record.zero_pages) {
    return false;
  }
  if (record.data_pages == 0 && record.zero_pages == 0) return false;
  if (record.zero_pages != 0 && !header.incremental()) return false;
  const PageBitmap within = PagesWithin(header.length, record.block);
  return IsWithin(record.data, within) && IsWithin(record.zero, within) &&
         !record.data.Intersects(record.zero);
}

}  // namespace

uint64_t ImageHash(const void* data, size_t bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(data, bytes, seed);
}

void SealHeader(ImageHeader* header) { header->hash = HashOf(*header, 0); }

void SealRecord(uint64_t chain, ImageRecord* record) { record->hash = HashOf(*record, chain); }

void SealEnd(const ImagePosition& position, ImageEnd* end) {
  *end = ImageEnd();
  end->magic = kEndMagic;
  end->records = position.records;
  end->data_pages = position.data_pages;
  end->zero_pages = position.zero_pages;
  end->bytes = position.bytes + kImagePage;
  end->hash = HashOf(*end, position.chain);
}

PartIs CheckHeader(const ImageHeader& header) {
  if (header.magic != kImageMagic || header.version != kImageVersion) return PartIs::kOther;
  if (header.hash != HashOf(header, 0)) return PartIs::kDamaged;
  const bool sense = HeaderMakesSense(header) && IsZero(header.reserved, sizeof(header.reserved));
  return sense ? PartIs::kGood : PartIs::kImpossible;
}

PartIs CheckRecord(const ImageHeader& header, const ImagePosition& position,
                   const ImageRecord& record) {
  if (record.magic != kRecordMagic) return PartIs::kOther;
  if (record.hash != HashOf(record, position.chain)) return PartIs::kDamaged;
  const bool sense = RecordMakesSense(header, position, record) &&
                     IsZero(record.reserved, sizeof(record.reserved));
  return sense ? PartIs::kGood : PartIs::kImpossible;
}

PartIs CheckEnd(const ImagePosition& position, const ImageEnd& end) {
  if (end.magic != kEndMagic) return PartIs::kOther;
  if (end.hash != HashOf(end, position.chain)) return PartIs::kDamaged;
  ImageEnd expected;
  SealEnd(position, &expected);
  return memcmp(&expected, &end, sizeof(end)) == 0 ? PartIs::kGood : PartIs::kImpossible;
}

ImagePosition Behind(const ImageHeader& header) {
  ImagePosition position;
  position.bytes = kImagePage;
  position.chain = header.hash;
  return position;
}

ImagePosition Behind(const ImagePosition& position, const ImageRecord& record) {
  ImagePosition next = position;
  next.bytes += kImagePage + record.data_pages * kImagePage;
  next.chain = record.hash;
  next.next_block = record.block + 1;
  ++next.records;
  next.data_pages += record.data_pages;
  next.zero_pages += record.zero_pages;
  return next;
}

}  // namespace hostmm
