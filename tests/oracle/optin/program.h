// tests/oracle/optin/program.h
//
// What several processes do with memory that they map opt-in, as plain data; what each step was
// seen to do; and how a program is printed as C++.
//
// Units:    pages of 4 KiB, blocks of 2 MiB. Numbers are raw: they are taken modulo what there is,
//           so every program is a valid one, also after steps were taken out of it.
// Words:    an *actor* is a process; a *slot* is a window of addresses, the same ones in every
//           actor; a *file* is one of two memfds and a named region.
// Threads:  none; values. Errors: none.
#ifndef HOSTMM_TESTS_ORACLE_OPTIN_PROGRAM_H_
#define HOSTMM_TESTS_ORACLE_OPTIN_PROGRAM_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hostmm::oracle {

inline constexpr uint32_t kActors = 4;
inline constexpr uint32_t kSlots = 3;
inline constexpr uint32_t kFiles = 3;
inline constexpr uint32_t kNamedFile = 2;
inline constexpr uint32_t kBlockPages = 512;
inline constexpr uint32_t kFileBlocks = 3;
inline constexpr uint32_t kSlotBlocks = 4;
inline constexpr uint32_t kSlotPages = kSlotBlocks * kBlockPages;

enum class Do : uint32_t {
  kMap,            // number: MapHow | protection << 8; page: block of the slot << 8 | of the file
  kUnmap,          //
  kProtect,        // number: protection
  kProtectForAll,  // hostmm_mprotect
  kAdvise,         // number: which of kAdvices
  kRead,           //
  kWrite,          // number: the byte
  kMove,           // number: page of the next slot
  kFork,           //
  kExit,           //
  kKill,           // number: the other one
  kKinds
};

enum class MapHow : uint32_t {
  kOptIn,
  kDedicated,
  kReadOnlyDescriptor,
  kPlain,
  kCrooked,          // opt-in at an offset inside a block
  kPrivateWritable,  // opt-in
  kHows
};

struct Step {
  Do what;
  uint32_t actor, slot, file, page, pages, number;
};

using Steps = std::vector<Step>;

// 0 ok, errno, or a signal.
struct Seen {
  enum Kind : uint32_t { kOk, kErrno, kMapErr, kAccErr, kOther, kSkipped } kind = kOk;
  uint32_t number = 0;  // errno; the byte that was read

  friend bool operator==(const Seen&, const Seen&) = default;
};

// What hostmm is known to do otherwise, left out or taken: a protection that is set for all to what
// a mapper has beside it anyway counts as never set (RegionAttributes::MergedWith), so that a
// newcomer brings its own. Left out: all opt-in mappers ask for all that there is.
enum class Known { kLeftOut, kTaken };

Steps GenerateSteps(uint64_t seed, size_t count, Known known);
std::string ToCpp(const Steps& steps);
std::string ToCpp(const Step& step);
std::string ToText(const Seen& seen);

// The same words on both sides.
inline constexpr uint32_t kAdviceCount = 6;
extern const int kAdvices[kAdviceCount];
extern const int kProts[3];
inline MapHow HowOf(const Step& step) {
  return static_cast<MapHow>((step.number & 0xff) % static_cast<uint32_t>(MapHow::kHows));
}
inline int ProtOf(uint32_t number) { return kProts[number % 3]; }
struct MapRange {
  uint32_t slot_block, file_block, blocks;
};
MapRange RangeOfMap(const Step& step);
struct PageRange {
  uint32_t first, count;
};
// Within a slot.
PageRange RangeOf(const Step& step);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_OPTIN_PROGRAM_H_
