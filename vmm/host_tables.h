// HostTables: the one door through which the segment is changed.
//
// What:    guests, their regions, the shared files (mms) and their page tables. This class checks
//          arguments, brackets each operation for readers and delegates to the parts:
//          guest_directory, region_map, mm_directory, page_table, table_sharing, rmap.
// Units:   GuestAddr in bytes; PageCount and FilePage in 4 KiB pages.
// Memory:  all state but the frame sink is in the segment; this object is a view of it, copying it
//          copies no table.
// Threads: the pager's loop thread only. Readers use TableReader.
// Errors:  TableStatus; an operation that is refused has changed nothing.

#ifndef HOSTMM_VMM_HOST_TABLES_H_
#define HOSTMM_VMM_HOST_TABLES_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "vmm/region.h"
#include "vmm/segment.h"
#include "vmm/table_reader.h"

namespace hostmm {

// The mms that an operation destroyed: their last region went and nobody has pinned them. Their
// frames are the caller's to close. The ids are dead already.
using ReleasedMms = std::vector<MmId>;

struct FreedFrames;  // snapshot_tables.h

class HostTables {
 public:
  using Config = SegmentConfig;
  using MmSpec = hostmm::MmSpec;
  using RegionSpec = hostmm::RegionSpec;

  // Bytes that Format needs. REQUIRES: Segment::IsValid(config).
  static size_t SegmentBytes(const Config& config) { return Segment::Bytes(config); }
  static HostTables Format(std::span<std::byte> zeroed_segment, const Config& config) {
    return HostTables(Segment::Format(zeroed_segment, config));
  }

  // Called, after the operation, once for each table entry that has stopped naming pre-image frames
  // [first, first + count) of `source`: of a snapshot that is gone or lost. Another table may still
  // name them (FramePool counts that). It may be that `source` has been released by the same
  // operation.
  using FrameSink = std::function<void(MmId source, FrameNumber first, PageCount count)>;
  void SetFrameSink(FrameSink sink) { sink_ = std::move(sink); }

  // Mms. A new mm has no region and no pin; it lives until an operation would leave it so again.
  // kBadRange: no length, or longer than the geometry can map. kNoSpace: no record or no table.
  TableStatus CreateMm(const MmSpec& spec, MmId* id);
  // The file has become longer. kBadRange: too long for the top level that it was made with.
  TableStatus GrowMm(MmId id, PageCount length);
  // A pinned mm outlives its last region.
  TableStatus PinMm(MmId id);
  // REQUIRES: pinned by the caller; snapshots pin their source too. Destroys the mm if this was the
  // last pin and it has no region.
  TableStatus UnpinMm(MmId id, ReleasedMms* released);

  // Guests. `pid` is 0 for a child that is not known yet.
  TableStatus AddGuest(int32_t pid, uint32_t uid, GuestId* id);
  // The child gets the parent's regions, without those that are kDontFork or kCow, and shares every
  // table that the parent shares: only tops are copied.
  TableStatus ForkGuest(GuestId parent, GuestId* child);
  TableStatus SetGuestPid(GuestId id, int32_t pid);
  TableStatus RemoveGuest(GuestId id, ReleasedMms* released);

  // Regions. kBadRange: not page-aligned, empty, or overflowing.
  // A region may reach behind the end of its file, as in Linux; faults there are denied.
  // An opt-in region (kSharedPt) takes over, page by page, the access that others have who map the
  // file so; where nobody does it brings its own. It may thus become several regions.
  TableStatus MapRegion(GuestId id, const RegionSpec& spec);  // kOverlap
  // Pages that are not mapped are ignored, as munmap does. kNoSpace: a split needs a record.
  TableStatus UnmapRange(GuestId id, GuestAddr va, PageCount length, ReleasedMms* released);
  // Changes the access of what is mapped in the range; holes are ignored. A region that is not
  // opt-in changes for the caller only, and the caller's upper entries there are unshared until the
  // access is again what it was when the region was mapped. An opt-in region changes together with
  // all opt-in regions of the same pages, of every guest, and stays shared.
  TableStatus ProtectRange(GuestId id, GuestAddr va, PageCount length, AccessSet access);
  // Sets and clears kChangeableFlags of what is mapped in the range. The kHintFlags of an opt-in
  // region change for all opt-in regions of the same pages; those that come later do not have them.
  TableStatus FlagRange(GuestId id, GuestAddr va, PageCount length, uint32_t set, uint32_t clear);
  // mremap: shrinks, grows or moves [from, from + old_len) to [to, to + new_len), keeping the file
  // offset. What is mapped at a new place is unmapped first. old_len 0 maps a second window, as
  // Linux does for shared mappings. kBadRange: the old range is not inside one region, or old and
  // new range overlap. kOverlap: growing in place would run into the next region.
  TableStatus MoveRange(GuestId id, GuestAddr from, PageCount old_len, GuestAddr to,
                        PageCount new_len, ReleasedMms* released);

  // MADV_REMOVE and hole punching: the entries become empty for everybody and tables that become
  // empty are freed. A huge leaf that is hit in part is split first (kNoSpace). An entry in flight
  // stays in flight; its Commit decides. The part behind the end of the file is ignored.
  // Also what a zap that all voted for is in the tables: an empty entry says that nothing is known
  // of the page, which is true while the data stays. There, too, a huge leaf that is hit in part is
  // split, though its frame stays whole until a collapse or a later fault says so. On hugetlb
  // frames a part of a block is passed over. kBadRange: of a snapshot. What a snapshot shares must
  // be privatized before the data goes.
  TableStatus PunchRange(MmId id, FilePage first, PageCount count);
  // The block is one huge frame now, whatever it was. kBusy: entries of it are in flight.
  // kBadRange: not wholly inside the file, the file is kForeign or a snapshot, or the geometry has
  // no such leaf.
  TableStatus SetBlockCollapsed(MmId id, BlockIndex block);

  // Reading; see table_reader.h.
  TableReader reader() const { return TableReader(segment_); }
  template <class Fn>
  void ForEachGuest(Fn fn) const {
    reader().ForEachGuest(fn);
  }
  template <class Fn>
  void ForEachMm(Fn fn) const {
    reader().ForEachMm(fn);
  }
  template <class Fn>
  void ForEachRegion(GuestId id, Fn fn) const {
    reader().ForEachRegion(id, fn);
  }
  template <class Fn>
  void ForEachMapper(MmId id, BlockIndex block, Fn fn) const {
    reader().ForEachMapper(id, block, fn);
  }
  template <class Fn>
  void ForEachSharer(MmId id, FilePage first, PageCount count, Fn fn) const {
    reader().ForEachSharer(id, first, count, fn);
  }
  std::optional<Region> FindRegion(GuestId id, GuestAddr addr) const {
    return reader().FindRegion(id, addr);
  }
  // A default MmInfo (its id is not valid) if `id` names no live mm.
  MmInfo Info(MmId id) const { return reader().Info(id).value_or(MmInfo{}); }
  FaultStats Stats() const { return reader().Stats(); }

  // For the other parts of vmm/ (fault_policy, tests). Nobody else writes.
  const Segment& segment() const { return segment_; }
  // Gives them to the sink. Not inside an operation.
  void Report(const std::vector<FreedFrames>& frames) const;

 private:
  explicit HostTables(const Segment& segment) : segment_(segment) {}
  // One operation that may release mms, and what follows from it.
  template <class Fn>
  TableStatus Releasing(ReleasedMms* released, Fn operation);

  Segment segment_;
  FrameSink sink_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_HOST_TABLES_H_
