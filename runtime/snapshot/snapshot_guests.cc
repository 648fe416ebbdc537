// What guests ask of snapshots beside taking one: views, forks, their end. (snapshots.h)
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "runtime/snapshot/answers.h"
#include "runtime/snapshot/snapshots.h"
#include "runtime/userfaultfd.h"

namespace hostmm {
namespace {

using protocol::Message;

UniqueFd Copy(const UniqueFd& fd) {
  return UniqueFd(fd.ok() ? fcntl(fd.get(), F_DUPFD_CLOEXEC, 0) : -1);
}

}  // namespace

void Snapshots::ViewFile(Packet& packet) {
  const TakenSnapshot* snapshot = set_.FindHandle(packet.fds[1].get());
  if (snapshot == nullptr) return Refuse(packet, EBADF, "not the handle of a snapshot");
  if (!snapshot->lost.empty()) return Refuse(packet, EIO, snapshot->lost);
  const LiveFile* file = live_.Find(snapshot->source);
  const UniqueFd readable = file != nullptr ? file->backing->OpenAnew(O_RDONLY) : UniqueFd();
  if (!readable.ok()) return Refuse(packet, EMFILE, "no descriptor for the file");
  Message answer = NewPacket(protocol::Kind::kReply);
  answer.length = snapshot->length;
  answer.value[0] = snapshot->unit;
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer, readable.get());
}

void Snapshots::MapView(Guest& guest, Packet& packet) {
  const Message& ask = packet.message;
  const TakenSnapshot* snapshot = set_.FindHandle(packet.fds[1].get());
  if (snapshot == nullptr) return Refuse(packet, EBADF, "not the handle of a snapshot");
  if (!snapshot->lost.empty()) return Refuse(packet, EIO, snapshot->lost);
  if (!guest.has_agent) return Refuse(packet, EPERM, "a view needs an agent thread");
  if (!guest.uffd.fd.ok()) return Refuse(packet, ENOTSUP, "this process has no userfaultfd");
  const uint64_t unit = snapshot->unit;
  const bool sane = ask.length != 0 && (ask.va | ask.length | ask.offset) % unit == 0 &&
                    ask.offset < snapshot->length && ask.length <= snapshot->length - ask.offset &&
                    (ask.prot & ~uint32_t{PROT_READ | PROT_WRITE}) == 0;
  if (!sane) return Refuse(packet, EINVAL, "a bad range of the snapshot");
  RegionSpec spec;
  spec.va = GuestAddr(ask.va);
  spec.length = PagesFloor(ask.length);
  spec.mm = snapshot->mm;
  spec.file_page = FilePage(ask.offset / kPageSize);
  const bool writable = (ask.prot & PROT_WRITE) != 0;
  spec.access = writable ? AccessSet::ReadWrite() : AccessSet(Access::kRead);
  // A child would inherit pages of which nobody knows.
  spec.flags = kView | kDontFork | (writable ? uint32_t{kViewWritable} : 0);
  ReleasedMms released;
  tables_->UnmapRange(guest.id, spec.va, spec.length, &released);
  files_->Release(released);
  if (const TableStatus status = tables_->MapRegion(guest.id, spec); status != TableStatus::kOk) {
    return Refuse(packet, status == TableStatus::kNoSpace ? ENOSPC : EINVAL,
                  "the pager's tables refuse the range");
  }
  if (UffdRegister(guest.uffd.fd.get(), ask.va, ask.length, protocol::kTrackedModes) !=
      UffdResult::kDone) {
    tables_->UnmapRange(guest.id, spec.va, spec.length, &released);
    return Refuse(packet, EINVAL, "the kernel does not register the range");
  }
  if (HoldView(guest, snapshot->mm) == Held::kNo) {
    tables_->UnmapRange(guest.id, spec.va, spec.length, &released);
    return Refuse(packet, EAGAIN, "its agent does not read what it is told");
  }
  Message answer = NewPacket(protocol::Kind::kReply);
  answer.mm = {snapshot->mm.slot, snapshot->mm.generation};
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer);
}

