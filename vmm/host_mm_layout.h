// What the bytes of the segment are: the header, the record arrays and the table nodes.
//
//   +--------+--------+-----+---------+-------------+--------------+----------------+
//   | header | guests | mms | regions | attachments | node records | nodes (tables) |
//   +--------+--------+-----+---------+-------------+--------------+----------------+
//   0        one page, then each array page-aligned, its first record unused (index 0 is null)
//
// Units:   words of 64 bits; two numbers in one word are named low and high. Offsets in bytes from
//          the start of the segment. Pages of 4 KiB.
// Threads: the pager's loop thread writes; anybody may read (segment.h says how).
// Errors:  none; an all-zero record is a free one, so a zeroed file needs no further preparation.

#ifndef HOSTMM_VMM_HOST_MM_LAYOUT_H_
#define HOSTMM_VMM_HOST_MM_LAYOUT_H_

#include <cstdint>

#include "vmm/fault_stats.h"
#include "vmm/shm_ref.h"

namespace hostmm {

// "hostmmT1", little-endian.
inline constexpr uint64_t kSegmentMagic = 0x3154'6d6d'7473'6f68;
// Changes whenever a reader of the old layout would misread the new one.
inline constexpr uint32_t kSegmentVersion = 3;

// A pool of equal records: a list of freed ones and a watermark below which all were used once.
struct PoolState {
  SharedWord free_head;  // index of the first free record
  SharedWord watermark;  // records 1..watermark have been used
  SharedWord used;       // records in use now
};

struct SegmentHeader {
  // Written by Format, then never again.
  SharedWord magic;
  SharedWord version;            // low: version, high: bytes of this header
  SharedWord segment_bytes;      // of the whole segment
  SharedWord geometry;           // packed by PackGeometry
  SharedWord max_guests_mms;     // low: guests, high: mms
  SharedWord max_regions_nodes;  // low: regions (and attachments), high: nodes
  SharedWord reserved[2];
  // See SYNCHRONIZATION in segment.h. On lines of their own: readers spin on them.
  alignas(64) SharedWord write_sequence;
  alignas(64) SharedWord free_epoch;
  alignas(64) PoolState guests;
  PoolState mms;
  PoolState regions;
  PoolState attachments;
  PoolState nodes;
  SharedWord in_flight_entries;
  SharedWord outstanding_faults;  // decisions that marked entries and were not committed yet
  alignas(64) SharedWord stats[kStatCount];
};
inline constexpr uint64_t kSegmentHeaderBytes = 4096;
static_assert(sizeof(SegmentHeader) <= kSegmentHeaderBytes);

// Word `identity` of guests and mms: low = generation, high = 1 while in use.
struct GuestRecord {
  SharedWord identity;
  SharedWord process;      // low: pid, high: uid
  SharedWord regions;      // low: root of the region tree, high: number of regions
  SharedWord attachments;  // first attachment
  SharedWord link;         // next free record
  SharedWord reserved[3];
};

struct MmRecord {
  SharedWord identity;
  SharedWord length;        // pages
  SharedWord traits;        // packed by MmTraits
  SharedWord top;           // offset of the canonical top table
  SharedWord lists;         // low: first region, high: first attachment
  SharedWord regions_pins;  // low: regions that map it, high: pins
  SharedWord mappers;       // attachments
  SharedWord small_pages;   // present leaves at pte level
  SharedWord huge_blocks;   // present leaves at pmd level
  SharedWord in_flight;     // entries in flight, either level
  SharedWord name[4];       // 32 bytes, NUL-terminated
  SharedWord link;          // next free record
  // Of a file: low: its newest snapshot, high: how many it has. Of a snapshot: low: the next older
  // one, high: the next newer one.
  SharedWord snapshots;
  SharedWord source;  // of a snapshot: low: slot, high: generation; 0: lost
  SharedWord taken;   // of a file: snapshots taken so far; of a snapshot: its number among them
  SharedWord pages_copied;  // of a snapshot: pages that its own tables have copied entries for
  SharedWord reserved[5];
};

struct RegionRecord {
  SharedWord va;     // bytes
  SharedWord pages;  // 0 = free record
  SharedWord mm;     // low: slot, high: generation
  SharedWord file_page;
  SharedWord attributes;  // bits 0-7 access, 8-15 access at map time, 32-63 RegionFlags
  SharedWord guest;       // low: slot, high: generation
  SharedWord tree;        // low: left, high: right; free: low = next free record
  SharedWord siblings;    // list of the mm's regions: low: next, high: previous
};

// One per (guest, mm) with at least one region: the guest's private top.
struct AttachmentRecord {
  SharedWord guest;     // low: slot, high: generation
  SharedWord mm;        // low: slot, high: generation
  SharedWord top;       // offset of the private top table
  SharedWord regions;   // regions of the guest that map the mm
  SharedWord of_guest;  // list of the guest's attachments: low: next, high: previous
  SharedWord of_mm;     // list of the mm's attachments: low: next, high: previous
  SharedWord link;      // next free record
  SharedWord reserved;
};

// kSnapshot: a top of a snapshot, or a table that one or more snapshots of a file have instead of
// the live one.
enum class NodeKind : uint8_t { kFree = 0, kTable = 1, kPrivateTop = 2, kSnapshot = 3 };

// Beside the nodes, so that nodes are nothing but entries.
struct NodeRecord {
  SharedWord use;  // low: upper entries that name the table; high: level | kind << 8
  SharedWord
      fill;  // bits 0-15 live entries, 16-31 entries in flight, 32-39 touches; free: next free
};

static_assert(sizeof(GuestRecord) == 64 && sizeof(MmRecord) == 192);
static_assert(sizeof(RegionRecord) == 64 && sizeof(AttachmentRecord) == 64);
static_assert(sizeof(NodeRecord) == 16);

}  // namespace hostmm

#endif  // HOSTMM_VMM_HOST_MM_LAYOUT_H_
