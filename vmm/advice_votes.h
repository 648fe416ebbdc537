// AdviceVotes: who has said that it no longer needs which pages (MADV_DONTNEED on opt-in memory).
// The pages leave the tables when everybody who maps them has said so.
//
// Memory:  heap, in the pager; not in the segment. A vote stands until it is cleared (the zap that
//          it led to) or dropped (its guest no longer maps the pages there, or is gone).
// Units:   FilePage, 4 KiB each.
// Threads: the pager's loop thread.
// Errors:  none. Who maps what is the caller's to say: a vote for pages that one does not map does
//          not count. Advice may be ignored: what would make one guest's votes more than
//          kMaxVotedRanges ranges of a file is.

#ifndef HOSTMM_VMM_ADVICE_VOTES_H_
#define HOSTMM_VMM_ADVICE_VOTES_H_

#include <cstddef>
#include <map>
#include <span>
#include <vector>

#include "vmm/page_set.h"
#include "vmm/units.h"

namespace hostmm {

// Of one guest in one file: 256 KiB of the pager's memory, so that a guest that votes for every
// second page does not cost more.
inline constexpr size_t kMaxVotedRanges = 4096;

class AdviceVotes {
 public:
  // A guest and pages that it maps opt-in; a guest with several windows may stand there more than
  // once.
  struct Mapper {
    GuestId guest{};
    std::vector<PageRange> pages{};
  };

  void Vote(MmId mm, GuestId guest, PageRange range);
  // The guest touches the pages no more, or will touch them again: its vote for them is void.
  void Drop(MmId mm, GuestId guest, PageRange range);
  void DropGuest(GuestId guest);
  void DropMm(MmId mm);

  // The pages of the range that somebody maps and that all who map them have voted for, in order.
  std::vector<PageRange> Unanimous(MmId mm, PageRange range, std::span<const Mapper> mappers) const;
  // Takes back everybody's votes for the range.
  void Clear(MmId mm, PageRange range);

  bool empty() const { return votes_.empty(); }

 private:
  using VotesOfMm = std::map<GuestId, PageSet>;

  // Of a guest that voted for nothing there is no entry, and of such an mm neither.
  std::map<MmId, VotesOfMm> votes_;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_ADVICE_VOTES_H_
