// AddressSpace: the regions of one guest and everything that must change with them.
//
// What:    keeps the region map, the mm's rmap, the attachments and their shares in step. Regions
//          are kept maximal: neighbours that continue each other with equal attributes are one
//          region, so that a map does not depend on the order in which it came about.
// Units:   GuestAddr in bytes, PageCount in pages.
// Threads: the writer only.
// Errors:  TableStatus, and then nothing was changed. An operation checks first that the records
//          for its splits are there. REQUIRES everywhere: the guest is alive, ranges FitsInGuest.

#ifndef HOSTMM_VMM_ADDRESS_SPACE_H_
#define HOSTMM_VMM_ADDRESS_SPACE_H_

#include <cstdint>
#include <vector>

#include "vmm/mm_directory.h"
#include "vmm/region.h"
#include "vmm/region_map.h"
#include "vmm/segment.h"
#include "vmm/shared_access.h"

namespace hostmm {

// Whether a changed access is the caller's own affair (its tables there are unshared) or the mm's.
enum class AccessScope : uint8_t { kCallerOnly, kEveryMapper };

class AddressSpace {
 public:
  AddressSpace(const Segment& segment, GuestId id)
      : segment_(segment), id_(id), guest_(segment.Find(id)), map_(segment, guest_) {}

  bool IsFree(AddrRange range) const;
  // Records that an operation on the range may need for splits: 0, 1 or 2.
  uint32_t SplitsAt(AddrRange range) const;

  // An opt-in region takes over the access of those that are there, and becomes several where that
  // differs. REQUIRES: IsFree(range of spec); the mm is alive.
  TableStatus Map(const RegionSpec& spec);
  TableStatus Unmap(AddrRange range, Released* released);
  // Protect and Flag leave the pieces that they make; Tidy comes when a change has been made
  // everywhere, because what is merged half way forgets what only one half has.
  TableStatus Protect(AddrRange range, AccessSet access, AccessScope scope);
  // Of kChangeableFlags; others are passed over.
  TableStatus Flag(AddrRange range, uint32_t set, uint32_t clear);
  // Makes neighbours one region and refreshes the shares.
  void Tidy(AddrRange range);
  // REQUIRES: `from` lies in one region, `to` does not overlap `from`, and an empty `from` names
  // the page to map again.
  TableStatus Move(AddrRange from, AddrRange to, Released* released);
  // Lengthens the region that ends at `end`; the new part of an opt-in region takes over access as
  // in Map. kOverlap.
  TableStatus Grow(GuestAddr end, PageCount by);
  // Regions of `parent` that are neither kDontFork nor kCow. REQUIRES: this guest has no region.
  TableStatus CopyFrom(const AddressSpace& parent);
  void UnmapAll(Released* released);

 private:
  RegionRecord* RecordAt(GuestAddr addr) const {
    return segment_.region(FindRegionRecord(segment_, *guest_, addr));
  }
  // Enters a region of a mm that is attached already.
  void AddRegion(const RegionSpec& spec, const RegionAttributes& attributes,
                 RecordIndex attachment);
  // Enters the regions of a plan that has been checked to fit. `mapped_access` is for a region that
  // is not opt-in.
  void AddRuns(const RegionSpec& spec, const std::vector<AccessRun>& runs, AccessSet mapped_access,
               RecordIndex attachment);
  // Removes a region's record from everything that names it. An attachment may be left without
  // regions; see Settle.
  void RemoveRegion(RecordIndex region);
  // After regions of the mm were removed: refreshes the shares, or ends the attachment and then the
  // mm, as far as nothing needs them.
  void Settle(MmId mm, Released* released);
  void SplitAt(GuestAddr va);
  void MergeAround(AddrRange range);
  // `change(attributes)` for each region of the range, split to fit it.
  template <class Fn>
  TableStatus ChangeAttributes(AddrRange range, Fn change);
  // Refreshes the shares of every mm of which a region touches the range.
  void RefreshAround(AddrRange range);

  const Segment& segment_;
  GuestId id_;
  GuestRecord* guest_;
  RegionMap map_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_ADDRESS_SPACE_H_
