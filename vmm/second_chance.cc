#include "vmm/second_chance.h"

#include <algorithm>
#include <cassert>

namespace hostmm {
namespace {

// One sixteenth is kept free, and 16 at most: as many as are mapped while one zap is on its way.
// Arbitrary.
constexpr uint64_t kReserveShare = 16;
constexpr uint64_t kMaxReserve = 16;

// A quarter stays on probation: room for what passes through, and a stay that is long enough to be
// missed. Arbitrary; never less than one instruction needs.
constexpr uint64_t kProbationShare = 4;

// When the protected are full, one in so many that come back takes the place of the one that has
// been there longest. Were it each of them, a loop over a little more than the capacity would turn
// the protected into one more first-in-first-out queue, and miss every time. Were it none, blocks
// that nobody uses any more would stay for ever. Arbitrary.
constexpr uint64_t kReturnsPerExchange = 8;

uint64_t ReserveOf(uint64_t capacity) {
  return std::clamp<uint64_t>(capacity / kReserveShare, 1, kMaxReserve);
}

uint64_t MaxProtected(uint64_t capacity) {
  const uint64_t probation =
      std::max<uint64_t>(capacity / kProbationShare, SecondChance::kLeastBlocks);
  const uint64_t rest = ReserveOf(capacity) + probation;
  return capacity > rest ? capacity - rest : 0;
}

}  // namespace

SecondChance::SecondChance(uint64_t capacity)
    : capacity_(std::max<uint64_t>(capacity, kLeastBlocks)),
      reserve_(ReserveOf(capacity_)),
      max_protected_(MaxProtected(capacity_)) {}

SecondChance::State SecondChance::StateOf(GuestAddr block) const {
  const auto it = entries_.find(block.value());
  if (it == entries_.end() || it->second.place == Place::kGhost) return State::kAbsent;
  return it->second.place == Place::kLeaving ? State::kLeaving : State::kMapped;
}

uint64_t SecondChance::size() const { return entries_.size() - QueueOf(Place::kGhost).size(); }

void SecondChance::Map(GuestAddr block) {
  const auto [it, is_new] = entries_.try_emplace(block.value());
  Entry& entry = it->second;
  if (!is_new) {
    assert(entry.place == Place::kGhost);
    return MoveTo(&entry, PlaceOfReturned(), End::kNewest);
  }
  Queue& probation = QueueOf(Place::kProbation);
  entry = {Place::kProbation, probation.insert(probation.end(), block.value())};
}

SecondChance::Place SecondChance::PlaceOfReturned() {
  const Queue& spared = QueueOf(Place::kProtected);
  if (spared.size() < max_protected_) return Place::kProtected;
  if (max_protected_ == 0 || ++returns_ % kReturnsPerExchange != 0) return Place::kProbation;
  MoveTo(&entries_.at(spared.front()), Place::kProbation, End::kNewest);
  return Place::kProtected;
}

std::optional<GuestAddr> SecondChance::Evict() {
  const Queue& probation = QueueOf(Place::kProbation);
  const Queue& spared = QueueOf(Place::kProtected);
  if (probation.size() + spared.size() + reserve_ <= capacity_) return std::nullopt;
  // Probation is empty only after a time without zaps.
  const uint64_t block = probation.empty() ? spared.front() : probation.front();
  MoveTo(&entries_.at(block), Place::kLeaving, End::kNewest);
  return GuestAddr(block);
}

void SecondChance::EndEviction(GuestAddr block, Zap how) {
  const auto it = entries_.find(block.value());
  assert(it != entries_.end() && it->second.place == Place::kLeaving);
  switch (how) {
    case Zap::kDone:
      MoveTo(&it->second, Place::kGhost, End::kNewest);
      if (QueueOf(Place::kGhost).size() > capacity_) ForgetOldestGhost();
      return;
    case Zap::kUndone:
      return MoveTo(&it->second, Place::kProbation, End::kOldest);
    case Zap::kRefused:
      QueueOf(Place::kLeaving).erase(it->second.at);
      entries_.erase(it);
      return;
  }
}

void SecondChance::ForgetOldestGhost() {
  Queue& ghosts = QueueOf(Place::kGhost);
  entries_.erase(ghosts.front());
  ghosts.pop_front();
}

void SecondChance::MoveTo(Entry* entry, Place place, End end) {
  Queue& queue = QueueOf(place);
  queue.splice(end == End::kOldest ? queue.begin() : queue.end(), QueueOf(entry->place), entry->at);
  entry->place = place;
}

}  // namespace hostmm