// What the guest's agent keeps, so that nobody reads a view wrongly when the pager is gone: a write
// end of the life pipe until its views are, and its userfaultfd until all views are.
Snapshots::Held Snapshots::HoldView(Guest& guest, MmId snapshot) {
  const LiveFile* file = live_.Find(cow_.SourceOf(snapshot));
  if (file == nullptr || !guest.has_agent) return Held::kNo;
  Message hold = NewPacket(protocol::Kind::kOrder);
  hold.op = protocol::OrderOp::kHoldLife;
  hold.mm = {snapshot.slot, snapshot.generation};
  const int channel = guest.channel.fd.get();
  if (SendPacket(channel, hold, file->life_write.get()) != SendResult::kSent) return Held::kNo;
  hold.op = protocol::OrderOp::kFreeze;
  hold.value[0] = 1;  // nothing to zap
  const std::array<int, 2> fds = {guest.uffd.fd.get(), file->life_read.get()};
  return SendPacket(channel, hold, fds) == SendResult::kSent ? Held::kYes : Held::kNo;
}

void Snapshots::Settle(Guest& guest, Packet& packet) {
  const Message& ask = packet.message;
  if (!FitsInGuest(GuestAddr(ask.va), PagesFloor(ask.length))) {
    return Refuse(packet, EINVAL, "a bad range");
  }
  // Touches are answered on this thread, so that none is under way; what is mapped from the live
  // file stays in the sets until the guest has zapped it, and a revoke finds nothing to zap then.
  const TableStatus status =
      tables_->FlagRange(guest.id, GuestAddr(ask.va), PagesFloor(ask.length), kCopyOnly, 0);
  if (status != TableStatus::kOk) return Refuse(packet, ENOSPC, "the pager's tables are full");
  SayDone(packet);
}

// One that a fork was announced for and did not come.
void Snapshots::DropCowFork(Guest& guest, GuestAddr va) {
  const auto same = [va](const CowFork& fork) { return fork.va == va; };
  const auto it = std::ranges::find_if(guest.cow_forks, same);
  if (it == guest.cow_forks.end()) return;
  const CowFork dropped = *it;
  guest.cow_forks.erase(it);
  set_.UnholdNumber(dropped.number);
}

void Snapshots::DropCowForks(Guest& guest) {
  std::vector<CowFork> dropped;
  dropped.swap(guest.cow_forks);
  for (const CowFork& fork : dropped) set_.UnholdNumber(fork.number);
}

// The asker holds its own lock until its fork is over: its agent cannot answer, and it zaps its
// mapping itself, before the kForkIntent. Until then faults of the file wait, so that nothing is
// copied before the moment of the snapshot.
void Snapshots::ForkCow(Guest& guest, Packet& packet) {
  const GuestAddr begin(packet.message.va);
  if (!FitsInGuest(begin, PagesFloor(packet.message.length))) {
    return Refuse(packet, EINVAL, "a bad range");
  }
  auto asker = std::make_shared<Asker>();
  asker->reply = std::move(packet.fds[0]);
  asker->uid = guest.uid;
  ForkCowOf(guest.id, {begin, begin + PagesFloor(packet.message.length)}, asker);
}

