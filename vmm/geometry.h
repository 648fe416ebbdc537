// The shape of a software page table: how many levels, how many entries per level, where leaves and
// sharing may sit.
//
// Levels:  0 = pte (entries are pages), 1 = pmd (entries are blocks), 2 = pud, 3 = pgd. The span
//          of a level is what one entry of it covers. The page (4 KiB) and the block (one pte
//          table, 2 MiB) are fixed by units.h; a host with another base page is refused by
//          IsValid(), not miscounted.
// Threads: values; no shared state.
// Errors:  IsValid() tells; everything else requires a valid geometry.

#ifndef HOSTMM_VMM_GEOMETRY_H_
#define HOSTMM_VMM_GEOMETRY_H_

#include <array>
#include <cstdint>

#include "vmm/units.h"

namespace hostmm {

struct Geometry {
  static constexpr int kMaxLevels = 4;
  static constexpr uint8_t kNoHugeLeaf = 0;
  // 4,096 entries: the largest table that any of the supported hosts has, and it keeps per-table
  // counts in 16 bits.
  static constexpr uint8_t kMaxBits = 12;

  uint8_t page_shift = kPageShift;
  std::array<uint8_t, kMaxLevels> bits = {9, 9, 9, 9};  // log2 of the entries of a table, by level
  // Level whose entries may be huge leaves: 1, or kNoHugeLeaf.
  uint8_t huge_leaf_level = 1;
  // Level of the smallest table that guests may share. A region shares only if its address and its
  // file offset agree modulo what that table covers, and only whole such tables.
  uint8_t share_level = 0;
  uint8_t levels = kMaxLevels;

  friend constexpr bool operator==(const Geometry&, const Geometry&) = default;

  constexpr bool IsValid() const {
    if (page_shift != kPageShift || bits[0] != kPagesPerBlockShift) return false;
    if (levels < 2 || levels > kMaxLevels || huge_leaf_level > 1) return false;
    if (share_level >= kMaxLevels || MinTopLevel() >= levels) return false;
    for (uint8_t level_bits : bits) {
      if (level_bits == 0 || level_bits > kMaxBits) return false;
    }
    return true;
  }
  constexpr bool HasHugeLeaf() const { return huge_leaf_level != kNoHugeLeaf; }
  // Private copies of a top exist per guest, so a top must stand strictly above everything that is
  // shared or huge: its entries then only ever name shared tables.
  constexpr int MinTopLevel() const {
    return (huge_leaf_level > share_level ? huge_leaf_level : share_level) + 1;
  }
  constexpr uint64_t EntriesAt(int level) const { return uint64_t{1} << bits[level]; }
  // log2 of the pages that one entry at `level` covers.
  constexpr int SpanShift(int level) const {
    int shift = 0;
    for (int i = 0; i < level; ++i) shift += bits[i];
    return shift;
  }
  constexpr PageCount SpanOf(int level) const { return PageCount(uint64_t{1} << SpanShift(level)); }
  constexpr uint64_t IndexAt(int level, FilePage page) const {
    return (page.value() >> SpanShift(level)) & (EntriesAt(level) - 1);
  }
  // Pages of the smallest shared unit: what one table at share_level covers.
  constexpr PageCount ShareUnit() const { return SpanOf(share_level + 1); }
  // Lowest level >= MinTopLevel() whose one table covers `length`; `levels` if none does.
  constexpr int TopLevelFor(PageCount length) const {
    int level = MinTopLevel();
    while (level < levels && SpanOf(level + 1) < length) ++level;
    return level;
  }
  // Bytes of a table node: room for the largest table, and never less than a page, so that a
  // reader's page faults and ours are counted in the same unit.
  constexpr uint64_t NodeBytes() const {
    uint8_t widest = 0;
    for (uint8_t level_bits : bits) widest = level_bits > widest ? level_bits : widest;
    const uint64_t bytes = sizeof(uint64_t) << widest;
    return bytes < kPageSize ? kPageSize : bytes;
  }
};

// x86-64: four levels of 512 entries, leaves at pte or pmd level, pte tables may be shared.
inline constexpr Geometry kX8664{};

// PowerPC's hashed MMU shares whole 256 MiB segments by their id and nothing smaller; a segment is
// one table of 128 blocks, and there is no huge leaf at the pmd level.
inline constexpr Geometry kPowerPcSegments{.page_shift = 12,
                                           .bits = {9, 7, 8, 8},
                                           .huge_leaf_level = Geometry::kNoHugeLeaf,
                                           .share_level = 1,
                                           .levels = 4};

}  // namespace hostmm

#endif  // HOSTMM_VMM_GEOMETRY_H_
