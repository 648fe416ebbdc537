// What is done to opt-in memory for all who map it: a protection, a zap, an advice. One after the
// other for each file, and answered when the last mapper has done it.
//
// Flow:     Submit -> queue of the file -> Start: tables, members, order on the board, bell (or a
//           kLook to each member) -> agents note on the board that they have done it -> Check ->
//           End: answer, empty order on the board, next.
// Members:  the guests that map a page of the range opt-in when it starts, and children that they
//           fork before they have done it. Each is waited for until it has noted it and all that it
//           said before that has been heard; or until it is gone, or maps the file opt-in no more.
// Late:     a member that has not done it after 8 s fails the operation (ETIMEDOUT). The next order
//           replaces the one that it has missed; when it shows life again, it is told once more
//           what holds for the ranges that it has missed ("repair").
// Cost:     of the regions of the file and of the members. Nobody else is looked at or woken.
// Threads:  the loop thread.
// Errors:   an answer of kFailed with an errno; kRefused for a request that makes no sense. A
//           caller that is gone gets none.
#ifndef HOSTMM_RUNTIME_SHARED_OPERATIONS_H_
#define HOSTMM_RUNTIME_SHARED_OPERATIONS_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/board_set.h"
#include "runtime/guest.h"
#include "runtime/protocol.h"
#include "runtime/unique_fd.h"
#include "vmm/host_tables.h"

namespace hostmm {

class SharedOperations {
 public:
  // Pages [first, first + count) of a file.
  struct Pages {
    FilePage first{};
    PageCount count{};
    FilePage end() const { return first + count; }
  };

  struct Request {
    protocol::BoardOp op = protocol::BoardOp::kNone;  // kProtect, kZap or kAdvise
    MmId mm;
    Pages pages;
    uint32_t prot = 0;
    uint64_t advice = 0;
    // Who asked, with where it maps `pages`; not valid: the pager wants it.
    GuestId caller;
    GuestAddr va;
    UniqueFd reply;
    // Valid: a repair, for that guest alone, with whatever protection the pages have by then.
    GuestId repaired;
  };

  struct Counts {
    uint64_t operations = 0;  // that were started
    uint64_t woken = 0;       // members of them, one by one
    uint64_t timed_out = 0;
  };

  // All outlive it. `max_regions`: a guest's regions, from which on nothing is changed for all that
  // could split them further.
  SharedOperations(HostTables* tables, GuestSet* guests, BoardSet* boards, uint32_t max_regions)
      : tables_(tables), guests_(guests), boards_(boards), max_regions_(max_regions) {}

  // REQUIRES: the caller, if any, maps `pages` opt-in at `va`.
  void Submit(Request request);

  // A packet of the guest has taken effect.
  void OnPacket(const Guest& guest);
  // The agent of `guest` says that it was the last one.
  void OnBoardDone(const Guest& guest, MmId mm);
  // `child` has just been copied from `parent` in the tables.
  void OnFork(const Guest& parent, GuestId child);
  // The guest maps nothing of the file opt-in any more.
  void OnUnwatched(GuestId guest, MmId mm);
  // The guest is not in the tables any more.
  void OnGuestGone(GuestId guest);
  // Four times a second.
  void Tick();

  // The protection that an open operation gives to pages of the file.
  struct OpenProtect {
    Pages pages;
    uint32_t prot = 0;
  };
  std::optional<OpenProtect> FindOpenProtect(MmId mm) const;

  const Counts& counts() const { return counts_; }

 private:
  struct Open {
    Request request;
    uint64_t sequence = 0;
    std::vector<GuestId> waiting;  // members that have not done it
    uint32_t ticks = 0;
    int error = 0;  // the first one of a member
  };
  // Who has not done something in time.
  struct Late {
    GuestId guest;
    uint64_t sequence = 0;      // the last order that it has missed
    std::vector<Pages> missed;  // protections of these
  };
  // Nothing of a file's is kept while there is nothing to do.
  struct Queue {
    std::deque<Request> requests;
    std::optional<Open> open;
    std::vector<Late> late;
    bool empty() const { return requests.empty() && !open.has_value() && late.empty(); }
  };

  static uint64_t KeyOf(MmId mm) { return (static_cast<uint64_t>(mm.generation) << 32) | mm.slot; }

  // Starts what can be started; forgets the queue if that was all.
  void Advance(MmId mm);
  void Start(Queue* queue, Request request);
  void StartRepair(Queue* queue, Request request);
  // RETURNS an errno, or 0: the tables say it now.
  int Apply(const Request& request, const std::vector<GuestId>& members);
  bool HasRoomInAll(const std::vector<GuestId>& members) const;
  std::vector<GuestId> MembersOf(MmId mm, Pages pages) const;
  void Announce(Queue* queue, Request request, std::vector<GuestId> members);
  void Look(MmId mm, const std::vector<GuestId>& members) const;
  // Drops from `waiting` who is done; ends the operation if nobody is left.
  enum class Over : uint8_t { kNo, kYes };
  Over Check(Queue* queue);
  bool IsDone(const Board& board, Open* open, GuestId member) const;
  void End(Queue* queue, int error);
  void GiveUp(Queue* queue);
  uint32_t PatienceFor(const Queue& queue) const;
  // Queues repairs for the late that show life again.
  void Repair(Queue* queue, MmId mm) const;
  void Answer(const Request& request, int error);
  // `fn(mm, queue)` for all; it may not add or drop queues.
  template <class Fn>
  void ForEachQueue(Fn fn);

  HostTables* const tables_;
  GuestSet* const guests_;
  BoardSet* const boards_;
  const uint32_t max_regions_;
  absl::flat_hash_map<uint64_t, Queue> queues_;
  Counts counts_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SHARED_OPERATIONS_H_