// Once more, if it has to wait: the guest may have gone meanwhile, and nothing is held for it then.
void Snapshots::ForkCowOf(GuestId id, AddrRange range, const std::shared_ptr<Asker>& asker) {
  Guest* guest = guests_->Find(id);
  if (guest == nullptr) return;
  const int reply = asker->reply.get();
  const std::optional<Region> region = tables_->FindRegion(id, range.start);
  if (!region.has_value() || (region->flags & kCow) == 0) {
    return SayRefused(reply, EINVAL, "no private copy-on-write region is mapped there");
  }
  if (guest->cow_forks.size() >= size_t{protocol::kMaxCowForks}) {
    return SayRefused(reply, ENOSPC, "too many regions for one fork");
  }
  const MmId source = region->mm;
  const LiveFile* open = live_.Find(source);
  if (open != nullptr && open->state == LiveFile::State::kFreezing) {
    const std::optional<CowFork> same = OpenCowFork(*guest, *open);
    if (!same.has_value()) {
      return WaitForFreeze(source, *asker, [=, this] { ForkCowOf(id, range, asker); });
    }
    // Another region of the same file, for the same fork.
    DropCowFork(*guest, range.start);
    TakenSnapshot* taken = set_.FindMm(same->snapshot);
    const UniqueFd readable = open->backing->OpenAnew(O_RDONLY);
    if (taken == nullptr || !readable.ok()) return SayRefused(reply, EMFILE, "no descriptor");
    set_.Hold(taken);
    return AnswerCowFork(*guest, range, *taken, reply, readable);
  }
  if (const std::string why = WhyNot(source); !why.empty()) {
    return SayRefused(reply, ENOTSUP, why);
  }
  const absl::StatusOr<LiveFile*> file =
      live_.FindOrMake(source, files_->Find(source), terms_.memory_limit);
  if (!file.ok()) return SayRefused(reply, ENOSPC, "no descriptors or memory for it");
  const int error = StartCowFork(*guest, range, source, *asker);
  if (error != 0) SayRefused(reply, error, "it could not be frozen");
  RunRequests(source);
}

// RETURNS an errno, or 0: the asker has been answered.
int Snapshots::StartCowFork(Guest& guest, AddrRange range, MmId source, const Asker& asker) {
  DropCowFork(guest, range.start);
  LiveFile* file = live_.Find(source);
  if (file == nullptr) return EAGAIN;
  const UniqueFd readable = file->backing->OpenAnew(O_RDONLY);
  if (!readable.ok()) return EMFILE;
  TakenSnapshot* taken = Record(source, asker.uid);
  if (taken == nullptr) return ENOSPC;
  // Until its kForkIntent, even if it knows already that the file is frozen: all files of a fork
  // are of one moment.
  file->waiting.push_back(guest.id);
  // Later than this call only because of another process: then the child's view is no snapshot.
  auto answered = std::make_shared<bool>(false);
  auto error = std::make_shared<int>(0);
  freezer_.Freeze(file, [this, source, answered, error](int failed) {
    *error = failed;
    if (*answered && failed != 0) Lose(source, WhyNotFrozen(failed), [] {});
  });
  *answered = true;
  if (*error != 0) {
    set_.Unhold(taken);
    return *error;
  }
  AnswerCowFork(guest, range, *taken, asker.reply.get(), readable);
  return 0;
}

// The hold of `taken` is the fork's.
void Snapshots::AnswerCowFork(Guest& guest, AddrRange range, const TakenSnapshot& taken, int reply,
                              const UniqueFd& file) {
  const LiveFile* live = live_.Find(taken.source);
  guest.cow_forks.push_back(
      {range.start, range.end, taken.mm, taken.number, live != nullptr ? live->freeze : 0});
  Message answer = NewPacket(protocol::Kind::kReply);
  answer.mm = {taken.mm.slot, taken.mm.generation};
  if (reply >= 0) SendPacket(reply, answer, file.get());
}

// One whose freeze waits for this guest's kForkIntent.
std::optional<CowFork> Snapshots::OpenCowFork(const Guest& guest, const LiveFile& file) const {
  const bool waits = file.state == LiveFile::State::kFreezing &&
                     std::ranges::find(file.waiting, guest.id) != file.waiting.end();
  for (const CowFork& fork : guest.cow_forks) {
    const bool of_this = cow_.SourceOf(fork.snapshot) == file.mm && fork.freeze == file.freeze;
    if (waits && of_this) return fork;
  }
  return std::nullopt;
}

