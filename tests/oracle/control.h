// tests/oracle/control.h
//
// What the stepper and its actors share: a mailbox for each actor, where its mappings lie, and the
// objects of the program.
//
// Memory:   one small shared mapping, made before the first actor is forked. It is far below the
//           length that hostmm manages, so the oracle does not stand on what it tests.
// Flow:     the stepper writes an operation and sets `turn` to kActor; the actor carries it out,
//           writes what it saw and sets `turn` to kStepper. One actor at a time has a turn, so both
//           runs of a program have the same order of events.
// Errors:   Await tells that its deadline has passed.
#ifndef HOSTMM_TESTS_ORACLE_CONTROL_H_
#define HOSTMM_TESTS_ORACLE_CONTROL_H_

#include <linux/futex.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <ctime>

#include "tests/oracle/operation.h"

namespace hostmm::oracle {

// Each slot has a window of addresses that nothing but the program's own fixed mappings uses: far
// below where the kernel looks for a place. So a hole in a window stays a hole in both runs.
inline constexpr uint64_t kWindows = uint64_t{32} << 40;
inline constexpr uint64_t kWindowBytes = uint64_t{4} << 30;  // several of the longest mappings

// Where a slot's memory is. A *floating* one lies where the kernel, or hostmm, has put it: its
// holes are closed with inaccessible memory, because something else could come to lie there in one
// run and not in the other. Nothing is done to what lies beside it, for the same reason.
struct SlotState {
  uint64_t base;
  uint64_t pages;          // up to the last that was ever mapped
  uint64_t attached_page;  // where a segment was attached last
  bool floating;
};

enum Turn : uint32_t { kStepper, kActor };

struct alignas(64) Mailbox {
  std::atomic<uint32_t> turn;
  bool alive;
  pid_t pid;
  uint32_t sequence;  // number of the operation
  uint32_t other;     // the actor that it concerns, or makes
  Operation operation;
  Observation seen;
  SlotState slots[kSlots];
};

inline constexpr uint32_t kMostObjects = 8;
struct Object {
  ObjectKind kind;
  int fd;            // of a file, else -1
  int read_only_fd;  // of the same file
  int shmid;         // of a segment, else -1
  uint64_t pages;    // of a segment
};

// Deliberate mistakes, by which tests show that an oracle finds mistakes.
enum class Wrong : uint32_t { kNothing, kProtect, kRemove };

struct Control {
  Mailbox boxes[kMostActors];
  Object objects[kMostObjects];
  uint32_t object_count;
  pid_t stepper;
  int source_fd;  // what ReceiveOp reads
  int sink_fd;    // what SendOp writes
  Wrong wrong;
  Known known;
};

inline void SetTurn(Mailbox& box, Turn turn) {
  box.turn.store(turn, std::memory_order_release);
  syscall(SYS_futex, &box.turn, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// RETURNS: whether it is `turn`'s turn, after at most about `patience`.
inline bool Await(Mailbox& box, Turn turn, std::chrono::milliseconds patience) {
  const timespec timeout = {static_cast<time_t>(patience.count() / 1000),
                            static_cast<long>(patience.count() % 1000) * 1'000'000};
  if (box.turn.load(std::memory_order_acquire) == turn) return true;
  const uint32_t other = turn == kActor ? kStepper : kActor;
  syscall(SYS_futex, &box.turn, FUTEX_WAIT, other, &timeout, nullptr, 0);
  return box.turn.load(std::memory_order_acquire) == turn;
}

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_CONTROL_H_
