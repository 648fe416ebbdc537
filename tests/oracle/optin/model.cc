#include "tests/oracle/optin/model.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

namespace hostmm::oracle {
namespace {

constexpr Seen kDone = {};
constexpr Seen kNothingToDo = {Seen::kSkipped, 0};

Seen Refused(int error) { return {Seen::kErrno, static_cast<uint32_t>(error)}; }

}  // namespace

Model::Model(Mistake mistake) : mistake_(mistake) {
  for (Actor& actor : actors_) {
    for (auto& slot : actor.slots) slot.resize(kSlotPages);
  }
  for (auto& file : files_) file.resize(size_t{kFileBlocks} * kBlockPages);
  actors_[0].alive = true;
}

std::optional<uint32_t> Choose(const std::array<bool, kActors>& alive, uint32_t number) {
  const auto count = static_cast<uint32_t>(std::ranges::count(alive, true));
  if (count == 0) return std::nullopt;
  uint32_t left = number % count;
  for (uint32_t i = 0; i < kActors; ++i) {
    if (alive[i] && left-- == 0) return i;
  }
  return std::nullopt;
}

Seen Model::Take(const Step& step) {
  std::array<bool, kActors> alive;
  for (uint32_t i = 0; i < kActors; ++i) alive[i] = actors_[i].alive;
  const std::optional<uint32_t> chosen = Choose(alive, step.actor);
  if (!chosen.has_value()) return kNothingToDo;
  Actor& actor = actors_[*chosen];
  const Place& place = actor.slots[step.slot][step.page % kSlotPages];
  switch (step.what) {
    case Do::kMap:
      return Map(actor, step);
    case Do::kUnmap:
      return Unmap(actor, step);
    case Do::kProtect:
      return Protect(actor, step, Caller::kPlain);
    case Do::kProtectForAll:
      return Protect(actor, step, Caller::kForAll);
    case Do::kAdvise:
      return Advise(actor, step);
    case Do::kRead:
      if (!place.mapped) return {Seen::kMapErr, 0};
      if ((ProtOf(place) & PROT_READ) == 0) return {Seen::kAccErr, 0};
      return {Seen::kOk, StateOf(place).byte};
    case Do::kWrite:
      if (!place.mapped) return {Seen::kMapErr, 0};
      if ((ProtOf(place) & PROT_WRITE) == 0) return {Seen::kAccErr, 0};
      StateOf(place).byte = static_cast<uint8_t>(step.number);
      return kDone;
    case Do::kMove:
      return Move(actor, step);
    case Do::kFork:
      return Fork(actor);
    case Do::kExit:
      // The last one stays: an empty stage shows nothing.
      if (std::ranges::count(alive, true) == 1) return kNothingToDo;
      End(actor);
      return kDone;
    case Do::kKill: {
      const uint32_t other = *Choose(alive, step.number);
      if (other == *chosen) return kNothingToDo;
      End(actors_[other]);
      return kDone;
    }
    case Do::kKinds:
      break;
  }
  return kNothingToDo;
}

Seen Model::Map(Actor& actor, const Step& step) {
  const MapHow how = HowOf(step);
  const int prot = oracle::ProtOf(step.number >> 8);
  const MapRange range = RangeOfMap(step);
  if (how == MapHow::kCrooked) return Refused(EINVAL);
  if (how == MapHow::kPrivateWritable) return Refused(EINVAL);
  if (how == MapHow::kReadOnlyDescriptor && (prot & PROT_WRITE) != 0) return Refused(EACCES);
  auto& slot = actor.slots[step.slot];
  const uint32_t first = range.slot_block * kBlockPages;
  const uint32_t count = range.blocks * kBlockPages;
  for (uint32_t i = 0; i < count; ++i) Drop(slot[first + i]);
  for (uint32_t i = 0; i < count; ++i) {
    Place& place = slot[first + i];
    place = {true, how == MapHow::kPlain ? kPlain : kOptIn, step.file % kFiles,
             range.file_block * kBlockPages + i, prot};
    if (how == MapHow::kDedicated) place.share |= kDedicated;
    if (how == MapHow::kReadOnlyDescriptor) place.share |= kNeverWrite;
    if ((place.share & kOptIn) == 0) continue;
    FilePageState& state = StateOf(place);
    ++state.mappers;
    if (mistake_ == Mistake::kNewcomersBringTheirOwn) state.prot = prot;
  }
  return kDone;
}

Seen Model::Unmap(Actor& actor, const Step& step) {
  const PageRange range = RangeOf(step);
  for (uint32_t i = 0; i < range.count; ++i) Drop(actor.slots[step.slot][range.first + i]);
  return kDone;
}

Seen Model::Protect(Actor& actor, const Step& step, Caller caller) {
  const PageRange range = RangeOf(step);
  const int prot = oracle::ProtOf(step.number);
  auto& slot = actor.slots[step.slot];
  uint8_t share = 0;
  for (uint32_t i = 0; i < range.count; ++i) share |= slot[range.first + i].share;
  if ((share & kDedicated) != 0 && caller == Caller::kPlain) return Refused(EPERM);
  if ((share & kNeverWrite) != 0 && (prot & PROT_WRITE) != 0) return Refused(EACCES);
  for (uint32_t i = 0; i < range.count; ++i) {
    Place& place = slot[range.first + i];
    // What comes before the hole is changed.
    if (!place.mapped) return Refused(ENOMEM);
    SetProt(place, prot);
  }
  return kDone;
}

Seen Model::Advise(Actor& actor, const Step& step) {
  const PageRange range = RangeOf(step);
  const int advice = kAdvices[step.number % kAdviceCount];
  auto& slot = actor.slots[step.slot];
  // What Linux does with holes and with what is not opt-in is the transparent oracle's affair.
  for (uint32_t i = 0; i < range.count; ++i) {
    const Place& place = slot[range.first + i];
    if ((place.share & kOptIn) == 0) return kNothingToDo;
    if (advice == MADV_REMOVE && (place.share & kNeverWrite) != 0) return kNothingToDo;
  }
  if (advice == kAdvices[kAdviceCount - 1]) return Refused(EINVAL);
  const bool loses =
      advice == MADV_REMOVE || (advice == MADV_DONTNEED && mistake_ == Mistake::kVotesLoseData);
  for (uint32_t i = 0; i < range.count && loses; ++i) StateOf(slot[range.first + i]).byte = 0;
  return kDone;
}

Seen Model::Move(Actor& actor, const Step& step) {
  const PageRange range = RangeOf(step);
  auto& from = actor.slots[step.slot];
  auto& to = actor.slots[(step.slot + 1) % kSlots];
  const uint32_t target = step.number % kSlotPages;
  if (target + range.count > kSlotPages) return kNothingToDo;
  // Of one mapping only: what the kernel does with more has changed over its versions.
  const Place first = from[range.first];
  for (uint32_t i = 0; i < range.count; ++i) {
    const Place& place = from[range.first + i];
    if (!place.mapped || place.share != first.share || place.file != first.file ||
        place.page != first.page + i || ProtOf(place) != ProtOf(first)) {
      return kNothingToDo;
    }
  }
  for (uint32_t i = 0; i < range.count; ++i) {
    Drop(to[target + i]);
    to[target + i] = from[range.first + i];
    from[range.first + i] = {};
  }
  return kDone;
}

Seen Model::Fork(Actor& actor) {
  const auto free = std::ranges::find(actors_, false, &Actor::alive);
  if (free == actors_.end()) return kNothingToDo;
  free->alive = true;
  free->slots = actor.slots;
  for (const auto& slot : free->slots) {
    for (const Place& place : slot) {
      if ((place.share & kOptIn) != 0) ++StateOf(place).mappers;
    }
  }
  return kDone;
}

void Model::End(Actor& actor) {
  actor.alive = false;
  for (auto& slot : actor.slots) {
    for (Place& place : slot) Drop(place);
  }
}

void Model::Drop(Place& place) {
  if ((place.share & kOptIn) != 0 && --StateOf(place).mappers == 0) StateOf(place).settled = false;
  place = {};
}

void Model::SetProt(Place& place, int prot) {
  if ((place.share & kOptIn) == 0 || mistake_ == Mistake::kProtectIsTheCallersOwn) {
    place.own_prot = prot;
    return;
  }
  StateOf(place).settled = true;
  StateOf(place).prot = prot;
}

int Model::ProtOf(const Place& place) const {
  const FilePageState& state = files_[place.file][place.page];
  if ((place.share & kOptIn) == 0 || !state.settled) return place.own_prot;
  return (place.share & kNeverWrite) != 0 ? state.prot & ~PROT_WRITE : state.prot;
}

}  // namespace hostmm::oracle
