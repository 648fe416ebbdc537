// tests/oracle/operation.h
//
// What the processes of an oracle do, as plain data, and what each operation was seen to do.
//
// Units:    pages of 4 KiB, bytes where a name says so. Numbers are raw: an actor, a slot, an
//           object or a page is taken modulo what there is when the operation is carried out, so
//           every program is a valid one, also after operations were taken out of it.
// Words:    an *actor* is a process; a *slot* is one of its mappings, with a place in the address
//           space of its own; an *object* is memory that the program finds (a file, a segment).
// Threads:  none; values. All of it is trivially copyable: it is passed through files and shared
//           memory between programs of one build.
#ifndef HOSTMM_TESTS_ORACLE_OPERATION_H_
#define HOSTMM_TESTS_ORACLE_OPERATION_H_

#include <cstdint>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

namespace hostmm::oracle {

inline constexpr uint32_t kSlots = 6;       // arbitrary: enough that mappings come and go
inline constexpr uint32_t kMostActors = 4;  // the machine of a test has few cores
inline constexpr uint64_t kPage = 4096;

// Where a new mapping goes.
enum Place : uint32_t { kAnywhere, kHint, kFixed, kNoReplace, kPlaces };

// Sources of MapOp beyond these are objects.
enum Source : uint32_t { kAnonymousShared, kAnonymousPrivate, kFirstObject };

// Bits of MapOp::flags.
enum MapFlag : uint32_t { kPopulate = 1, kLocked = 2, kNoReserve = 4, kReadOnlyDescriptor = 8 };

// Deliberately wrong arguments: an address inside a page, no length, a length that wraps around.
enum Twist : uint32_t { kStraight, kCrooked, kEmpty, kWrapping, kTwists };

// How mremap is called.
enum RemapHow : uint32_t {
  kStay,
  kMayMove,
  kMoveTo,
  kKeepOld,
  kKeepOldTo,
  kDuplicate,
  kDuplicateTo,
  kRemapHows
};

// A fork that libc's handlers see, and one that they do not.
enum ForkHow : uint32_t { kFork, kBareFork, kForkHows };

// `trim`: bytes that the length is short of whole pages. SysV objects are attached.
struct MapOp {
  uint32_t actor, slot, page, pages, trim, source, place, prot, flags, object_page;
};
struct UnmapOp {
  uint32_t actor, slot, page, pages, twist;
};
struct RemapOp {
  uint32_t actor, slot, page, old_pages, new_pages, to_slot, to_page, how, twist;
};
struct ProtectOp {
  uint32_t actor, slot, page, pages, prot, twist;
};
// `advice`: a MADV_* number.
struct AdviseOp {
  uint32_t actor, slot, page, pages, advice, twist;
};
struct LockOp {
  uint32_t actor, slot, page, pages, lock;
};
// shmdt of the slot's memory.
struct DetachOp {
  uint32_t actor, slot;
};
// One byte, or for `byte` 0 the whole page: a stamp is written, everything is read.
struct ReadOp {
  uint32_t actor, slot, page, byte;
};
struct WriteOp {
  uint32_t actor, slot, page, byte;
};
// Calls the page's first instruction if it is a return.
struct ExecuteOp {
  uint32_t actor, slot, page;
};
// Reads, or stamps, page after page until one faults.
struct ScanOp {
  uint32_t actor, slot, page, pages;
};
struct FillOp {
  uint32_t actor, slot, page, pages;
};
// pread of a file into the memory, pwrite of the memory into a file.
struct ReceiveOp {
  uint32_t actor, slot, page, byte, bytes;
};
struct SendOp {
  uint32_t actor, slot, page, byte, bytes;
};
// An object through its descriptor.
struct ObjectReadOp {
  uint32_t actor, object, page;
};
struct ObjectWriteOp {
  uint32_t actor, object, page;
};
struct TruncateOp {
  uint32_t actor, object, pages, bytes;
};
struct PunchOp {
  uint32_t actor, object, page, pages;
};
// How often a SysV object is attached.
struct CountAttachedOp {
  uint32_t actor, object;
};
// process_vm_readv and process_vm_writev of another actor.
struct PeekOp {
  uint32_t actor, other, slot, page, pages;
};
struct PokeOp {
  uint32_t actor, other, slot, page;
};
struct ForkOp {
  uint32_t actor, how;
};
struct ExitOp {
  uint32_t actor;
};
struct KillOp {
  uint32_t actor, other;
};

using Operation =
    std::variant<MapOp, UnmapOp, RemapOp, ProtectOp, AdviseOp, LockOp, DetachOp, ReadOp, WriteOp,
                 ExecuteOp, ScanOp, FillOp, ReceiveOp, SendOp, ObjectReadOp, ObjectWriteOp,
                 TruncateOp, PunchOp, CountAttachedOp, PeekOp, PokeOp, ForkOp, ExitOp, KillOp>;
static_assert(std::is_trivially_copyable_v<Operation>);

// The actor that carries it out.
inline uint32_t ActorOf(const Operation& operation) {
  return std::visit([](const auto& op) { return op.actor; }, operation);
}

enum ObjectKind : uint32_t { kMemfd, kShm, kSysV };
struct ObjectSpec {
  ObjectKind kind;
  uint32_t bytes;
};

// Whether what hostmm is known to do otherwise (known_differences.h) is left out.
enum Known : uint32_t { kTakeKnown, kLeaveKnownOut };

struct Program {
  uint32_t actors = 1;  // at the start
  Known known = kTakeKnown;
  std::vector<ObjectSpec> objects = {};
  std::vector<Operation> operations = {};
};

enum class Outcome : uint32_t {
  kOk,
  kErrno,    // `number`
  kSignal,   // `number`, `code`, and where: `place`
  kSkipped,  // there was nothing to do it to
  kDied,     // the actor ended, unasked
  kHung,     // the actor did not answer
};
enum class StampState : uint32_t { kNone, kZero, kGood, kOther };

// What one operation did. Never an address: it differs between two runs. Never what Linux leaves
// open: where a mapping without a hint goes, what mincore says, time.
struct Observation {
  Outcome outcome = Outcome::kOk;
  int32_t number = 0;
  int32_t code = 0;                      // si_code
  StampState stamp = StampState::kNone;  // of the page that was read
  uint32_t writer = 0;                   // and who wrote it, as which operation
  uint32_t sequence = 0;
  int64_t place = 0;   // a faulting byte from the start of the slot; how far a call came
  uint64_t value = 0;  // a digest of what was read

  friend bool operator==(const Observation&, const Observation&) = default;
};
static_assert(std::is_trivially_copyable_v<Observation>);

std::string ToText(const Observation& observation);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_OPERATION_H_
