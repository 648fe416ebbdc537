// Opt-in memory (MAP_SHARED_PT) as sessions see it: who watches which board, and what is to be done
// for all that map it.
//
// Flow:     GuestMappings::Map, Adopt, Move -> Enter: the guest watches the file's board. Unmap and
//           the like -> Leave. kForAll -> ForAll -> SharedOperations, or a vote.
// Threads:  the loop thread.
// Errors:   answers of kRefused and kFailed.
#ifndef HOSTMM_RUNTIME_OPT_IN_H_
#define HOSTMM_RUNTIME_OPT_IN_H_

#include <cstdint>
#include <vector>

#include "runtime/board_set.h"
#include "runtime/guest.h"
#include "runtime/opt_in_range.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"
#include "runtime/shared_operations.h"
#include "vmm/advice_votes.h"
#include "vmm/host_tables.h"

namespace hostmm {

class OptIn {
 public:
  // `max_guests`: that there may be; `max_regions`: see SharedOperations.
  OptIn(HostTables* tables, GuestSet* guests, uint32_t max_guests, uint32_t max_regions)
      : tables_(tables),
        guests_(guests),
        boards_(guests, max_guests + 1),
        operations_(tables, guests, &boards_, max_regions) {}

  // The guest maps something opt-in at [va, va + length), in the tables already. kNoRoom: no board,
  // or no region; the caller is to take it out again.
  enum class Entered : uint8_t { kDone, kNoRoom };
  Entered Enter(Guest& guest, GuestAddr va, PageCount length);
  // It may have unmapped something opt-in: `gone` are the parts that it had.
  void Leave(Guest& guest, const std::vector<Region>& gone);

  // kForAll. Answered at once or later; takes the reply socket out of the packet then.
  void ForAll(Guest& guest, Packet& packet);
  // kAccess, and the same in the answers to kMap and kAdopt: fills in prot and length.
  void SayAccess(const Guest& guest, GuestAddr va, protocol::Message* answer) const;

  void OnAgent(Guest& guest);
  void OnFork(const Guest& parent, GuestId child);
  void OnPacket(const Guest& guest) { operations_.OnPacket(guest); }
  void OnBoardDone(const Guest& guest, MmId mm) { operations_.OnBoardDone(guest, mm); }
  // The guest is not in the tables any more; it had `gone`.
  void Forget(Guest& guest, const std::vector<Region>& gone);
  // Four times a second.
  void Tick();

  struct Counts {
    SharedOperations::Counts operations;
    uint64_t votes = 0;
  };
  Counts counts() const { return {operations_.counts(), votes_counted_}; }

 private:
  // RETURNS an errno, or 0.
  static int WhyNot(const protocol::Message& ask, const OptInRange& range);
  void Vote(SharedOperations::Request request);
  void Zap(MmId mm, SharedOperations::Pages pages);
  // What all that map it have said that they do not need. Their votes are used up, and the tables
  // know nothing of it any more.
  std::vector<SharedOperations::Pages> TakeUnanimous(MmId mm, PageRange range);
  // Somebody who had not voted may be gone.
  void CountAgain(GuestId leaver, const std::vector<Region>& gone);

  HostTables* const tables_;
  GuestSet* const guests_;
  BoardSet boards_;
  SharedOperations operations_;
  AdviceVotes votes_;
  uint64_t votes_counted_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_OPT_IN_H_
