// Strong units of the host mm: addresses, file pages, counts, blocks, offsets and ids.
//
// Units:   a page is 4 KiB, a block 2 MiB (512 pages, naturally aligned in the file). GuestAddr and
//          HostOffset count bytes, FilePage counts pages from the start of a shared file,
//          BlockIndex counts blocks from there.
// Rules:   construction is explicit, only operators that mean something exist, and a conversion
//          that can lose a remainder says Floor or Ceil in its name.
// Threads: values; no shared state.
// Errors:  none; arithmetic does not check for overflow, callers check ranges first (FitsInGuest,
//          FitsInFile).

#ifndef HOSTMM_VMM_UNITS_H_
#define HOSTMM_VMM_UNITS_H_

#include <compare>
#include <cstdint>

namespace hostmm {

inline constexpr int kPageShift = 12;
inline constexpr int kPagesPerBlockShift = 9;
inline constexpr uint64_t kPageSize = uint64_t{1} << kPageShift;
inline constexpr uint64_t kPagesPerBlock = uint64_t{1} << kPagesPerBlockShift;
inline constexpr uint64_t kBlockSize = kPageSize * kPagesPerBlock;

// Below four page-table pages (8 MiB) a region shares nothing: the shared page table patch of 2002
// was measured to be slower than private tables exactly there.
inline constexpr uint64_t kMinSharedBlocks = 4;

// Last page number (exclusive) that a file may have: 2^52 pages keep every byte offset below 2^64.
inline constexpr uint64_t kMaxFilePages = uint64_t{1} << 52;

// End (exclusive) of the addresses that a guest may map: 2^57 covers five-level x86-64.
inline constexpr uint64_t kMaxGuestAddr = uint64_t{1} << 57;

template <class Tag>
class Unit {
 public:
  constexpr Unit() = default;
  explicit constexpr Unit(uint64_t value) : value_(value) {}
  constexpr uint64_t value() const { return value_; }
  friend constexpr auto operator<=>(Unit, Unit) = default;

 private:
  uint64_t value_ = 0;
};

// A byte address in one guest's address space.
using GuestAddr = Unit<struct GuestAddrTag>;
// A page number in a shared file.
using FilePage = Unit<struct FilePageTag>;
// A number of 4 KiB pages.
using PageCount = Unit<struct PageCountTag>;
// A block number in a shared file.
using BlockIndex = Unit<struct BlockIndexTag>;
// A byte offset from the start of the segment. Null is 0: the header lives there, nothing else ever
// does.
using HostOffset = Unit<struct HostOffsetTag>;

inline constexpr HostOffset kNullOffset{0};

constexpr PageCount operator+(PageCount a, PageCount b) { return PageCount(a.value() + b.value()); }
constexpr PageCount operator-(PageCount a, PageCount b) { return PageCount(a.value() - b.value()); }
constexpr FilePage operator+(FilePage page, PageCount count) {
  return FilePage(page.value() + count.value());
}
constexpr FilePage operator-(FilePage page, PageCount count) {
  return FilePage(page.value() - count.value());
}
constexpr PageCount operator-(FilePage to, FilePage from) {
  return PageCount(to.value() - from.value());
}
constexpr uint64_t BytesOf(PageCount count) { return count.value() << kPageShift; }
constexpr GuestAddr operator+(GuestAddr addr, PageCount count) {
  return GuestAddr(addr.value() + BytesOf(count));
}
// Whole pages between two addresses. REQUIRES: from <= to; both page-aligned.
constexpr PageCount PagesBetween(GuestAddr from, GuestAddr to) {
  return PageCount((to.value() - from.value()) >> kPageShift);
}

constexpr PageCount PagesFloor(uint64_t bytes) { return PageCount(bytes >> kPageShift); }
constexpr PageCount PagesCeil(uint64_t bytes) {
  return PageCount((bytes >> kPageShift) + ((bytes & (kPageSize - 1)) != 0));
}
constexpr GuestAddr PageFloor(GuestAddr addr) { return GuestAddr(addr.value() & ~(kPageSize - 1)); }
constexpr bool IsPageAligned(GuestAddr addr) { return (addr.value() & (kPageSize - 1)) == 0; }

constexpr BlockIndex BlockFloor(FilePage page) {
  return BlockIndex(page.value() >> kPagesPerBlockShift);
}
constexpr BlockIndex BlockCeil(FilePage page) {
  return BlockIndex((page.value() + kPagesPerBlock - 1) >> kPagesPerBlockShift);
}
constexpr FilePage FirstPageOf(BlockIndex block) {
  return FilePage(block.value() << kPagesPerBlockShift);
}
// First page after the block.
constexpr FilePage EndPageOf(BlockIndex block) {
  return FilePage((block.value() + 1) << kPagesPerBlockShift);
}
// The page's number inside its block, 0..511.
constexpr uint64_t IndexInBlock(FilePage page) { return page.value() & (kPagesPerBlock - 1); }

// [addr, addr + count) is page-aligned, not empty and inside the address space.
constexpr bool FitsInGuest(GuestAddr addr, PageCount count) {
  return IsPageAligned(addr) && count.value() != 0 && addr.value() < kMaxGuestAddr &&
         count.value() <= (kMaxGuestAddr - addr.value()) >> kPageShift;
}
// [page, page + count) is not empty and inside the largest possible file.
constexpr bool FitsInFile(FilePage page, PageCount count) {
  return count.value() != 0 && page.value() < kMaxFilePages &&
         count.value() <= kMaxFilePages - page.value();
}

// A guest process: a slot of the guest directory and the incarnation that uses it. A slot that is
// used again gets another generation, so that an id of a dead guest names nobody. Generation 0 is
// null.
struct GuestId {
  uint32_t slot = 0;
  uint32_t generation = 0;
  constexpr bool valid() const { return generation != 0; }
  friend constexpr auto operator<=>(const GuestId&, const GuestId&) = default;
};

// One shared file's host mm; slot and generation as in GuestId.
struct MmId {
  uint32_t slot = 0;
  uint32_t generation = 0;
  constexpr bool valid() const { return generation != 0; }
  friend constexpr auto operator<=>(const MmId&, const MmId&) = default;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_UNITS_H_
