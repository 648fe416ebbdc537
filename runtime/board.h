// The board of a file that is mapped opt-in: how everybody who maps it learns, with one wake for
// all, what to do, and says that it is done.
//
// Memory:   two memfds for each such file, made by the pager. Orders: one page, which guests hold
//           read-only and read with pread. Acks: a counter and a slot for each guest; agents map
//           it. And the bell, the read end of a pipe: one write of the pager wakes every agent that
//           watches it (edge-triggered epoll). Nobody but the pager reads it.
// Life:     one operation at a time is open on a file. The pager writes the order, then its
//           sequence number; sets `pending`; rings. An agent that finds a sequence number that it
//           has not carried out reads the order, carries it out under its guest's lock, stores its
//           slot, then takes one off `pending`; who takes the last one off sends kBoardDone. When
//           all have, the pager writes an order of kNone with the next number and does not ring:
//           who looks later than that has nothing to do.
// Order:    who writes what: Orders: the pager alone; `sequence` with release, read with pread
//           before and after the rest (unequal: read again). Slot: its guest's agent alone,
//           `sequence` last, with release. `pending`: the pager sets it while no operation is open;
//           agents take one off. It only says when to look: the pager believes the slots, so a
//           wrong count costs a tick of time and nothing else.
// Trust:    who maps a file opt-in can write all slots of that file's board, so it can say for
//           another that it is done; it could as well have written the memory itself until then.
//           It cannot give orders. The pager reads slots as hostile input.
// Units:    pages of 4 KiB, by file offset: guests map the file at different addresses.
#ifndef HOSTMM_RUNTIME_BOARD_H_
#define HOSTMM_RUNTIME_BOARD_H_

#include <cstdint>

#include "runtime/protocol.h"

namespace hostmm::board {

// The content of the orders' memfd.
struct Order {
  uint64_t sequence;  // 0: none yet, or being written: nothing to do and nothing to note
  uint64_t first_page;
  uint64_t pages;
  protocol::BoardOp op;  // kProtect, kZap or kAdvise; kNone: nothing to do or to note
  uint64_t prot;         // PROT_*, of kProtect
  uint64_t advice;       // of kAdvise
};

struct Slot {
  uint64_t sequence;  // the last order that the guest has carried out
  uint32_t packets;   // packets that the guest had sent on its channel by then, those of its agent
                      // not counted: what it said before (a fork, say) must be known before the
                      // operation is over
  int32_t error;      // errno if the kernel refused, else 0
};

// The content of the acks' memfd.
struct Acks {
  int32_t pending;
  uint32_t reserved[15];
  Slot slots[];  // by slot of the guest's id
};
static_assert(sizeof(Slot) == 16 && sizeof(Acks) == 64);

// REQUIRES: `slots` = the number of guests that there may be, plus one.
constexpr uint64_t AcksBytes(uint64_t slots) { return sizeof(Acks) + slots * sizeof(Slot); }

}  // namespace hostmm::board

#endif  // HOSTMM_RUNTIME_BOARD_H_