void Snapshots::BeforeFork(Guest& parent) {
  // A copy: the end of a freeze lets the next request run.
  const std::vector<CowFork> forks = parent.cow_forks;
  for (const CowFork& fork : forks) {
    freezer_.OnZapped(parent, cow_.SourceOf(fork.snapshot), fork.freeze);
  }
}

void Snapshots::AfterFork(Guest& parent, Guest* child) {
  if (child != nullptr) {
    if (MapCowViews(parent, *child) == Mapped::kNo) Disown(*child);
    std::vector<MmId> unseen;
    freezer_.OnFork(parent, *child, &unseen);
    for (const MmId mm : unseen) {
      LoseFor(mm, absl::StrCat("process ", parent.pid, " forked before it could be frozen"));
    }
  } else {
    LoseForUnwatchedChild(parent.id);
  }
  DropCowForks(parent);
}

// Of all that `guest` maps there is a child of it, or itself, that nobody watches.
void Snapshots::LoseForUnwatchedChild(GuestId guest) {
  std::vector<MmId> inherited;
  tables_->ForEachRegion(guest, [&](const Region& region) {
    const bool known = std::ranges::find(inherited, region.mm) != inherited.end();
    if (!known && (region.flags & kView) == 0) inherited.push_back(region.mm);
  });
  for (const MmId mm : inherited) {
    if (files_->Find(mm) == nullptr) continue;
    AddUnwatched(mm, 0, UniqueFd());
    if (live_.Find(mm) == nullptr) continue;
    LoseFor(mm, "a forked process is not watched");
  }
}

// Its views could not be entered in the tables, so that nobody could serve them: it would read its
// parent's live memory. Without a channel its library makes them SIGBUS before the program goes on,
// and the rest of its memory plain.
void Snapshots::Disown(const Guest& child) {
  shutdown(child.channel.fd.get(), SHUT_RDWR);
  LoseForUnwatchedChild(child.id);
}

Snapshots::Mapped Snapshots::MapCowViews(const Guest& parent, const Guest& child) {
  for (const CowFork& fork : parent.cow_forks) {
    const MmId source = cow_.SourceOf(fork.snapshot);
    // Lost since it was taken for this fork.
    if (!source.valid()) return Mapped::kNo;
    std::vector<RegionSpec> specs;
    bool is_one_file = true;
    // What the guest counts as several regions may be one here.
    tables_->ForEachRegion(parent.id, [&](const Region& region) {
      const GuestAddr start = std::max(region.va, fork.va);
      const GuestAddr end = std::min(region.end(), fork.end);
      if (start >= end) return;
      is_one_file = is_one_file && region.mm == source;
      RegionSpec spec;
      spec.va = start;
      spec.length = PagesBetween(start, end);
      spec.mm = fork.snapshot;
      spec.file_page = region.PageAt(start);
      spec.access = region.access;
      spec.flags = kView | kViewWritable;
      specs.push_back(spec);
    });
    if (!is_one_file) return Mapped::kNo;
    for (const RegionSpec& spec : specs) {
      if (tables_->MapRegion(child.id, spec) != TableStatus::kOk) return Mapped::kNo;
    }
  }
  return Mapped::kYes;
}

bool Snapshots::MapsFile(GuestId guest, MmId mm) const {
  bool maps = false;
  tables_->ForEachRegion(guest, [&](const Region& region) { maps = maps || region.mm == mm; });
  return maps;
}

void Snapshots::OnAttach(Guest& guest) {
  std::vector<MmId> views;
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    if ((region.flags & kView) != 0) views.push_back(region.mm);
  });
  for (const MmId view : views) HoldView(guest, view);
  freezer_.OnAttach(guest);
}

Snapshots::Frozen Snapshots::OnMapped(Guest& guest, MmId mm) {
  if (!IsFrozen(mm)) return Frozen::kNo;
  freezer_.OnMapped(guest, mm);
  return Frozen::kYes;
}

