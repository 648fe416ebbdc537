#include "runtime/guest_mappings.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "runtime/answer.h"
#include "runtime/file_quota.h"
#include "runtime/opt_in_range.h"

namespace hostmm {
namespace {

using protocol::Message;
using protocol::Status;

bool IsPageAligned(uint64_t bytes) { return bytes % kPageSize == 0; }

// Whether the guest may map so; kOk, or why not. `allowed`: the share flags that this kind may
// have.
Message CheckShare(const Guest& guest, const Message& ask, protocol::Share allowed) {
  if (ask.mode == 0) return Answer(Status::kOk);
  // Private to its one process, whose agent has to freeze it.
  if (ask.mode == kCow && (allowed & kCow) != 0) {
    return guest.has_agent && guest.uffd.fd.ok()
               ? Answer(Status::kOk)
               : Answer(Status::kNotPermitted, "copy-on-write memory needs an agent and uffd mode");
  }
  if ((ask.mode & ~allowed) != 0 || (ask.mode & kSharedPt) == 0) {
    return Answer(Status::kRefused, "such sharing makes no sense");
  }
  if (ask.length == 0 || (ask.va | ask.length | ask.offset) % protocol::kGranule != 0) {
    return Answer(Status::kRefused, "opt-in memory is mapped in whole 2 MiB");
  }
  // Nobody would change its protection when others do.
  if (!guest.has_agent) return Answer(Status::kNotPermitted, "opt-in memory needs an agent");
  return Answer(Status::kOk);
}

}  // namespace

bool GuestMappings::HasRoomForRegion(const Guest& guest) const {
  const std::optional<GuestInfo> info = tables_->reader().Info(guest.id);
  return info.has_value() && info->regions < kRegionsPerGuest;
}

Message GuestMappings::Create(Guest& guest, const Message& ask, UniqueFd* file) {
  const bool sane = ask.length > 0 && IsPageAligned(ask.length) && IsPageAligned(ask.offset) &&
                    ask.offset < kBlockSize;
  if (!sane) return Answer(Status::kRefused, "a bad length");
  // Plain Linux refuses what can never be filled; the guest makes the plain call and gets that
  // answer.
  if (ask.length > terms_.max_file_bytes)
    return Answer(Status::kNoFrames, "the region is larger than memory");
  DropCreated(guest);
  if (!HasRoomForFile(*tables_, guest.uid))
    return Answer(Status::kFull, "this user has too many regions");
  absl::StatusOr<std::shared_ptr<const Backing>> backing = frames_->Make(ask.offset + ask.length);
  if (!backing.ok()) {
    return Answer(Status::kNoFrames, std::string(backing.status().message()).c_str());
  }
  const bool hugetlb = (*backing)->kind() == FrameKind::kHugetlb;
  // A region on hugetlb that begins inside a frame cannot be mapped there.
  if (hugetlb && ask.offset != 0)
    return Answer(Status::kRefused, "hugetlb frames want an address of whole 2 MiB");
  const uint64_t bytes = ask.offset + ask.length;
  const uint64_t unit = UnitOf((*backing)->kind());
  HostTables::MmSpec spec;
  spec.length = PageCount((bytes + unit - 1) / unit * (unit / kPageSize));
  spec.frames = (*backing)->kind();
  spec.owner_uid = guest.uid;
  strncpy(spec.name, guest.program.c_str(), sizeof(spec.name) - 1);
  MmId mm;
  const TableStatus made = tables_->CreateMm(spec, &mm);
  if (made != TableStatus::kOk) return Answer(made);
  tables_->PinMm(mm);
  guest.created = mm;
  files_->AddOwn(mm, *backing);
  file->reset(fcntl((*backing)->file().get(), F_DUPFD_CLOEXEC, 0));
  Message answer = Answer(Status::kOk);
  answer.mm = {mm.slot, mm.generation};
  answer.value[0] = unit;
  return answer;
}

Message GuestMappings::Map(Guest& guest, const Message& ask) {
  const MmId mm{ask.mm.slot, ask.mm.generation};
  // Only the file that this guest has just made: nobody reaches another's by guessing its id.
  if (!guest.created.has_value() || !(*guest.created == mm)) {
    return ask.mode != 0 ? MapAgain(guest, ask, mm)
                         : Answer(Status::kRefused, "no such file of yours");
  }
  Message answer = CheckShare(guest, ask, kSharedPt | kDedicated | kCow);
  if (answer.status == Status::kOk && ask.length != 0) {
    const GuestAddr va(ask.va);
    const PageCount length = PagesFloor(ask.length);
    answer = Place(guest, {va, length, mm, FilePage(ask.offset / kPageSize),
                           AccessFromProt(ask.prot), terms_.region_flags | ask.mode});
    if (answer.status == Status::kOk) {
      Register(guest, mm, va, length);
      ++ledger_.regions;
      ledger_.region_bytes += ask.length;
    }
  }
  DropCreated(guest);
  return answer;
}

// A second window of what it maps opt-in already, with the same rights (mremap that keeps the old
// place).
Message GuestMappings::MapAgain(Guest& guest, const Message& ask, MmId mm) {
  constexpr uint32_t kShareFlags = kSharedPt | kDedicated | kNeverWrite | kPrivate;
  const FilePage first(ask.offset / kPageSize);
  uint32_t flags = 0;
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    const bool same = region.mm == mm && region.file_page <= first && first < region.file_end();
    if (same && (region.flags & kShareFlags) == ask.mode) flags = ask.mode;
  });
  if (flags == 0) return Answer(Status::kRefused, "nothing of yours is mapped so");
  const Message checked = CheckShare(guest, ask, kShareFlags);
  if (checked.status != Status::kOk) return checked;
  const std::shared_ptr<const Backing> own = files_->Find(mm);
  const bool registered = own != nullptr && (flags & kPrivate) == 0;
  const GuestAddr va(ask.va);
  const PageCount length = PagesFloor(ask.length);
  Message answer = Place(guest, {va, length, mm, first, AccessFromProt(ask.prot),
                                 flags | (registered ? terms_.region_flags : 0)});
  if (answer.status == Status::kOk && registered) {
    Register(guest, mm, va, length);
    answer.value[1] = IsFrozen(guest, mm);
  }
  return answer;
}

