// The image of a snapshot: a stream of bytes that holds the memory of a region at one moment.
//
//   header     4 KiB             what it is an image of
//   record     4 KiB + pages     for each 2 MiB block that has something, ascending
//   ...
//   end        4 KiB             says that nothing is missing
//
// Units:    pages of 4 KiB, blocks of 512 of them. All parts are multiples of 4 KiB, so that the
//           stream can be written with O_DIRECT. Numbers are little-endian; what is not named is 0.
// Chain:    the hash of the header seeds that of the first record, which seeds that of the second,
//           and so on to the end. So a record that is missing, moved, doubled or of another image
//           shows at the next one, and every prefix can be checked, and gone on with, by itself.
// Full:     a page that no record has is zero. Incremental (it has a base): such a page is as in
//           the base.
// Used by:  the pager, the command line and the guest library: plain data, no C++ library.
// More:     docs/image_format.md.
#ifndef HOSTMM_RUNTIME_IMAGE_IMAGE_FORMAT_H_
#define HOSTMM_RUNTIME_IMAGE_IMAGE_FORMAT_H_

#include <cstddef>
#include <cstdint>

namespace hostmm {

inline constexpr uint64_t kImageMagic = 0x3167'6d69'6d6d'6f68;   // "hommimg1"
inline constexpr uint64_t kRecordMagic = 0x3163'6572'6d6d'6f68;  // "hommrec1"
inline constexpr uint64_t kEndMagic = 0x3164'6e65'6d6d'6f68;     // "hommend1"
inline constexpr uint32_t kImageVersion = 1;
inline constexpr uint64_t kImagePage = 4096;
inline constexpr uint64_t kImageBlock = uint64_t{2} << 20;
inline constexpr uint32_t kPagesOfBlock = 512;
// No address space is longer: lengths up to here can be added without overflow.
inline constexpr uint64_t kMaxImageLength = uint64_t{1} << 57;

// A bit for each page of a block, lowest first.
struct PageBitmap {
  uint64_t words[kPagesOfBlock / 64];

  static PageBitmap All() { return FirstOnes(kPagesOfBlock); }
  static PageBitmap FirstOnes(uint32_t count) {
    PageBitmap bitmap = {};
    for (uint32_t page = 0; page < count; ++page) bitmap.Set(page);
    return bitmap;
  }
  bool Test(uint32_t page) const { return (words[page / 64] >> (page % 64) & 1) != 0; }
  void Set(uint32_t page) { words[page / 64] |= uint64_t{1} << (page % 64); }
  void Clear(uint32_t page) { words[page / 64] &= ~(uint64_t{1} << (page % 64)); }
  uint32_t Count() const {
    uint32_t count = 0;
    for (const uint64_t word : words) count += static_cast<uint32_t>(__builtin_popcountll(word));
    return count;
  }
  void Intersect(const PageBitmap& other) {
    for (uint32_t i = 0; i < kPagesOfBlock / 64; ++i) words[i] &= other.words[i];
  }
  bool Intersects(const PageBitmap& other) const {
    for (uint32_t i = 0; i < kPagesOfBlock / 64; ++i) {
      if ((words[i] & other.words[i]) != 0) return true;
    }
    return false;
  }
  bool operator==(const PageBitmap&) const = default;
};

// Which snapshot: `random` is the region's, chosen with its first snapshot; `sequence` counts its
// snapshots from 1. All 0: none.
struct ImageId {
  uint64_t random[2];
  uint64_t sequence;

  bool IsNone() const { return random[0] == 0 && random[1] == 0 && sequence == 0; }
  bool SameRegion(const ImageId& other) const {
    return random[0] == other.random[0] && random[1] == other.random[1];
  }
  bool operator==(const ImageId&) const = default;
};

struct ImageHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t unit;    // bytes in which writes were told apart: 4 KiB or 2 MiB
  uint64_t length;  // bytes of the region, a multiple of 4 KiB
  ImageId id;
  ImageId base;       // incremental: what it is based on. None: a full image
  uint64_t taken_ns;  // CLOCK_REALTIME of the snapshot; 0: not known
  char name[64];      // of the region, NUL-terminated; for people
  uint8_t reserved[3944];
  uint64_t hash;  // of all before it, with seed 0

  bool incremental() const { return !base.IsNone(); }
};
static_assert(sizeof(ImageHeader) == kImagePage);

struct ImageRecord {
  uint64_t magic;
  uint64_t block;       // [block * 2 MiB, + 2 MiB) of the region
  uint32_t data_pages;  // that follow, in ascending order: the bits of `data`
  uint32_t zero_pages;  // the bits of `zero`
  PageBitmap data;
  PageBitmap zero;     // incremental: these are zero now. Full: none
  uint64_t data_hash;  // of the pages that follow, with seed 0
  uint8_t reserved[3928];
  uint64_t hash;  // of all before it, with the hash of the record or header before as seed
};
static_assert(sizeof(ImageRecord) == kImagePage);

struct ImageEnd {
  uint64_t magic;
  uint64_t records;
  uint64_t data_pages;
  uint64_t zero_pages;
  uint64_t bytes;  // of the whole image, this end included
  uint8_t reserved[4048];
  uint64_t hash;  // as a record's
};
static_assert(sizeof(ImageEnd) == kImagePage);

// What the pager writes to a progress pipe, each at once: bytes of the region that are done.
struct ImageProgress {
  uint64_t done;
  uint64_t total;
};

// What has been written or read up to some record.
struct ImagePosition {
  uint64_t bytes = 0;
  uint64_t chain = 0;       // hash of the last record or header
  uint64_t next_block = 0;  // the least that may come
  uint64_t records = 0;
  uint64_t data_pages = 0;
  uint64_t zero_pages = 0;
};

// XXH3, 64 bits: it finds damage, it does not stop a forger.
uint64_t ImageHash(const void* data, size_t bytes, uint64_t seed);

// Sets `hash`.
void SealHeader(ImageHeader* header);
void SealRecord(uint64_t chain, ImageRecord* record);
void SealEnd(const ImagePosition& position, ImageEnd* end);

// What a 4 KiB page of a stream is found to be, checked against what came before it.
// kOther: of another kind, `hash` was not looked at. kDamaged: the hash is wrong. kImpossible: the
// hash is right, and the fields make no sense: whoever wrote it was no hostmm of this version.
enum class PartIs : uint8_t { kGood, kOther, kDamaged, kImpossible };
PartIs CheckHeader(const ImageHeader& header);
PartIs CheckRecord(const ImageHeader& header, const ImagePosition& position,
                   const ImageRecord& record);
PartIs CheckEnd(const ImagePosition& position, const ImageEnd& end);

// The position behind a part that is good.
ImagePosition Behind(const ImageHeader& header);
ImagePosition Behind(const ImagePosition& position, const ImageRecord& record);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_IMAGE_FORMAT_H_
