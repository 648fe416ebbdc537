#include "runtime/session.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "runtime/opt_in_range.h"
#include "runtime/region_flags.h"
#include "runtime/snapshot/answers.h"
#include "vmm/host_mm.h"
#include "vmm/table_sharing.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

static_assert(kRegionDontFork == kDontFork && kRegionHintHuge == kHintHuge &&
              kRegionHintSmall == kHintSmall && kRegionSharedPt == kSharedPt &&
              kRegionDedicated == kDedicated && kRegionNeverWrite == kNeverWrite &&
              kRegionPrivate == kPrivate && kRegionCow == kCow && kRegionView == kView &&
              kRegionViewWritable == kViewWritable && kRegionCopyOnly == kCopyOnly);

// What one user may take of the files that all share (vmm/segment.h): three quarters. Arbitrary, as
// kRegionsPerGuest.
constexpr uint32_t kFilesPerUser = SegmentConfig{}.max_mms / 4 * 3;

Message Answer(Status status, const char* why = "") {
  Message answer = NewPacket(Kind::kReply);
  answer.status = status;
  strncpy(answer.text, why, sizeof(answer.text) - 1);
  return answer;
}

Message Answer(TableStatus status) {
  switch (status) {
    case TableStatus::kOk:
      return Answer(Status::kOk);
    case TableStatus::kNoSpace:
      return Answer(Status::kFull, "the pager's tables are full; start it anew with fewer guests");
    default:
      return Answer(Status::kRefused, "the pager refused the range");
  }
}

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

// Whether `fd` really is a userfaultfd: a guest could pass a pipe, and a read from it would stop
// the loop.
bool IsUserfaultfd(int fd) {
  char path[64];
  char target[64] = {};
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(path, target, sizeof(target) - 1);
  return length > 0 && strcmp(target, "anon_inode:[userfaultfd]") == 0 &&
         fcntl(fd, F_SETFL, O_NONBLOCK) == 0;
}

// Whether `fd` can be a channel. Another descriptor might never become readable, and so never end
// the guest.
bool IsChannel(int fd) {
  int domain = 0;
  int type = 0;
  socklen_t length = sizeof(int);
  return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX &&
         getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_SEQPACKET;
}

}  // namespace

void Session::Welcome(const Packet& hello) const {
  if (hello.message.version != protocol::kVersion) {
    SendPacket(hello.fds[0].get(),
               Answer(Status::kVersion, "preload library and pager are of different builds"));
    return;
  }
  Message answer = Answer(Status::kOk);
  answer.mode = static_cast<uint32_t>(terms_.mode);
  answer.value[0] = terms_.features;
  answer.value[1] = terms_.register_modes;
  SendPacket(hello.fds[0].get(), answer, uffd_->device.get());
}

Session::Verdict Session::OnPacket(Guest& guest, Packet packet) {
  const Kind kind = packet.message.kind;
  const bool of_agent =
      kind == Kind::kOrderDone || kind == Kind::kBoardDone || kind == Kind::kFreezeDone;
  if (!of_agent) ++guest.packets;
  const Verdict verdict = Dispatch(guest, packet);
  opt_in_->OnPacket(guest);
  return verdict;
}

Session::Verdict Session::Dispatch(Guest& guest, Packet& packet) {
  const Message& message = packet.message;
  Message answer;
  UniqueFd file;
  switch (message.kind) {
    case Kind::kAttach:
    case Kind::kChildAttach:
      return Attach(guest, packet);
    case Kind::kForkIntent:
      return Fork(guest, packet);
    case Kind::kOrderDone:
      orders_->OnDone(guest, message);
      return Verdict::kKeep;
    case Kind::kBoardDone:
      opt_in_->OnBoardDone(guest, {message.mm.slot, message.mm.generation});
      return Verdict::kKeep;
    case Kind::kForAll:
      opt_in_->ForAll(guest, packet);
      return Verdict::kKeep;
    case Kind::kFreezeDone:
      snapshots_->OnFreezeDone(guest, message);
      return Verdict::kKeep;
    case Kind::kTakeSnapshot:
    case Kind::kViewFile:
    case Kind::kMapView:
    case Kind::kSettleView:
    case Kind::kForkCow:
    case Kind::kRemove:
      OnSnapshotQuestion(guest, packet);
      return Verdict::kKeep;
    case Kind::kAgent:
    case Kind::kUnmap:
    case Kind::kProtect:
    case Kind::kPunch:
    case Kind::kFlags:
    case Kind::kFill:
      return OnNote(guest, message);
    case Kind::kCreate:
      answer = Create(guest, message, &file);
      break;
    case Kind::kMap:
      answer = Map(guest, message);
      break;
    case Kind::kAdopt:
      answer = Adopt(guest, message, packet.fds[1]);
      break;
    case Kind::kMove:
      answer = Move(guest, message);
      break;
    case Kind::kAccess:
      answer = Access(guest, message);
      break;
    case Kind::kIsShared:
      answer = IsShared(guest, message);
      break;
    case Kind::kOpenName:
      answer = OpenName(guest, message, &file);
      break;
    case Kind::kUnlinkName:
      answer = UnlinkName(guest, message);
      break;
    default:
      return Verdict::kEndGuest;
  }
  // A name that is not there is an answer like others.
  if (answer.status != Status::kOk && answer.status != Status::kFailed) ++ledger_.refused;
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer, file.get());
  return Verdict::kKeep;
}

