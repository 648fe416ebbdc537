#include "vmm/shared_access.h"

#include <algorithm>

#include "vmm/rmap.h"

namespace hostmm {
namespace {

// Adds the pages of `region` at [start, end) that `spec` maps too.
void AddPart(const Region& region, GuestAddr start, GuestAddr end, const RegionSpec& spec,
             std::vector<AccessRun>* found) {
  if ((region.flags & kSettled) == 0) return;
  start = std::max(start, region.va);
  end = std::min(end, region.end());
  if (start >= end) return;
  const FilePage first = std::max(region.PageAt(start), spec.file_page);
  const FilePage last =
      std::min(region.PageAt(start) + PagesBetween(start, end), spec.file_page + spec.length);
  if (first < last) found->push_back({first, last - first, region.access, kSettled});
}

void Append(const AccessRun& run, std::vector<AccessRun>* runs) {
  if (!runs->empty() && runs->back().access == run.access && runs->back().settled == run.settled) {
    runs->back().length = runs->back().length + run.length;
  } else {
    runs->push_back(run);
  }
}

}  // namespace

std::vector<AccessRun> RunsToMap(const SegmentView& view, const RegionSpec& spec,
                                 const Leaving& leaving) {
  const FilePage end = spec.file_page + spec.length;
  std::vector<AccessRun> others;
  if (ShareModeOf(spec.flags) != ShareMode::kUnshare) {
    ForEachSharer(view, spec.mm, spec.file_page, spec.length,
                  [&](GuestId guest, const Region& region) {
                    if (guest != leaving.guest) {
                      return AddPart(region, region.va, region.end(), spec, &others);
                    }
                    AddPart(region, region.va, leaving.range.start, spec, &others);
                    AddPart(region, leaving.range.end, region.end(), spec, &others);
                  });
  }
  // Settled ones agree where they overlap, so that the first one to name a page is as good as any.
  std::sort(others.begin(), others.end(),
            [](const AccessRun& a, const AccessRun& b) { return a.first < b.first; });
  std::vector<AccessRun> runs;
  FilePage next = spec.file_page;
  for (const AccessRun& other : others) {
    if (other.end() <= next) continue;
    if (other.first > next) Append({next, other.first - next, spec.access}, &runs);
    const FilePage first = std::max(next, other.first);
    Append({first, other.end() - first, other.access, other.settled}, &runs);
    next = other.end();
  }
  if (next < end) Append({next, end - next, spec.access}, &runs);
  return runs;
}

}  // namespace hostmm
