// PageSet: pages of one file, kept as ranges.
//
// Memory:  heap; for the pager's slow roads, not for the segment.
// Units:   FilePage, 4 KiB each.
// Threads: none of its own.
// Errors:  none; an empty range adds and removes nothing.

#ifndef HOSTMM_VMM_PAGE_SET_H_
#define HOSTMM_VMM_PAGE_SET_H_

#include <cstddef>
#include <map>
#include <vector>

#include "vmm/units.h"

namespace hostmm {

// Pages [first, end) of a file.
struct PageRange {
  FilePage first{};
  FilePage end{};

  constexpr bool empty() const { return first >= end; }
  friend constexpr bool operator==(const PageRange&, const PageRange&) = default;
};

constexpr PageRange Intersection(PageRange a, PageRange b) {
  return {a.first < b.first ? b.first : a.first, a.end < b.end ? a.end : b.end};
}

class PageSet {
 public:
  void Add(PageRange range);
  void Remove(PageRange range);

  bool empty() const { return ends_.empty(); }
  // Of ranges that do not touch.
  size_t size() const { return ends_.size(); }
  // What is in the set and in the range, in order; ranges that touch are one.
  std::vector<PageRange> In(PageRange range) const;
  // What is in the range and not in the set.
  std::vector<PageRange> MissingIn(PageRange range) const;

 private:
  // The first range that ends after `page`, or at it.
  std::map<FilePage, FilePage>::const_iterator FirstEndingAt(FilePage page) const;

  std::map<FilePage, FilePage> ends_;  // by first page; disjoint, never touching
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_PAGE_SET_H_