void Session::OnSnapshotQuestion(Guest& guest, Packet& packet) {
  switch (packet.message.kind) {
    case Kind::kTakeSnapshot:
      if (!HasRoomForFile(guest.uid)) {
        return Refuse(packet, ENOSPC, "this user has too many regions");
      }
      return snapshots_->Take(guest, packet);
    case Kind::kViewFile:
      return snapshots_->ViewFile(packet);
    case Kind::kMapView:
      if (!HasRoomForRegion(guest)) {
        return Refuse(packet, ENOSPC, "this process has too many regions");
      }
      if (FitsInGuest(GuestAddr(packet.message.va), PagesFloor(packet.message.length))) {
        Release(guest, GuestAddr(packet.message.va), PagesFloor(packet.message.length));
      }
      return snapshots_->MapView(guest, packet);
    case Kind::kSettleView:
      return snapshots_->Settle(guest, packet);
    case Kind::kForkCow:
      return snapshots_->ForkCow(guest, packet);
    default:
      return snapshots_->Remove(guest, packet);
  }
}

Session::Verdict Session::OnNote(Guest& guest, const Message& note) {
  // It is done, so it cannot be refused; and to be wrong about the guest is no way either.
  if (!HasRoomForRegion(guest)) return Verdict::kEndGuest;
  switch (note.kind) {
    case Kind::kAgent:
      SetAgent(guest, note);
      break;
    case Kind::kUnmap:
      Unmap(guest, note);
      break;
    case Kind::kProtect:
      Protect(guest, note);
      break;
    case Kind::kPunch:
      Punch(guest, note);
      break;
    case Kind::kFill:
      Fill(guest, note);
      break;
    default:
      SetFlags(guest, note);
      break;
  }
  return Verdict::kKeep;
}

bool Session::HasRoomForFile(uid_t uid) const {
  uint32_t files = 0;
  tables_->ForEachMm([&](const MmInfo& mm) { files += mm.owner_uid == uid ? 1 : 0; });
  return files < kFilesPerUser;
}

bool Session::HasRoomForRegion(const Guest& guest) const {
  const std::optional<GuestInfo> info = tables_->reader().Info(guest.id);
  return info.has_value() && info->regions < kRegionsPerGuest;
}

