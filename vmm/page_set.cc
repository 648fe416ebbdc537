#include "vmm/page_set.h"

#include <algorithm>
#include <iterator>

namespace hostmm {

std::map<FilePage, FilePage>::const_iterator PageSet::FirstEndingAt(FilePage page) const {
  auto it = ends_.upper_bound(page);
  if (it != ends_.begin() && std::prev(it)->second >= page) --it;
  return it;
}

void PageSet::Add(PageRange range) {
  if (range.empty()) return;
  auto it = FirstEndingAt(range.first);
  while (it != ends_.end() && it->first <= range.end) {
    range = {std::min(range.first, it->first), std::max(range.end, it->second)};
    it = ends_.erase(it);
  }
  ends_.emplace(range.first, range.end);
}

void PageSet::Remove(PageRange range) {
  if (range.empty()) return;
  auto it = FirstEndingAt(range.first);
  while (it != ends_.end() && it->first < range.end) {
    const auto [first, end] = *it;
    it = ends_.erase(it);
    if (first < range.first) ends_.emplace(first, std::min(end, range.first));
    if (end > range.end) ends_.emplace(std::max(first, range.end), end);
  }
}

std::vector<PageRange> PageSet::In(PageRange range) const {
  std::vector<PageRange> found;
  for (auto it = FirstEndingAt(range.first); it != ends_.end() && it->first < range.end; ++it) {
    const PageRange part = Intersection({it->first, it->second}, range);
    if (!part.empty()) found.push_back(part);
  }
  return found;
}

std::vector<PageRange> PageSet::MissingIn(PageRange range) const {
  std::vector<PageRange> missing;
  for (const PageRange& part : In(range)) {
    if (range.first < part.first) missing.push_back({range.first, part.first});
    range.first = part.end;
  }
  if (!range.empty()) missing.push_back(range);
  return missing;
}

}  // namespace hostmm
