// tests/oracle/actor.h
//
// One process of a program: carries out operations, one at a time, when the stepper says so.
//
// Units:    as in operation.h; addresses only inside.
// Owner:    the process. A fork makes another Actor of the same object, with another mailbox.
// Threads:  one (hostmm adds its agent).
// Errors:   what a call says is what is observed. What the oracle itself needs and does not get
//           ends the process, which the stepper sees.
#ifndef HOSTMM_TESTS_ORACLE_ACTOR_H_
#define HOSTMM_TESTS_ORACLE_ACTOR_H_

#include <cstdint>

#include "tests/oracle/control.h"
#include "tests/oracle/operation.h"

namespace hostmm::oracle {

class Actor {
 public:
  // REQUIRES: this process was forked for mailbox `number`.
  Actor(Control* control, uint32_t number);

  // Until it is told to exit, is killed, or the stepper has gone.
  [[noreturn]] void Serve();

 private:
  struct Range {
    uint64_t page;
    uint64_t pages;
    uint64_t address;
    uint64_t bytes;
  };

  Mailbox& box() { return control_->boxes[number_]; }
  SlotState& Slot(uint32_t slot) { return box().slots[slot % kSlots]; }
  // The range that `page` and `pages` name: within a floating slot, or about what is in a window.
  static Range Locate(const SlotState& slot, uint64_t page, uint64_t pages, uint32_t twist);

  const Object* FindObject(uint32_t number) const;
  // errno for -1, else `result` as how far the call came.
  static Observation Counted(long result);
  static Observation Skipped();

  // The slot is empty, its window too.
  void Release(uint32_t slot);
  void SetFloating(uint32_t slot, void* base, uint64_t pages);
  // Closes what may have become a hole in a floating slot.
  static void Plug(const SlotState& slot, uint64_t page, uint64_t pages);
  static void PlugHoles(const SlotState& slot);

  Observation MapFile(const MapOp& op, const Object* object);
  Observation Attach(const MapOp& op, const Object& object);
  Observation Placed(const MapOp& op, uint64_t wanted, uint64_t pages, void* got);
  RemapOp Definite(RemapOp op);
  Observation Remapped(const RemapOp& op, const Range& from, char* got);

  Observation Do(const MapOp& op);
  Observation Do(const UnmapOp& op);
  Observation Do(const RemapOp& op);
  Observation Do(const ProtectOp& op);
  Observation Do(const AdviseOp& op);
  Observation Do(const LockOp& op);
  Observation Do(const DetachOp& op);
  Observation Do(const ReadOp& op);
  Observation Do(const WriteOp& op);
  Observation Do(const ExecuteOp& op);
  Observation Do(const ScanOp& op);
  Observation Do(const FillOp& op);
  Observation Do(const ReceiveOp& op);
  Observation Do(const SendOp& op);
  Observation Do(const ObjectReadOp& op);
  Observation Do(const ObjectWriteOp& op);
  Observation Do(const TruncateOp& op);
  Observation Do(const PunchOp& op);
  Observation Do(const CountAttachedOp& op);
  Observation Do(const PeekOp& op);
  Observation Do(const PokeOp& op);
  Observation Do(const ForkOp& op);
  Observation Do(const ExitOp& op);
  Observation Do(const KillOp& op);

  Control* const control_;
  uint32_t number_;
};

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_ACTOR_H_