Message GuestMappings::Place(Guest& guest, const RegionSpec& spec) {
  if (!HasRoomForRegion(guest)) {
    return Answer(Status::kFull, "this process has too many regions");
  }
  Release(guest, spec.va, spec.length);
  const Message answer = Answer(tables_->MapRegion(guest.id, spec));
  if (answer.status != Status::kOk || (spec.flags & kSharedPt) == 0) return answer;
  // It may have become many regions, one for each protection that it has found.
  if (!HasRoomForRegion(guest) ||
      opt_in_->Enter(guest, spec.va, spec.length) == OptIn::Entered::kNoRoom) {
    Release(guest, spec.va, spec.length);
    return Answer(Status::kFull, "the pager has no room for more opt-in memory");
  }
  Message with_access = answer;
  opt_in_->SayAccess(guest, spec.va, &with_access);
  return with_access;
}

void GuestMappings::Release(Guest& guest, GuestAddr va, PageCount length) {
  const std::vector<Region> gone = PartsIn(guest, va.value(), BytesOf(length));
  ReleasedMms released;
  tables_->UnmapRange(guest.id, va, length, &released);
  files_->Release(released);
  opt_in_->Leave(guest, gone);
  snapshots_->OnUnmapped(guest, gone);
}

// What the guest's faults there are then sent to us. A refusal (another userfaultfd has the range)
// leaves it to the kernel.
void GuestMappings::Register(Guest& guest, MmId mm, GuestAddr va, PageCount length) const {
  const bool registered =
      guest.uffd.fd.ok() && UffdRegister(guest.uffd.fd.get(), va.value(), BytesOf(length),
                                         snapshots_->ModesFor(mm)) == UffdResult::kDone;
  // What it writes there nobody sees.
  if (!registered && snapshots_->IsFrozen(mm)) snapshots_->Abandon(guest, mm);
  // Or nobody would, when the pager has died.
  if (!guest.has_agent && snapshots_->IsFrozen(mm)) {
    snapshots_->LoseFor(mm, "a process without an agent thread maps it");
  }
}

