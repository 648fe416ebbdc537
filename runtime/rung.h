// Which frame store and which mode a pager runs with, and why not with better ones.
//
// `auto` is `huge`. A choice that cannot be had falls to the next rung below (hugetlb -> huge ->
// base) and says why; with `strict` it is an error instead. hugetlb is taken only when asked for:
// its memory can be protected and advised in units of 2 MiB only, which not every program keeps to.
#ifndef HOSTMM_RUNTIME_RUNG_H_
#define HOSTMM_RUNTIME_RUNG_H_

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/cli/pager_options.h"
#include "runtime/frame_store.h"
#include "runtime/userfaultfd.h"

namespace hostmm {

struct Rung {
  FrameStore store;
  // For regions for which `store` has no frames left: huge behind hugetlb.
  std::optional<FrameStore> second;
  UffdAccess uffd;
  std::string why;  // why not better; empty: this is what was asked for
};

// Errors: FailedPrecondition with what is missing and the remedy, with options.strict or when not
// even base works.
absl::StatusOr<Rung> ChooseRung(const PagerOptions& options);

const char* Name(FrameKind kind);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_RUNG_H_
