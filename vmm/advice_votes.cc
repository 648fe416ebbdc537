#include "vmm/advice_votes.h"

namespace hostmm {
namespace {

void Withdraw(PageRange range, PageSet* voted) {
  voted->Remove(range);
  // A range was split. To void votes is always right: the pages stay.
  if (voted->size() > kMaxVotedRanges) *voted = PageSet();
}

}  // namespace

void AdviceVotes::Vote(MmId mm, GuestId guest, PageRange range) {
  if (range.empty()) return;
  PageSet& voted = votes_[mm][guest];
  voted.Add(range);
  // It touched no other range, or there would not be one more: this takes back nothing else.
  if (voted.size() > kMaxVotedRanges) voted.Remove(range);
}

void AdviceVotes::Drop(MmId mm, GuestId guest, PageRange range) {
  const auto of_mm = votes_.find(mm);
  if (of_mm == votes_.end()) return;
  const auto of_guest = of_mm->second.find(guest);
  if (of_guest == of_mm->second.end()) return;
  Withdraw(range, &of_guest->second);
  if (of_guest->second.empty()) of_mm->second.erase(of_guest);
  if (of_mm->second.empty()) votes_.erase(of_mm);
}

void AdviceVotes::DropGuest(GuestId guest) {
  for (auto& [mm, of_mm] : votes_) of_mm.erase(guest);
  std::erase_if(votes_, [](const auto& entry) { return entry.second.empty(); });
}

void AdviceVotes::DropMm(MmId mm) { votes_.erase(mm); }

std::vector<PageRange> AdviceVotes::Unanimous(MmId mm, PageRange range,
                                              std::span<const Mapper> mappers) const {
  const auto of_mm = votes_.find(mm);
  if (of_mm == votes_.end()) return {};
  PageSet agreed;
  for (const Mapper& mapper : mappers) {
    for (const PageRange& pages : mapper.pages) agreed.Add(Intersection(pages, range));
  }
  const PageSet none;
  for (const Mapper& mapper : mappers) {
    const auto found = of_mm->second.find(mapper.guest);
    const PageSet& voted = found == of_mm->second.end() ? none : found->second;
    for (const PageRange& pages : mapper.pages) {
      for (const PageRange& part : voted.MissingIn(Intersection(pages, range))) agreed.Remove(part);
    }
  }
  return agreed.In(range);
}

void AdviceVotes::Clear(MmId mm, PageRange range) {
  const auto of_mm = votes_.find(mm);
  if (of_mm == votes_.end()) return;
  for (auto& [guest, voted] : of_mm->second) Withdraw(range, &voted);
  std::erase_if(of_mm->second, [](const auto& entry) { return entry.second.empty(); });
  if (of_mm->second.empty()) votes_.erase(of_mm);
}

}  // namespace hostmm
