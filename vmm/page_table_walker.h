// A reader's walk down a page table: from any top to the entry that decides a page.
//
// Units:   FilePage.
// Threads: any; the bytes may change under the walk and may be garbage. The caller validates with
//          the free epoch (segment.h, SYNCHRONIZATION 2).
// Errors:  kDamaged for an offset or a word that cannot be.

#ifndef HOSTMM_VMM_PAGE_TABLE_WALKER_H_
#define HOSTMM_VMM_PAGE_TABLE_WALKER_H_

#include "vmm/pte.h"
#include "vmm/segment.h"

namespace hostmm {

enum class WalkEnd : uint8_t {
  kLeaf,     // `entry` is present or in flight
  kEmpty,    // an empty entry at `level`
  kDamaged,  // no use reading on
};

struct WalkResult {
  WalkEnd end = WalkEnd::kDamaged;
  Pte entry;
  int level = 0;
};

inline WalkResult Walk(const SegmentView& view, HostOffset top, int top_level, FilePage page) {
  if (top_level < 0 || top_level >= view.geometry().levels) return {};
  HostOffset table = top;
  for (int level = top_level; level >= 0; --level) {
    const SharedWord* entries = view.entries(table);
    if (entries == nullptr) return {WalkEnd::kDamaged, Pte(), level};
    const Pte entry = Pte::FromRaw(entries[view.geometry().IndexAt(level, page)].Load());
    if (!entry.valid()) return {WalkEnd::kDamaged, Pte(), level};
    if (entry.is_empty()) return {WalkEnd::kEmpty, entry, level};
    if (entry.is_leaf()) return {WalkEnd::kLeaf, entry, level};
    table = entry.table();
  }
  return {};  // a reference to a table where only pages can be
}

}  // namespace hostmm

#endif  // HOSTMM_VMM_PAGE_TABLE_WALKER_H_