// Who has no view any more holds up nobody; who maps nothing of a frozen file waits for nobody.
void Snapshots::OnUnmapped(Guest& guest, const std::vector<Region>& gone) {
  if (!any() || !guest.has_agent) return;
  // One mapping may have been thousands of regions.
  std::vector<Region> files;
  for (const Region& region : gone) {
    const auto same = [&region](const Region& other) { return other.mm == region.mm; };
    if (std::ranges::none_of(files, same)) files.push_back(region);
  }
  for (const Region& region : files) {
    if (MapsFile(guest.id, region.mm)) continue;
    if (IsFrozen(region.mm)) freezer_.OnUnmapped(guest, region.mm);
    if ((region.flags & kView) == 0) continue;
    Message let_go = NewPacket(protocol::Kind::kOrder);
    let_go.op = protocol::OrderOp::kHoldLife;
    let_go.mm = {region.mm.slot, region.mm.generation};
    SendPacket(guest.channel.fd.get(), let_go);
  }
}

// A process that lives on writes unseen when its userfaultfd is closed.
void Snapshots::OnLeaving(const Guest& guest) {
  // A child that did not attach has run nothing of its program: it is dead, or there was no fork.
  if (guest.pid == 0) return;
  std::optional<Region> one;
  std::vector<MmId> mapped;
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    if ((region.flags & kPrivate) != 0 || files_->Find(region.mm) == nullptr) return;
    one = region;
    if (std::ranges::find(mapped, region.mm) == mapped.end()) mapped.push_back(region.mm);
  });
  if (mapped.empty()) return;
  const bool blocks = files_->Find(one->mm)->kind() == FrameKind::kHugetlb;
  const bool gone =
      guest.uffd.fd.ok() && UffdAddressSpace(guest.uffd.fd.get(), one->va.value(),
                                             blocks ? kBlockSize : kPageSize) == Alive::kNo;
  if (gone) return;
  for (const MmId mm : mapped) Abandon(guest, mm);
}

// One entry for each process, so that a guest that comes and goes takes no more.
void Snapshots::AddUnwatched(MmId mm, pid_t pid, const UniqueFd& pidfd) {
  std::vector<Unwatched>& processes = unwatched_[KeyOf(mm)];
  const auto same = [pid](const Unwatched& process) { return process.pid == pid; };
  // The number may be that of another process by now.
  std::erase_if(processes, same);
  processes.push_back({pid, Copy(pidfd)});
}

// Snapshots that are to come must know of it, and those that are there are lost. Until no view of
// them is left, our copy of its userfaultfd holds it, as its agent's does.
void Snapshots::OnSilent(const Guest& guest) {
  std::vector<MmId> mapped;
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    if (files_->Find(region.mm) != nullptr) mapped.push_back(region.mm);
  });
  for (const MmId mm : mapped) Abandon(guest, mm);
}

void Snapshots::Abandon(const Guest& guest, MmId mm) {
  AddUnwatched(mm, guest.pid, guest.pidfd.fd);
  if (live_.Find(mm) == nullptr) return;
  const auto uffd = std::make_shared<const UniqueFd>(Copy(guest.uffd.fd));
  LoseFor(mm, absl::StrCat("process ", guest.pid, " left hostmm"), [uffd] {});
}

void Snapshots::OnGone(Guest& guest) {
  DropCowForks(guest);
  views_.OnGuestGone(guest.id);
  orders_.OnGuestGone(guest.id);
  freezer_.OnGuestGone(guest.id);
}

Freezer::Park Snapshots::Park(const FaultEvent& event) {
  const std::optional<Region> region = tables_->FindRegion(event.guest, event.addr);
  if (!region.has_value()) return Freezer::Park::kNo;
  return freezer_.ParkFault(region->mm, event);
}

}  // namespace hostmm
