// The boards of files that are mapped opt-in (board.h), and who watches which.
//
// A board is made when the first guest maps its file opt-in and goes with the last one. What stands
// on it is the business of SharedOperations.
//
// Trust:    guests can write the acks and read the bell, and change neither their size nor our own
//           open files of them: nothing that they do makes a call here wait or fault.
// Threads:  the loop thread.
// Errors:   a board that cannot be made (descriptors, memory) is kNoBoard. A kWatch that cannot be
//           sent is sent on a later tick.
#ifndef HOSTMM_RUNTIME_BOARD_SET_H_
#define HOSTMM_RUNTIME_BOARD_SET_H_

#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "runtime/board.h"
#include "runtime/guest.h"
#include "runtime/mapping.h"
#include "runtime/packet.h"
#include "runtime/shared_segment.h"
#include "runtime/unique_fd.h"
#include "vmm/units.h"

namespace hostmm {

// One board, as its writer has it.
class Board {
 public:
  // With slots [0, slots). Errors: the failed system call.
  static absl::StatusOr<std::unique_ptr<Board>> Create(uint32_t slots);

  // Makes `order` the one that stands here. RETURNS its sequence number, which is set here.
  uint64_t Write(const board::Order& order);
  // Nothing is open any more: who reads too late finds nothing to do. kYes: and is to note that it
  // has been here (an order about no pages).
  enum class Note : uint8_t { kNo, kYes };
  void Clear(Note note);
  uint64_t sequence() const { return sequence_; }

  void SetPending(int32_t count);
  void AddPending(int32_t count);

  // What the guest in `slot` says that it has carried out. Hostile input.
  board::Slot Read(uint32_t slot) const;
  void Reset(uint32_t slot);

  // Wakes all agents that watch. kRefused: somebody keeps the pipe full; wake them one by one.
  enum class RingResult { kRung, kRefused };
  RingResult Ring() const;

  SendResult SendTo(int channel, const protocol::Message& watch) const;

 private:
  Board() = default;
  board::Order* order() const { return reinterpret_cast<board::Order*>(orders_.memory.data()); }
  board::Acks* acks() const { return reinterpret_cast<board::Acks*>(acks_.data()); }

  SharedSegment orders_;
  UniqueFd acks_fd_;
  Mapping acks_;
  UniqueFd bell_;     // the end that agents watch; they share its open file
  UniqueFd striker_;  // writes to it
  UniqueFd drain_;    // reads from it; an open file of our own
  uint64_t sequence_ = 0;
  uint32_t slots_ = 0;
};

class BoardSet {
 public:
  // `slots`: guests that there may be, plus one.
  BoardSet(GuestSet* guests, uint32_t slots) : guests_(guests), slots_(slots) {}

  // nullptr if nobody watches one of that file.
  Board* Find(MmId mm) const;
  uint32_t WatchersOf(MmId mm) const;

  enum class WatchResult { kWatching, kNoBoard };
  // Makes the guest one that watches the file's board, if it is not yet.
  WatchResult Watch(Guest& guest, MmId mm);
  // It has another agent: that one is told of all boards.
  void TellAgain(Guest& guest);
  void Unwatch(Guest& guest, MmId mm);
  // The guest is gone.
  void Drop(Guest& guest);

  // Sends what could not be sent.
  void Tick();

 private:
  struct Entry {
    std::unique_ptr<Board> board;
    uint32_t watchers = 0;
  };
  static uint64_t KeyOf(MmId mm) { return (static_cast<uint64_t>(mm.generation) << 32) | mm.slot; }
  void Tell(Guest& guest, WatchedBoard* watched);
  void Leave(MmId mm);

  GuestSet* const guests_;
  const uint32_t slots_;
  absl::flat_hash_map<uint64_t, Entry> boards_;
  absl::flat_hash_map<uint32_t, GuestId> untold_;  // guests by slot
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_BOARD_SET_H_