Message Session::Create(Guest& guest, const Message& ask, UniqueFd* file) {
  const bool sane = ask.length > 0 && IsPageAligned(ask.length) && IsPageAligned(ask.offset) &&
                    ask.offset < kBlockSize;
  if (!sane) return Answer(Status::kRefused, "a bad length");
  // Plain Linux refuses what can never be filled; the guest makes the plain call and gets that
  // answer.
  if (ask.length > terms_.max_file_bytes)
    return Answer(Status::kNoFrames, "the region is larger than memory");
  DropCreated(guest);
  if (!HasRoomForFile(guest.uid)) return Answer(Status::kFull, "this user has too many regions");
  absl::StatusOr<std::shared_ptr<const Backing>> backing = frames_.Make(ask.offset + ask.length);
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

Message Session::Map(Guest& guest, const Message& ask) {
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
Message Session::MapAgain(Guest& guest, const Message& ask, MmId mm) {
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

Message Session::Place(Guest& guest, const RegionSpec& spec) {
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

void Session::Release(Guest& guest, GuestAddr va, PageCount length) {
  const std::vector<Region> gone = PartsIn(guest, va.value(), BytesOf(length));
  ReleasedMms released;
  tables_->UnmapRange(guest.id, va, length, &released);
  files_->Release(released);
  opt_in_->Leave(guest, gone);
  snapshots_->OnUnmapped(guest, gone);
}

// What the guest's faults there are then sent to us. A refusal (another userfaultfd has the range)
// leaves it to the kernel.
void Session::Register(Guest& guest, MmId mm, GuestAddr va, PageCount length) const {
  const bool registered =
      guest.uffd.fd.ok() && UffdRegister(guest.uffd.fd.get(), va.value(), BytesOf(length),
                                         snapshots_->ModesFor(mm)) == UffdResult::kDone;
  // What it writes there nobody sees.
  if (!registered && snapshots_->IsFrozen(mm)) snapshots_->Abandon(guest, mm);
}

// Whether what the guest has just mapped of the file is frozen; it is told.
uint64_t Session::IsFrozen(Guest& guest, MmId mm) const {
  return snapshots_->OnMapped(guest, mm) == Snapshots::Frozen::kYes ? 1 : 0;
}

bool Session::HandIn(const Message& ask, int file, HandedIn* handed) {
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

TableStatus Session::MmOf(const Guest& guest, const HandedIn& handed, MmId* mm) {
  if (const std::optional<MmId> known = files_->FindAdopted(handed.key); known.has_value()) {
    *mm = *known;
    // It may have grown since it was made known. If the tables cannot follow, the new part stays
    // small.
    if (files_->Find(*mm) == nullptr) tables_->GrowMm(*mm, PagesCeil(handed.bytes));
    return tables_->PinMm(*mm);
  }
  if (!HasRoomForFile(guest.uid)) return TableStatus::kNoSpace;
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

Message Session::Adopt(Guest& guest, const Message& ask, const UniqueFd& file) {
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

Message Session::Move(Guest& guest, const Message& ask) {
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

Message Session::Access(const Guest& guest, const Message& ask) const {
  Message answer = Answer(Status::kOk);
  opt_in_->SayAccess(guest, GuestAddr(ask.va), &answer);
  return answer;
}

Message Session::IsShared(const Guest& guest, const Message& ask) const {
  const std::optional<Region> region = tables_->FindRegion(guest.id, GuestAddr(ask.va));
  if (!region.has_value()) return Answer(Status::kRefused, "nothing of ours is mapped there");
  // Whether the tables may be shared, not whether there are some already: a table that nobody has
  // touched yet would else count as one's own.
  const Segment& segment = tables_->segment();
  const int level = MmTraits::Load(*segment.Find(region->mm)).top_level;
  const uint64_t span = segment.geometry().IndexAt(level, region->PageAt(GuestAddr(ask.va)));
  Message answer = Answer(Status::kOk);
  answer.value[0] = SharableSpans(segment, guest.id, region->mm).test(span) ? 1 : 0;
  return answer;
}

Message Session::OpenName(const Guest& guest, const Message& ask, UniqueFd* file) {
  const Names::Who::Room room =
      HasRoomForFile(guest.uid) ? Names::Who::Room::kFree : Names::Who::Room::kFull;
  Names::Opened opened;
  const int error = names_.Open({guest.uid, guest.gid, room},
                                {ask.text, ask.length, ask.value[0], ask.value[1]}, &opened);
  Message answer = Answer(error == 0 ? Status::kOk : Status::kFailed);
  answer.length = opened.length;
  answer.value[0] = opened.unit;
  answer.value[1] = static_cast<uint64_t>(error);
  *file = std::move(opened.file);
  return answer;
}

Message Session::UnlinkName(const Guest& guest, const Message& ask) {
  const int error = names_.Unlink({guest.uid, guest.gid}, ask.text);
  Message answer = Answer(error == 0 ? Status::kOk : Status::kFailed);
  answer.value[1] = static_cast<uint64_t>(error);
  return answer;
}

void Session::SetAgent(Guest& guest, const Message& note) {
  guest.has_agent = note.value[0] == 1;
  if (guest.has_agent) {
    snapshots_->OnAttach(guest);
    return opt_in_->OnAgent(guest);
  }
  // Not through Orders: it comes behind an order that is open, and nothing answers it.
  Message quit = NewPacket(Kind::kOrder);
  quit.op = protocol::OrderOp::kQuit;
  SendPacket(guest.channel.fd.get(), quit);
}

void Session::Unmap(Guest& guest, const Message& note) {
  Release(guest, GuestAddr(note.va), PagesFloor(note.length));
}

std::vector<Region> Session::PartsIn(const Guest& guest, uint64_t va, uint64_t length) const {
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

void Session::Protect(Guest& guest, const Message& note) {
  const AccessSet access = AccessFromProt(note.prot);
  for (const Region& part : PartsIn(guest, note.va, note.length)) {
    // Of opt-in memory it is not one guest's to say what has been done: that takes a kForAll, which
    // is enforced in all.
    if (!part.IsOptIn()) tables_->ProtectRange(guest.id, part.va, part.length, access);
  }
}

void Session::SetFlags(Guest& guest, const Message& note) {
  // Whether a region is tracked is ours to say; and of opt-in memory a hint is everybody's.
  for (const Region& part : PartsIn(guest, note.va, note.length)) {
    const uint64_t allowed =
        part.IsOptIn() ? kRegionDontFork : kRegionDontFork | kRegionHintHuge | kRegionHintSmall;
    tables_->FlagRange(guest.id, part.va, part.length,
                       static_cast<uint32_t>(note.value[0] & allowed),
                       static_cast<uint32_t>(note.value[1] & allowed));
  }
}

void Session::Punch(Guest& guest, const Message& note) {
  for (const Region& part : PartsIn(guest, note.va, note.length)) {
    // Done by itself, though it is frozen: nobody has copied what was there.
    if (snapshots_->IsFrozen(part.mm)) snapshots_->LoseFor(part.mm, "frozen memory was removed");
    tables_->PunchRange(part.mm, part.file_page, part.length);
  }
}

void Session::Fill(Guest& guest, const Message& note) {
  for (const Region& part : PartsIn(guest, note.va, note.length)) {
    if (part.IsOptIn()) filler_->Add(guest.id, part, part.file_page, part.length);
  }
}

Session::Verdict Session::Fork(Guest& guest, Packet& packet) {
  const bool announced = packet.fds[0].ok();
  if (announced && !IsChannel(packet.fds[0].get())) return Verdict::kEndGuest;
  GuestId child;
  snapshots_->BeforeFork(guest);
  // A full directory: the channel closes, and the child goes on without us.
  if (!announced || host_->RoomForGuest(guest.uid) == SessionHost::Room::kFull ||
      tables_->ForkGuest(guest.id, &child) != TableStatus::kOk) {
    snapshots_->AfterFork(guest, nullptr);
    return Verdict::kKeep;
  }
  snapshots_->AfterFork(guest, &host_->AddChild(guest, child, std::move(packet.fds[0])));
  opt_in_->OnFork(guest, child);
  return Verdict::kKeep;
}

Session::Verdict Session::Attach(Guest& guest, Packet& packet) {
  if (guest.pid != 0 || packet.sender_pid <= 0) return Verdict::kEndGuest;
  UniqueFd uffd = std::move(packet.fds[0]);
  if (uffd.ok() && !IsUserfaultfd(uffd.get())) return Verdict::kEndGuest;
  guest.has_agent = packet.message.value[0] == 1;
  host_->WatchGuest(guest, std::move(uffd), packet.sender_pid);
  snapshots_->OnAttach(guest);
  if (packet.message.value[1] == 1) snapshots_->OnTrackedChild(guest);
  if (guest.has_agent) opt_in_->OnAgent(guest);
  return Verdict::kKeep;
}

int Session::FindName(const Peer& peer, const std::string& name, MmId* mm) const {
  return names_.Find({peer.uid, peer.gid, Names::Who::Room::kFree}, name, mm);
}

void Session::DropCreated(Guest& guest) {
  if (!guest.created.has_value()) return;
  ReleasedMms released;
  tables_->UnpinMm(*guest.created, &released);
  guest.created.reset();
  files_->Release(released);
}

void Session::Forget(Guest& guest) {
  DropCreated(guest);
  std::vector<Region> gone;
  tables_->ForEachRegion(guest.id, [&](const Region& region) { gone.push_back(region); });
  ReleasedMms released;
  tables_->RemoveGuest(guest.id, &released);
  files_->Release(released);
  opt_in_->Forget(guest, gone);
}

}  // namespace hostmm
