#include "runtime/snapshot/view_pages.h"

namespace hostmm {
namespace {

using Pages = std::bitset<kPagesPerBlock>;

Pages Mask(FilePage first, PageCount count) {
  Pages all;
  all.set();
  return (all >> (kPagesPerBlock - count.value())) << IndexInBlock(first);
}

}  // namespace

void ViewPages::Add(GuestId guest, MmId snapshot, FilePage first, PageCount count) {
  snapshots_[KeyOf(snapshot)][KeyOf(guest)][BlockFloor(first).value()] |= Mask(first, count);
}

void ViewPages::Remove(GuestId guest, MmId snapshot, FilePage first, PageCount count) {
  const auto holdings = snapshots_.find(KeyOf(snapshot));
  if (holdings == snapshots_.end()) return;
  const auto blocks = holdings->second.find(KeyOf(guest));
  if (blocks == holdings->second.end()) return;
  const auto pages = blocks->second.find(BlockFloor(first).value());
  if (pages == blocks->second.end()) return;
  pages->second &= ~Mask(first, count);
  if (pages->second.none()) blocks->second.erase(pages);
}

bool ViewPages::Has(GuestId guest, MmId snapshot, FilePage page) const {
  const auto holdings = snapshots_.find(KeyOf(snapshot));
  if (holdings == snapshots_.end()) return false;
  const auto blocks = holdings->second.find(KeyOf(guest));
  if (blocks == holdings->second.end()) return false;
  const auto pages = blocks->second.find(BlockFloor(page).value());
  return pages != blocks->second.end() && pages->second.test(IndexInBlock(page));
}

std::vector<GuestId> ViewPages::Holders(MmId snapshot, FilePage first, PageCount count) const {
  std::vector<GuestId> holders;
  const auto holdings = snapshots_.find(KeyOf(snapshot));
  if (holdings == snapshots_.end()) return holders;
  const Pages mask = Mask(first, count);
  for (const auto& [guest, blocks] : holdings->second) {
    const auto pages = blocks.find(BlockFloor(first).value());
    if (pages == blocks.end() || (pages->second & mask).none()) continue;
    holders.push_back({static_cast<uint32_t>(guest), static_cast<uint32_t>(guest >> 32)});
  }
  return holders;
}

void ViewPages::DropGuest(GuestId guest) {
  for (auto& [snapshot, holdings] : snapshots_) holdings.erase(KeyOf(guest));
}

void ViewPages::DropSnapshot(MmId snapshot) { snapshots_.erase(KeyOf(snapshot)); }

}  // namespace hostmm
