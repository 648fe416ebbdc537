#include "runtime/image/block_digest.h"

#include <cstring>

namespace hostmm {
namespace {

bool IsZeroPage(const std::byte* page) {
  return page[0] == std::byte{0} && std::memcmp(page, page + 1, kImagePage - 1) == 0;
}

}  // namespace

void DigestBlock(ImageKind kind, uint64_t index, const PageBitmap& pages, std::byte* block,
                 ImageRecord* record) {
  *record = ImageRecord();
  record->magic = kRecordMagic;
  record->block = index;
  std::byte* to = block;
  for (uint32_t page = 0; page < kPagesOfBlock; ++page) {
    if (!pages.Test(page)) continue;
    const std::byte* from = block + page * kImagePage;
    if (!IsZeroPage(from)) {
      record->data.Set(page);
      if (to != from) std::memcpy(to, from, kImagePage);
      to += kImagePage;
    } else if (kind == ImageKind::kIncremental) {
      record->zero.Set(page);
    }
  }
  record->data_pages = record->data.Count();
  record->zero_pages = record->zero.Count();
  record->data_hash = ImageHash(block, record->data_pages * kImagePage, 0);
}

}  // namespace hostmm
