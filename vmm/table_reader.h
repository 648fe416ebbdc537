// TableReader: everything that can be learned from a segment without writing to it.
//
// Who:     the pager for its own segment, guests and tools for a read-only mapping of it.
// Memory:  a view; the bytes must outlive it. They may change while we read, and may be garbage.
//          `fn` of a ForEach* must not map, unmap or end anything.
// Units:   as in region.h.
// Threads: any number of readers, any process. ForEach* visit whatever is there at the moment; on a
//          live segment wrap a gathering of several things into ReadConsistently (segment.h, 1).
//          Lookup is consistent by itself (segment.h, 2).
// Errors:  a hostile segment makes visits end early or report nonsense values; it never makes them
//          read outside the bytes, loop for ever or fail in another way.

#ifndef HOSTMM_VMM_TABLE_READER_H_
#define HOSTMM_VMM_TABLE_READER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "vmm/fault_stats.h"
#include "vmm/pte.h"
#include "vmm/region.h"
#include "vmm/region_map.h"
#include "vmm/rmap.h"
#include "vmm/segment.h"

namespace hostmm {

// kBusy: the writer changed the segment during every attempt.
enum class ReadStatus : uint8_t { kConsistent, kBusy };

// What the tables say about one page. kUnreadable: the segment kept changing under the walk, or it
// is damaged. kCopied: of a snapshot, in a frame of the pre-image store.
enum class PageState : uint8_t {
  kEmpty,
  kInFlight,
  kPresentSmall,
  kPresentHuge,
  kUnreadable,
  kCopied,
};

struct PageView {
  PageState state = PageState::kEmpty;
  AccessSet access{};   // of the entry; what a guest may do is this and the region's
  FrameNumber frame{};  // the frame, of a huge entry its first; 0 where there is none
};

// Use of the segment's pools, and what the tables weigh.
struct PoolUse {
  uint32_t guests = 0;
  uint32_t mms = 0;
  uint32_t regions = 0;
  uint32_t attachments = 0;
  uint32_t nodes = 0;
  uint64_t table_bytes = 0;  // nodes in use times their size: our own page tables
};

class TableReader {
 public:
  TableReader() = default;
  static AttachStatus Attach(std::span<const std::byte> bytes, TableReader* reader);
  explicit TableReader(const SegmentView& view) : view_(view) {}

  const SegmentView& view() const { return view_; }
  FaultStats Stats() const;
  PoolUse Pools() const;

  // `fn(const GuestInfo&)`, by slot.
  template <class Fn>
  void ForEachGuest(Fn fn) const;
  // `fn(const MmInfo&)`, by slot.
  template <class Fn>
  void ForEachMm(Fn fn) const;
  // `fn(const Region&)`, by address.
  template <class Fn>
  void ForEachRegion(GuestId guest, Fn fn) const {
    hostmm::ForEachRegion(view_, guest, fn);
  }
  // `fn(GuestId, const Region&, Writable)` for every region that maps a page of the block; a guest
  // with several such regions is named several times.
  template <class Fn>
  void ForEachMapper(MmId mm, BlockIndex block, Fn fn) const {
    hostmm::ForEachMapper(view_, mm, block, fn);
  }
  // `fn(GuestId, const Region&)` for every opt-in region (MAP_SHARED_PT) that maps a page of
  // [first, first + count): those that a change of its protection concerns.
  template <class Fn>
  void ForEachSharer(MmId mm, FilePage first, PageCount count, Fn fn) const {
    hostmm::ForEachSharer(view_, mm, first, count, fn);
  }
  std::optional<Region> FindRegion(GuestId guest, GuestAddr addr) const;
  std::optional<GuestInfo> Info(GuestId guest) const;
  std::optional<MmInfo> Info(MmId mm) const;

  // The canonical entry of a page. Of a snapshot's page that it has not for itself, its source's.
  PageView Lookup(MmId mm, FilePage page) const;
  // The same through the guest's own top: the way that a fault of that guest would take.
  PageView LookupFrom(GuestId guest, MmId mm, FilePage page) const;
  // Whether the guest's own top names the shared table that covers `addr` (hostmm_is_shared).
  enum class Sharing : uint8_t { kShared, kNotShared };
  Sharing IsShared(GuestId guest, GuestAddr addr) const;

  // Runs `read` until the segment did not change during it. `read` gathers into its own variables
  // and must start from scratch each time.
  template <class Fn>
  ReadStatus ReadConsistently(int attempts, Fn read) const;

 private:
  // The top of an attachment, or without a guest the canonical one.
  struct Top {
    GuestId guest;
    MmId mm;
  };
  const SharedWord* TopOf(const Top& which) const;
  // A walk through one top; retried while tables are being freed under it.
  PageView LookupThrough(const Top& which, FilePage page) const;

  SegmentView view_;
};

template <class Fn>
void TableReader::ForEachGuest(Fn fn) const {
  for (RecordIndex slot = 1; const GuestRecord* record = view_.guest(slot); ++slot) {
    const uint64_t identity = record->identity.Load();
    if ((identity >> 32) == 0) continue;
    if (auto info = Info(GuestId{slot, static_cast<uint32_t>(identity)})) fn(*info);
  }
}

template <class Fn>
void TableReader::ForEachMm(Fn fn) const {
  for (RecordIndex slot = 1; const MmRecord* record = view_.mm(slot); ++slot) {
    const uint64_t identity = record->identity.Load();
    if ((identity >> 32) == 0) continue;
    if (auto info = Info(MmId{slot, static_cast<uint32_t>(identity)})) fn(*info);
  }
}

template <class Fn>
ReadStatus TableReader::ReadConsistently(int attempts, Fn read) const {
  const SharedWord& sequence = view_.header().write_sequence;
  for (int i = 0; i < attempts; ++i) {
    const uint64_t before = sequence.Load();
    if ((before & 1) != 0) continue;
    read();
    if (sequence.Load() == before) return ReadStatus::kConsistent;
  }
  return ReadStatus::kBusy;
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_TABLE_READER_H_