// Whether what the guest has just mapped of the file is frozen; it is told.
uint64_t GuestMappings::IsFrozen(Guest& guest, MmId mm) const {
  return snapshots_->OnMapped(guest, mm) == Snapshots::Frozen::kYes ? 1 : 0;
}

bool GuestMappings::HandIn(const Message& ask, int file, HandedIn* handed) {
  handed->bytes = ask.offset + ask.length;
  if (ask.value[0] != static_cast<uint64_t>(protocol::AdoptSource::kFile)) {
    handed->key = {0, ask.value[1]};
    handed->collapse = HandedIn::Collapse::kYes;
    return true;
  }
  struct stat info;
  struct statfs system;
  const int flags = fcntl(file, F_GETFL);
  if (flags < 0 || fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) return false;
  if (fstatfs(file, &system) != 0) return false;
  handed->key = {info.st_dev, info.st_ino};
  handed->bytes = std::max(handed->bytes, static_cast<uint64_t>(info.st_size));
  const bool memory = system.f_type == TMPFS_MAGIC;
  if (memory) handed->collapse = HandedIn::Collapse::kYes;
  if (!memory && system.f_type != HUGETLBFS_MAGIC) handed->frames = FrameKind::kForeign;
  if ((flags & O_ACCMODE) == O_RDONLY) handed->flags = kNeverWrite;
  return true;
}

TableStatus GuestMappings::MmOf(const Guest& guest, const HandedIn& handed, MmId* mm) {
  if (const std::optional<MmId> known = files_->FindAdopted(handed.key); known.has_value()) {
    *mm = *known;
    // It may have grown since it was made known. If the tables cannot follow, the new part stays
    // small.
    if (files_->Find(*mm) == nullptr) tables_->GrowMm(*mm, PagesCeil(handed.bytes));
    return tables_->PinMm(*mm);
  }
  if (!HasRoomForFile(*tables_, guest.uid)) return TableStatus::kNoSpace;
  HostTables::MmSpec spec;
  spec.length = PagesCeil(handed.bytes);
  spec.frames = handed.frames;
  spec.owner_uid = guest.uid;
  strncpy(spec.name, guest.program.c_str(), sizeof(spec.name) - 1);
  const TableStatus made = tables_->CreateMm(spec, mm);
  if (made != TableStatus::kOk) return made;
  files_->AddAdopted(*mm, handed.key);
  return tables_->PinMm(*mm);
}

Message GuestMappings::Adopt(Guest& guest, const Message& ask, const UniqueFd& file) {
  HandedIn handed;
  if (!HandIn(ask, file.get(), &handed)) return Answer(Status::kRefused, "not a file");
  if (!IsPageAligned(ask.offset) || handed.bytes < ask.length)
    return Answer(Status::kRefused, "a bad offset");
  const bool is_file = ask.value[0] == static_cast<uint64_t>(protocol::AdoptSource::kFile);
  Message answer = CheckShare(
      guest, ask, is_file ? kSharedPt | kDedicated | kNeverWrite | kPrivate : protocol::Share{0});
  if (answer.status != Status::kOk) return answer;
  MmId mm;
  const TableStatus found = MmOf(guest, handed, &mm);
  if (found != TableStatus::kOk) return Answer(found);

  const std::shared_ptr<const Backing> own = files_->Find(mm);
  // A private mapping is the kernel's: what a debugger writes there stays this process's own.
  const bool registered = own != nullptr && (ask.mode & kPrivate) == 0;
  uint32_t flags = ask.mode | (registered ? terms_.region_flags : 0);
  uint32_t prot = ask.prot;
  // Of a file of ours the descriptor alone says who may write, not the guest: the pager does what a
  // guest may do (kRemove).
  if ((ask.mode & kSharedPt) != 0 || own != nullptr) flags |= handed.flags;
  if ((ask.mode & kSharedPt) != 0) {
    if ((ask.mode & kPrivate) != 0) flags |= kNeverWrite;
    if ((flags & kNeverWrite) != 0) prot &= ~static_cast<uint32_t>(PROT_WRITE);
  }
  const GuestAddr va(ask.va);
  const PageCount length = PagesFloor(ask.length);
  const bool first = tables_->Info(mm).regions == 0;
  answer =
      Place(guest, {va, length, mm, FilePage(ask.offset / kPageSize), AccessFromProt(prot), flags});
  if (answer.status == Status::kOk) {
    answer.mm = {mm.slot, mm.generation};
    const bool hugetlb = own != nullptr && own->kind() == FrameKind::kHugetlb;
    const protocol::Adopted kind =
        hugetlb ? protocol::Adopted::kOwnHugetlb : protocol::Adopted::kOwn;
    answer.value[0] = static_cast<uint64_t>(registered ? kind : protocol::Adopted::kForeign);
    if (registered) Register(guest, mm, va, length);
    answer.value[1] = registered ? IsFrozen(guest, mm) : 0;
    ++ledger_.adopted;
    ledger_.region_bytes += ask.length;
    if (first && own == nullptr && handed.collapse == HandedIn::Collapse::kYes) adopter_->Add(mm);
  }
  ReleasedMms released;
  tables_->UnpinMm(mm, &released);
  files_->Release(released);
  return answer;
}

