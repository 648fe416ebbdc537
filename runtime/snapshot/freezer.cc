#include "runtime/snapshot/freezer.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/packet.h"
#include "runtime/userfaultfd.h"

namespace hostmm {
namespace {

// For an answer of the agent: between 250 and 500 ms. It needs microseconds; longer means that it
// is stopped, or waits for a lock that its program holds.
constexpr uint32_t kPatienceTicks = 2;
// For a child that has been forked and has not attached, which takes it a millisecond: 1 s. All
// faults of the file wait. Arbitrary.
constexpr uint32_t kChildPatienceTicks = 4;

bool Contains(const std::vector<GuestId>& guests, GuestId guest) {
  return std::ranges::find(guests, guest) != guests.end();
}

}  // namespace

// A guest that has died refuses its memory with any errno, until we hear of its death:
// UFFDIO_REGISTER says ENOMEM. One that lives and is not registered says ENOENT here, so that the
// outcome alone does not do. More protection harms nobody; but no more than the region's own
// memory: a view beside it may have pages that are not to be asked for again.
bool Freezer::IsGone(const Guest& guest, const Region& region) const {
  const LiveFile* file = files_->Find(region.mm);
  const bool blocks = file != nullptr && file->backing->kind() == FrameKind::kHugetlb;
  return UffdAddressSpace(guest.uffd.fd.get(), region.va.value(),
                          blocks ? kBlockSize : kPageSize) == Alive::kNo;
}

std::vector<Region> Freezer::RegionsOf(GuestId guest, MmId mm) const {
  std::vector<Region> regions;
  tables_->ForEachRegion(guest, [&](const Region& region) {
    // A private mapping can only be read.
    if (region.mm == mm && (region.flags & kPrivate) == 0) regions.push_back(region);
  });
  return regions;
}

std::vector<GuestId> Freezer::MappersOf(MmId mm) const {
  std::vector<GuestId> mappers;
  guests_->ForEach([&](const Guest& guest) {
    if (!RegionsOf(guest.id, mm).empty()) mappers.push_back(guest.id);
  });
  return mappers;
}

ToldFrozen* Freezer::RecordOf(Guest& guest, MmId mm) {
  const auto it = std::ranges::find(guest.frozen, mm, &ToldFrozen::mm);
  return it == guest.frozen.end() ? nullptr : &*it;
}

bool Freezer::Knows(const Guest& guest, MmId mm) {
  const auto it = std::ranges::find(guest.frozen, mm, &ToldFrozen::mm);
  return it != guest.frozen.end() && it->knows == ToldFrozen::Knows::kYes;
}

void Freezer::Forget(Guest& guest, MmId mm) {
  std::erase_if(guest.frozen, [mm](const ToldFrozen& told) { return told.mm == mm; });
}

ToldFrozen& Freezer::RecordFor(Guest& guest, MmId mm) {
  ToldFrozen* record = RecordOf(guest, mm);
  return record != nullptr ? *record : guest.frozen.emplace_back(ToldFrozen{.mm = mm});
}

void Freezer::SetKnows(Guest& guest, MmId mm) {
  RecordFor(guest, mm).knows = ToldFrozen::Knows::kYes;
}

bool Freezer::IsFrozen(MmId mm) const {
  const LiveFile* file = files_->Find(mm);
  return file != nullptr && file->state != LiveFile::State::kThawed;
}

std::string Freezer::WhyNot(MmId mm) const {
  std::string why;
  for (const GuestId id : MappersOf(mm)) {
    const Guest* guest = guests_->Find(id);
    // A child that is just being forked attaches soon.
    if (guest->pid == 0) continue;
    if (!guest->uffd.fd.ok()) why = absl::StrCat("process ", guest->pid, " has no userfaultfd");
    if (!guest->has_agent) why = absl::StrCat("process ", guest->pid, " has no agent thread");
  }
  return why;
}

bool Freezer::Punches(const Guest& guest, MmId mm) const {
  if (!guest.punches.has_value()) return false;
  return std::ranges::any_of(RegionsOf(guest.id, mm), [&](const Region& region) {
    return region.va < guest.punches->end && guest.punches->start < region.end();
  });
}

int Freezer::Register(const Guest& guest, MmId mm) const {
  int error = 0;
  for (const Region& region : RegionsOf(guest.id, mm)) {
    const UffdResult result = UffdRegister(guest.uffd.fd.get(), region.va.value(),
                                           BytesOf(region.length), protocol::kTrackedModes);
    if (result == UffdResult::kDone) continue;
    if (IsGone(guest, region)) return 0;
    error = ENOTSUP;
  }
  return error;
}

Freezer::Told Freezer::Tell(Guest& guest, const LiveFile& file) {
  if (!guest.has_agent) return Told::kNo;
  protocol::Message freeze = NewPacket(protocol::Kind::kOrder);
  freeze.op = protocol::OrderOp::kFreeze;
  freeze.mm = {file.mm.slot, file.mm.generation};
  freeze.order = next_++;
  freeze.value[0] = file.backing->kind() == FrameKind::kHugetlb ? 1 : 0;
  const std::array<int, 2> fds = {guest.uffd.fd.get(), file.life_read.get()};
  if (SendPacket(guest.channel.fd.get(), freeze, fds) != SendResult::kSent) return Told::kNo;
  RecordFor(guest, file.mm).order = freeze.order;
  return Told::kYes;
}

int Freezer::WriteProtect(const Guest& guest, MmId mm) const {
  for (const Region& region : RegionsOf(guest.id, mm)) {
    const UffdResult result = UffdWriteProtect(guest.uffd.fd.get(), region.va.value(),
                                               BytesOf(region.length), WriteProtected::kYes);
    if (result == UffdResult::kDone) continue;
    return IsGone(guest, region) ? 0 : ENOTSUP;
  }
  return 0;
}

int Freezer::FreezeGuest(Guest& guest, LiveFile* file) {
  if (!guest.uffd.fd.ok() || !guest.has_agent) return ENOTSUP;
  if (Register(guest, file->mm) != 0) {
    // The kernel has unmapped or moved something that we have not heard of yet: we shall, or it is
    // late. What its agent has done for an earlier order does not count.
    if (ToldFrozen* told = RecordOf(guest, file->mm); told != nullptr) told->order = 0;
    if (!Contains(file->waiting, guest.id)) file->waiting.push_back(guest.id);
    return 0;
  }
  const bool hugetlb = file->backing->kind() == FrameKind::kHugetlb;
  // First, so that its agent wakes up while the kernel protects.
  const bool told = Tell(guest, *file) == Told::kYes;
  if (hugetlb) {
    if (const int error = WriteProtect(guest, file->mm); error != 0) return error;
  }
  if (hugetlb && told && Knows(guest, file->mm)) return 0;
  // Who could not be told is dead, or late.
  if (!told) RecordFor(guest, file->mm).order = 0;
  if (!Contains(file->waiting, guest.id)) file->waiting.push_back(guest.id);
  return 0;
}

void Freezer::Freeze(LiveFile* file, Done done) {
  file->state = LiveFile::State::kFreezing;
  file->done = std::move(done);
  file->ticks = 0;
  file->freeze = next_++;
  int error = 0;
  for (const GuestId id : MappersOf(file->mm)) {
    Guest* guest = guests_->Find(id);
    if (guest->pid == 0) {
      file->waiting.push_back(id);
    } else if (error == 0) {
      error = FreezeGuest(*guest, file);
    }
  }
  if (error != 0) return End(file, error);
  EndIfLast(file);
}

void Freezer::EndIfLast(LiveFile* file) {
  if (file->state == LiveFile::State::kFreezing && file->waiting.empty()) End(file, 0);
}

void Freezer::End(LiveFile* file, int error) {
  file->waiting.clear();
  file->state = LiveFile::State::kFrozen;
  const MmId mm = file->mm;
  std::vector<FaultEvent> parked;
  parked.swap(file->parked);
  const Done done = std::move(file->done);
  file->done = nullptr;
  // It may thaw the file, and so end it, if no snapshot has come of it.
  done(error);
  for (const FaultEvent& event : parked) resume_(event);
  ended_(mm);
}

void Freezer::Release(LiveFile* file, GuestId guest) {
  if (std::erase(file->waiting, guest) != 0) EndIfLast(file);
}

Freezer::Park Freezer::ParkFault(MmId mm, const FaultEvent& event) {
  LiveFile* file = files_->Find(mm);
  if (file == nullptr || file->state != LiveFile::State::kFreezing) return Park::kNo;
  file->parked.push_back(event);
  return Park::kYes;
}

void Freezer::OnFreezeDone(Guest& guest, const protocol::Message& message) {
  const MmId mm{message.mm.slot, message.mm.generation};
  LiveFile* file = files_->Find(mm);
  if (file == nullptr || RegionsOf(guest.id, mm).empty()) return;
  const ToldFrozen* told = RecordOf(guest, mm);
  if (told == nullptr || told->order == 0 || message.order != told->order) return;
  SetKnows(guest, mm);
  if (!Contains(file->waiting, guest.id)) return;
  // Memory that is locked cannot be zapped.
  const int error = message.status != protocol::Status::kOk ? WriteProtect(guest, mm) : 0;
  if (error != 0) return End(file, error);
  Release(file, guest.id);
}

void Freezer::OnZapped(Guest& guest, MmId mm, uint32_t freeze) {
  LiveFile* file = files_->Find(mm);
  if (file == nullptr || file->freeze != freeze) return;
  SetKnows(guest, mm);
  Release(file, guest.id);
}

Freezer::Forked Freezer::OnFork(const Guest& parent, Guest& child, std::vector<MmId>* unseen) {
  for (const ToldFrozen& told : parent.frozen) {
    if (told.knows == ToldFrozen::Knows::kYes) SetKnows(child, told.mm);
  }
  for (const MmId mm : files_->all()) {
    LiveFile* file = files_->Find(mm);
    const bool thawed = file->state == LiveFile::State::kThawed;
    if (thawed || RegionsOf(child.id, mm).empty() || Knows(parent, mm)) continue;
    const bool freezing = file->state == LiveFile::State::kFreezing;
    // Its first write may come before it is frozen; that is before the moment of this snapshot, but
    // not of earlier ones.
    if (freezing) file->waiting.push_back(child.id);
    if (file->snapshots != 0 || !freezing) unseen->push_back(mm);
  }
  return unseen->empty() ? Forked::kWatched : Forked::kUnseen;
}

void Freezer::OnAttach(Guest& guest) {
  for (const MmId mm : files_->all()) {
    LiveFile* file = files_->Find(mm);
    // The end of one freeze may have been that of another file's last snapshot.
    if (file == nullptr || file->state == LiveFile::State::kThawed) continue;
    if (RegionsOf(guest.id, mm).empty()) continue;
    const bool member = Contains(file->waiting, guest.id);
    const int error = FreezeGuest(guest, file);
    // Who is no member writes nothing unseen: it has registered itself, or been registered before.
    if (!member) std::erase(file->waiting, guest.id);
    if (member && error != 0) {
      End(file, error);
    } else {
      EndIfLast(file);
    }
  }
  // Forked while the file was frozen, and come after its thaw.
  const std::vector<ToldFrozen> known = guest.frozen;
  for (const ToldFrozen& told : known) {
    if (!IsFrozen(told.mm)) ThawGuest(guest, told.mm);
  }
}

void Freezer::OnMapped(Guest& guest, MmId mm) {
  // Nothing is mapped there yet that could be written: nobody waits for it. That it knows, its
  // agent has to say: of other windows, or by an earlier thaw that is on its way, it may not.
  if (IsFrozen(mm)) Tell(guest, *files_->Find(mm));
}

void Freezer::ThawGuest(Guest& guest, MmId mm) const {
  Forget(guest, mm);
  if (!guest.uffd.fd.ok()) return;
  for (const Region& region : RegionsOf(guest.id, mm)) {
    // Modes can be added to a registration, not taken away.
    const uint64_t va = region.va.value();
    const uint64_t bytes = BytesOf(region.length);
    UffdUnregister(guest.uffd.fd.get(), va, bytes);
    UffdRegister(guest.uffd.fd.get(), va, bytes, normal_modes_);
    UffdWake(guest.uffd.fd.get(), va, bytes);
  }
  protocol::Message thaw = NewPacket(protocol::Kind::kOrder);
  thaw.op = protocol::OrderOp::kThaw;
  thaw.mm = {mm.slot, mm.generation};
  if (guest.has_agent) SendPacket(guest.channel.fd.get(), thaw);
}

void Freezer::OnUnmapped(Guest& guest, MmId mm) {
  ThawGuest(guest, mm);
  if (LiveFile* file = files_->Find(mm); file != nullptr) Release(file, guest.id);
}

void Freezer::Thaw(LiveFile* file) {
  file->state = LiveFile::State::kThawed;
  const bool goes_on = !thawing_.empty();
  for (const GuestId id : MappersOf(file->mm)) {
    Guest* guest = guests_->Find(id);
    if (guest->pid == 0) continue;
    thawing_.push_back({id, file->mm});
    // What it maps until its turn its library does not know to be frozen, if the file is again.
    Forget(*guest, file->mm);
  }
  if (!goes_on && !thawing_.empty()) soon_([this] { ThawNext(); });
}

// The kernel goes through all page tables of the guest, which takes milliseconds per GiB: others
// have their faults served in between. Until it is its turn, a guest's faults are served as those
// of any memory that is registered for more than holes.
void Freezer::ThawNext() {
  const auto [id, mm] = thawing_.front();
  thawing_.pop_front();
  Guest* guest = guests_->Find(id);
  // Frozen again meanwhile, it stays as it is, if it still maps the file.
  if (guest != nullptr && (!IsFrozen(mm) || RegionsOf(id, mm).empty())) ThawGuest(*guest, mm);
  if (!thawing_.empty()) soon_([this] { ThawNext(); });
}

void Freezer::OnGuestGone(GuestId guest) {
  for (const MmId mm : files_->all()) {
    if (LiveFile* file = files_->Find(mm); file != nullptr) Release(file, guest);
  }
}

void Freezer::OnTrackedChild(Guest& guest) {
  std::vector<MmId> thawed;
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    const FrameKind frames = tables_->Info(region.mm).frames;
    if (!IsFrozen(region.mm) && !IsServedByKernel(frames) && frames != FrameKind::kSnapshot) {
      thawed.push_back(region.mm);
    }
  });
  for (const MmId mm : thawed) ThawGuest(guest, mm);
}

