// What calls of hostmm.h are told: how memory is mapped and protected, and where the pager is.
// hostmm.h brings it.
#ifndef HOSTMM_RUNTIME_HOSTMM_OPTIONS_H_
#define HOSTMM_RUNTIME_HOSTMM_OPTIONS_H_

#include <sys/mman.h>

#include <cstdint>
#include <string>

namespace hostmm {
inline namespace v1 {

// How a mapping shares (SEMANTICS: the columns of docs/semantics.md).
enum class ShareMode : uint8_t {
  kUnshare,    // as mmap alone: protection is this process's own
  kSharedPt,   // MAP_SHARED_PT: protection is that of all who map the file with kSharedPt or
               // kDedicated
  kDedicated,  // as kSharedPt, and plain mprotect is refused with EPERM
  kCow,        // MAP_PRIVATE_COW: private memory, whose fork is a snapshot (MapAnonymous only)
};

// PROT_* of mprotect(2).
enum class Protection : int {
  kNone = PROT_NONE,
  kRead = PROT_READ,
  kReadWrite = PROT_READ | PROT_WRITE,
  kReadExec = PROT_READ | PROT_EXEC,
  kReadWriteExec = PROT_READ | PROT_WRITE | PROT_EXEC,
};

// MADV_* of madvise(2). What they mean for opt-in memory (kSharedPt, kDedicated) stands here; for
// kUnshare it is what they mean in Linux.
enum class Advice : int {
  kDontNeed = MADV_DONTNEED,           // a vote: leaves the tables when all have voted; data stays
  kRemove = MADV_REMOVE,               // everybody reads zeros
  kWillNeed = MADV_WILLNEED,           // filled for all
  kPopulateRead = MADV_POPULATE_READ,  // filled for all when it returns
  kPopulateWrite = MADV_POPULATE_WRITE,
  kPageOut = MADV_PAGEOUT,  // leaves everybody's tables; data stays
  kCold = MADV_COLD,
  kHugePage = MADV_HUGEPAGE,  // for all mappings of the range
  kNoHugePage = MADV_NOHUGEPAGE,
  kDontFork = MADV_DONTFORK,  // the caller's: a child has no such mapping
  kDoFork = MADV_DOFORK,
};

// Where a mapping goes.
enum class Placement : uint8_t {
  kHint,     // at `address` if that is free, else where there is room
  kExactly,  // at `address`, or EEXIST (MAP_FIXED_NOREPLACE)
};

// MAP_SHARED, or MAP_PRIVATE (opt-in: only without write, EINVAL otherwise).
enum class Visibility : uint8_t { kShared, kPrivate };

// MAP_POPULATE.
enum class Populate : uint8_t { kNo, kYes };

// Whether Resize may give the region another address.
enum class Move : uint8_t { kMay, kMayNot };

struct MapOptions {
  ShareMode share = ShareMode::kSharedPt;
  // Of opt-in memory that others have mapped and changed: theirs, as far as the descriptor allows.
  Protection protection = Protection::kReadWrite;
  void* address = nullptr;
  Placement placement = Placement::kHint;
  Visibility visibility = Visibility::kShared;
  Populate populate = Populate::kNo;
};

// What memory a pager of our own is made of; see `hostmm help pager`.
enum class Frames : uint8_t { kAuto, kHuge, kHugetlb, kBase };

// For Session::Open. An empty string stands for the default that hostmm_c.h names.
struct Options {
  std::string socket = {};   // of a running pager
  std::string program = {};  // the hostmm program, for a pager of our own
  Frames frames = Frames::kAuto;
};

}  // namespace v1
}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_HOSTMM_OPTIONS_H_