Message GuestMappings::Move(Guest& guest, const Message& ask) {
  if (!HasRoomForRegion(guest)) return Answer(Status::kFull, "this process has too many regions");
  ReleasedMms released;
  const GuestAddr to(ask.value[0]);
  const PageCount new_length = PagesFloor(ask.value[1]);
  // What the guest sees as one mapping is several regions here where protections differ. The kernel
  // (6.17) moves those together if they keep their length.
  const std::vector<Region> parts = PartsIn(guest, ask.va, ask.length);
  // Nobody would know what is mapped at the new place.
  for (const Region& part : parts) {
    if ((part.flags & kView) != 0) return Answer(Status::kRefused, "a view does not move");
  }
  TableStatus moved = TableStatus::kOk;
  if (parts.size() > 1 && ask.length == ask.value[1]) {
    for (size_t i = 0; i < parts.size() && moved == TableStatus::kOk; ++i) {
      const GuestAddr part_to = to + PagesBetween(GuestAddr(ask.va), parts[i].va);
      moved = tables_->MoveRange(guest.id, parts[i].va, parts[i].length, part_to, parts[i].length,
                                 &released);
    }
  } else {
    moved = tables_->MoveRange(guest.id, GuestAddr(ask.va), PagesFloor(ask.length), to, new_length,
                               &released);
  }
  files_->Release(released);
  if (moved != TableStatus::kOk) return Answer(moved);
  // The kernel drops a registration when a mapping moves.
  const std::optional<Region> region = tables_->FindRegion(guest.id, to);
  const bool registered = region.has_value() && (region->flags & kPrivate) == 0 &&
                          !IsServedByKernel(tables_->Info(region->mm).frames);
  Message answer = Answer(Status::kOk);
  if (registered) {
    Register(guest, region->mm, to, new_length);
    answer.value[1] = IsFrozen(guest, region->mm);
  }
  opt_in_->Enter(guest, to, new_length);
  opt_in_->Leave(guest, parts);
  return answer;
}

std::vector<Region> GuestMappings::PartsIn(const Guest& guest, uint64_t va, uint64_t length) const {
  std::vector<Region> parts;
  if (!FitsInGuest(GuestAddr(va), PagesFloor(length))) return parts;
  const GuestAddr end = GuestAddr(va) + PagesFloor(length);
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    if (region.va >= end || region.end() <= GuestAddr(va)) return;
    Region part = region;
    part.va = std::max(region.va, GuestAddr(va));
    part.file_page = region.PageAt(part.va);
    part.length = PagesBetween(part.va, std::min(region.end(), end));
    parts.push_back(part);
  });
  return parts;
}

void GuestMappings::DropCreated(Guest& guest) {
  if (!guest.created.has_value()) return;
  ReleasedMms released;
  tables_->UnpinMm(*guest.created, &released);
  guest.created.reset();
  files_->Release(released);
}

void GuestMappings::Forget(Guest& guest) {
  DropCreated(guest);
  std::vector<Region> gone;
  tables_->ForEachRegion(guest.id, [&](const Region& region) { gone.push_back(region); });
  ReleasedMms released;
  tables_->RemoveGuest(guest.id, &released);
  files_->Release(released);
  opt_in_->Forget(guest, gone);
}

}  // namespace hostmm
