// Which shared tables a guest's private top names: the rule, and the upkeep of use counts.
//
// Rule:    a guest shares the table of a span (what one entry of the top covers, 1 GiB on x86-64)
//          if the file is neither kForeign nor kSnapshot and both hold:
//            - one of its windows of the file can share: at least kMinSharedBlocks long (opt-in:
//            one
//              block), address and file offset equal modulo Geometry::ShareUnit(), and at least one
//              whole unit of the span inside it (the file's end counts as a unit's end). A window
//              is a run of regions that continue each other, all opt-in or all not, whatever
//              their access and hints;
//            - no region of the guest in the span has another access than it was mapped with. The
//              access of an opt-in region never has: it is everybody's, and so is the table.
//          The rule depends on the regions alone, so that it can be checked at any time; an entry
//          of a private top is the canonical entry where the rule holds, and empty elsewhere. A
//          guest without an entry reads through the canonical top. What a guest may do with a page
//          is always the intersection of the region's and the entry's access.
// Memory:  use count of a lower table = upper entries that name it, the canonical one included.
// Units:   indices of the top's entries.
// Threads: SharableSpans reads and may run anywhere; the rest is the writer's. Within one
//          operation of the writer nothing can come between "unshared" and "mapping changed" (race
//          1 of the kernel's VM_TRANSITION), and a count cannot fall to zero while somebody finds
//          the table (race 2): finders are either the writer itself or readers that hold no
//          reference.
// Errors:  none.

#ifndef HOSTMM_VMM_TABLE_SHARING_H_
#define HOSTMM_VMM_TABLE_SHARING_H_

#include <bitset>

#include "vmm/pte.h"
#include "vmm/segment.h"

namespace hostmm {

using SpanSet = std::bitset<(size_t{1} << Geometry::kMaxBits)>;

// The spans of the mm whose tables the rule lets the guest share.
SpanSet SharableSpans(const SegmentView& view, GuestId guest, MmId mm);

// Makes the attachment's top agree with the rule, after its regions have changed.
void RefreshShares(const Segment& segment, RecordIndex attachment);

// Gives a new lower table, just entered into the canonical top, to the guests that share its span.
void OfferTable(const Segment& segment, MmRecord* mm, uint64_t top_index);

// Takes the table of a span out of all private tops; only the canonical top names it afterwards.
void WithdrawTable(const Segment& segment, MmRecord* mm, uint64_t top_index);

// Empties the attachment's top.
void DropAllShares(const Segment& segment, RecordIndex attachment);

// Gives a new attachment of the same mm the shares of an old one. REQUIRES: equal regions.
void CopyShares(const Segment& segment, RecordIndex from, RecordIndex to);

}  // namespace hostmm

#endif  // HOSTMM_VMM_TABLE_SHARING_H_