void Freezer::OnLeft(MmId mm) {
  LiveFile* file = files_->Find(mm);
  if (file != nullptr && file->state == LiveFile::State::kFreezing) End(file, EAGAIN);
}

void Freezer::Tick() {
  for (const MmId mm : files_->all()) {
    LiveFile* file = files_->Find(mm);
    if (file == nullptr || file->state != LiveFile::State::kFreezing) continue;
    if (++file->ticks < kPatienceTicks) continue;
    EndForTheLate(file);
  }
}

void Freezer::EndForTheLate(LiveFile* file) {
  const std::vector<GuestId> late = file->waiting;
  for (const GuestId id : late) {
    Guest* guest = guests_->Find(id);
    // A child that has not attached runs no code of its program.
    const bool is_child = guest != nullptr && guest->pid == 0;
    if (is_child && file->ticks < kChildPatienceTicks) continue;
    const int error = guest == nullptr ? 0 : FreezeLate(*guest, *file);
    if (error != 0) return End(file, error);
    std::erase(file->waiting, id);
  }
  EndIfLast(file);
}

int Freezer::FreezeLate(Guest& guest, const LiveFile& file) {
  if (guest.pid == 0) return ETIMEDOUT;
  if (Punches(guest, file.mm)) return EAGAIN;
  if (const int error = Register(guest, file.mm); error != 0) return error;
  // Its agent reads it before it hears of the pager's end, and holds its writers then. Only one
  // that has been stopped for long has no room for it.
  const ToldFrozen* told = RecordOf(guest, file.mm);
  if (told == nullptr || told->order == 0) Tell(guest, file);
  return WriteProtect(guest, file.mm);
}

uint64_t Freezer::ModesFor(MmId mm) const {
  return IsFrozen(mm) ? protocol::kTrackedModes : normal_modes_;
}

}  // namespace hostmm
