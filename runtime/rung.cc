#include "runtime/rung.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace hostmm {
namespace {

std::vector<FrameKind> Ladder(FramesChoice choice) {
  switch (choice) {
    case FramesChoice::kHugetlb:
      return {FrameKind::kHugetlb, FrameKind::kHuge, FrameKind::kBase};
    case FramesChoice::kBase:
      return {FrameKind::kBase};
    case FramesChoice::kAuto:
    case FramesChoice::kHuge:
      break;
  }
  return {FrameKind::kHuge, FrameKind::kBase};
}

}  // namespace

const char* Name(FrameKind kind) {
  switch (kind) {
    case FrameKind::kHuge:
      return "huge";
    case FrameKind::kHugetlb:
      return "hugetlb";
    case FrameKind::kBase:
      return "base";
    case FrameKind::kAdopted:
      return "adopted";
    case FrameKind::kForeign:
      return "foreign";
    case FrameKind::kSnapshot:
      return "snapshot";
  }
  return "?";
}

absl::StatusOr<Rung> ChooseRung(const PagerOptions& options) {
  std::vector<std::string> why;
  std::optional<FrameStore> chosen;
  for (const FrameKind kind : Ladder(options.frames)) {
    absl::StatusOr<FrameStore> store = FrameStore::Open(kind);
    if (store.ok()) {
      chosen = *std::move(store);
      break;
    }
    why.push_back(absl::StrCat("no ", Name(kind), " frames: ", store.status().message()));
  }
  if (!chosen.has_value()) return absl::FailedPreconditionError(absl::StrJoin(why, "; "));
  Rung rung{
      .store = *std::move(chosen), .second = std::nullopt, .uffd = ProbeUserfaultfd(), .why = ""};
  if (rung.uffd.source == UffdAccess::Source::kNone) {
    why.push_back(absl::StrCat("no userfaultfd: ", rung.uffd.why_not));
  }
  if (rung.store.kind() == FrameKind::kHugetlb) {
    if (absl::StatusOr<FrameStore> huge = FrameStore::Open(FrameKind::kHuge); huge.ok()) {
      rung.second = *std::move(huge);
    }
  }
  rung.why = absl::StrJoin(why, "; ");
  if (options.strict && !rung.why.empty()) return absl::FailedPreconditionError(rung.why);
  return rung;
}

}  // namespace hostmm
