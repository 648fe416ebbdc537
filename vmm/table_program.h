// A program of operations on HostTables, as plain data: generated from a seed, run against a plain
// model, printed as C++ when it fails, so that a failure can be pasted as a test.
//
// Units:   numbers are raw and small; what names a guest, an mm or a running fault is taken modulo
//          the number of those that ever existed, so that every program is a valid one, also after
//          operations were taken out of it.
// Threads: none.
// Errors:  RunProgram returns what went wrong, and at which operation.

#ifndef HOSTMM_VMM_TABLE_PROGRAM_H_
#define HOSTMM_VMM_TABLE_PROGRAM_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "vmm/segment.h"

namespace hostmm {

struct AddGuestOp {};
struct ForkOp {
  uint32_t guest;
};
struct RemoveGuestOp {
  uint32_t guest;
};
struct CreateMmOp {
  uint32_t pages, frames;
};
struct PinOp {
  uint32_t mm;
};
struct UnpinOp {
  uint32_t mm;
};
// Addresses and file pages in pages.
struct MapOp {
  uint32_t guest, mm, va, file_page, pages, access, flags;
};
struct UnmapOp {
  uint32_t guest, va, pages;
};
struct ProtectOp {
  uint32_t guest, va, pages, access;
};
struct FlagOp {
  uint32_t guest, va, pages, set, clear;
};
struct MoveOp {
  uint32_t guest, from, old_pages, to, new_pages;
};
struct PunchOp {
  uint32_t mm, file_page, pages;
};
struct CollapseOp {
  uint32_t mm, block;
};
struct FaultOp {
  uint32_t guest, va, access, kind, tight;
};
struct CommitOp {
  uint32_t fault, outcome, actual;
};

using ProgramOp =
    std::variant<AddGuestOp, ForkOp, RemoveGuestOp, CreateMmOp, PinOp, UnpinOp, MapOp, UnmapOp,
                 ProtectOp, FlagOp, MoveOp, PunchOp, CollapseOp, FaultOp, CommitOp>;
using Program = std::vector<ProgramOp>;

// kFaults: one file that is mapped from the start, and little else than faults in it. kOptIn: a few
// guests that map parts of one file, mostly opt-in, and change their protection.
enum class ProgramMix : uint8_t { kEverything, kFaults, kOptIn };

Program GenerateProgram(ProgramMix mix, uint64_t seed, size_t operations);
std::string ToCpp(const Program& program);

// Runs the program on a fresh segment beside a plain model; compares both, and checks the
// invariants, after each operation.
std::optional<std::string> RunProgram(const SegmentConfig& config, const Program& program);

// Takes operations out of a failing program as long as it still fails.
Program Shrink(const SegmentConfig& config, Program program);

}  // namespace hostmm

#endif  // HOSTMM_VMM_TABLE_PROGRAM_H_
