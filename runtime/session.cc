#include "runtime/session.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/region_flags.h"

namespace hostmm {
namespace {

using protocol::Kind;
using protocol::Message;
using protocol::Status;

static_assert(kRegionDontFork == kDontFork && kRegionHintHuge == kHintHuge &&
              kRegionHintSmall == kHintSmall);

// What one user, or one guest, may take of the tables that all share (vmm/segment.h): three
// quarters of the files, a sixteenth of the regions. Arbitrary; far above what honest programs
// have, and enough is left for the others.
constexpr uint32_t kFilesPerUser = SegmentConfig{}.max_mms / 4 * 3;
constexpr uint32_t kRegionsPerGuest = SegmentConfig{}.max_regions / 16;

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

AccessSet AccessFromProt(uint32_t prot) {
  AccessSet access;
  if ((prot & PROT_READ) != 0) access = access | Access::kRead;
  if ((prot & PROT_WRITE) != 0) access = access | Access::kWrite;
  if ((prot & PROT_EXEC) != 0) access = access | Access::kExec;
  return access;
}

bool IsPageAligned(uint64_t bytes) { return bytes % kPageSize == 0; }

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
    case Kind::kAgent:
    case Kind::kUnmap:
    case Kind::kProtect:
    case Kind::kPunch:
    case Kind::kFlags:
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
    default:
      return Verdict::kEndGuest;
  }
  if (answer.status != Status::kOk) ++ledger_.refused;
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer, file.get());
  return Verdict::kKeep;
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

absl::StatusOr<std::shared_ptr<const Backing>> Session::NewBacking(uint64_t bytes) {
  const FrameStore* store = store_;
  const auto whole = [&store](uint64_t length) {
    const uint64_t unit = store->kind() == FrameKind::kHugetlb ? kBlockSize : kPageSize;
    return (length + unit - 1) / unit * unit;
  };
  absl::StatusOr<UniqueFd> file = store->NewFile(whole(bytes));
  if (!file.ok() && second_ != nullptr) {
    ledger_.weaker_frames = std::string(file.status().message());
    store = second_;
    file = store->NewFile(whole(bytes));
  }
  if (!file.ok()) return file.status();
  absl::StatusOr<Backing> backing =
      Backing::Create(store->kind(), *std::move(file), PageCount(whole(bytes) / kPageSize));
  if (!backing.ok()) return backing.status();
  return std::make_shared<const Backing>(*std::move(backing));
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
  absl::StatusOr<std::shared_ptr<const Backing>> backing = NewBacking(ask.offset + ask.length);
  if (!backing.ok()) {
    return Answer(Status::kNoFrames, std::string(backing.status().message()).c_str());
  }
  const bool hugetlb = (*backing)->kind() == FrameKind::kHugetlb;
  // A region on hugetlb that begins inside a frame cannot be mapped there.
  if (hugetlb && ask.offset != 0)
    return Answer(Status::kRefused, "hugetlb frames want an address of whole 2 MiB");
  const uint64_t bytes = ask.offset + ask.length;
  const uint64_t unit = hugetlb ? kBlockSize : kPageSize;
  HostTables::MmSpec spec;
  spec.length = PageCount((bytes + unit - 1) / unit * (unit / kPageSize));
  spec.frames = (*backing)->kind();
  spec.share = ShareMode::kUnshare;
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
    return Answer(Status::kRefused, "no such file of yours");
  }
  Message answer = Answer(Status::kOk);
  if (ask.length != 0 && !HasRoomForRegion(guest)) {
    answer = Answer(Status::kFull, "this process has too many regions");
  } else if (ask.length != 0) {
    const GuestAddr va(ask.va);
    const PageCount length = PagesFloor(ask.length);
    // The guest has mapped there, so whatever stood there is gone.
    ReleasedMms released;
    tables_->UnmapRange(guest.id, va, length, &released);
    files_->Release(released);
    answer = Answer(tables_->MapRegion(guest.id, {va, length, mm, FilePage(ask.offset / kPageSize),
                                                  AccessFromProt(ask.prot), terms_.region_flags}));
    if (answer.status == Status::kOk) {
      Register(guest, va, length);
      ++ledger_.regions;
      ledger_.region_bytes += ask.length;
    }
  }
  DropCreated(guest);
  return answer;
}

// What the guest's faults there are then sent to us. A refusal (another userfaultfd has the range)
// leaves it to the kernel.
void Session::Register(Guest& guest, GuestAddr va, PageCount length) const {
  if (guest.uffd.fd.ok()) {
    UffdRegister(guest.uffd.fd.get(), va.value(), BytesOf(length), terms_.register_modes);
  }
}

Message Session::Adopt(Guest& guest, const Message& ask, const UniqueFd& file) {
  AdoptedKey key;
  uint64_t bytes = ask.offset + ask.length;
  if (ask.value[0] == static_cast<uint64_t>(protocol::AdoptSource::kFile)) {
    struct stat info;
    if (fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
      return Answer(Status::kRefused, "not a file");
    }
    key = {info.st_dev, info.st_ino};
    bytes = std::max(bytes, static_cast<uint64_t>(info.st_size));
  } else {
    key = {0, ask.value[1]};
  }
  if (!IsPageAligned(ask.offset) || bytes < ask.length)
    return Answer(Status::kRefused, "a bad offset");
  std::optional<MmId> mm = files_->FindAdopted(key);
  const bool known = mm.has_value();
  if (!HasRoomForRegion(guest) || (!known && !HasRoomForFile(guest.uid))) {
    return Answer(Status::kFull, "this user or process has too many regions");
  }
  if (!known) {
    HostTables::MmSpec spec;
    spec.length = PagesCeil(bytes);
    spec.frames = FrameKind::kAdopted;
    spec.owner_uid = guest.uid;
    strncpy(spec.name, guest.program.c_str(), sizeof(spec.name) - 1);
    MmId made;
    const TableStatus status = tables_->CreateMm(spec, &made);
    if (status != TableStatus::kOk) return Answer(status);
    mm = made;
  }
  tables_->PinMm(*mm);
  // It may have grown since it was made known. If the tables cannot follow, the new part stays
  // small.
  if (known) tables_->GrowMm(*mm, PagesCeil(bytes));
  ReleasedMms released;
  const GuestAddr va(ask.va);
  const PageCount length = PagesFloor(ask.length);
  tables_->UnmapRange(guest.id, va, length, &released);
  Message answer = Answer(tables_->MapRegion(
      guest.id, {va, length, *mm, FilePage(ask.offset / kPageSize), AccessFromProt(ask.prot), 0}));
  if (answer.status == Status::kOk) {
    answer.mm = {mm->slot, mm->generation};
    ++ledger_.adopted;
    ledger_.region_bytes += ask.length;
    if (!known) {
      files_->AddAdopted(*mm, key);
      adopter_->Add(*mm);
    }
  }
  tables_->UnpinMm(*mm, &released);
  files_->Release(released);
  return answer;
}

Message Session::Move(Guest& guest, const Message& ask) {
  if (!HasRoomForRegion(guest)) return Answer(Status::kFull, "this process has too many regions");
  ReleasedMms released;
  const GuestAddr to(ask.value[0]);
  const PageCount new_length = PagesFloor(ask.value[1]);
  const TableStatus moved = tables_->MoveRange(guest.id, GuestAddr(ask.va), PagesFloor(ask.length),
                                               to, new_length, &released);
  files_->Release(released);
  if (moved != TableStatus::kOk) return Answer(moved);
  // The kernel drops a registration when a mapping moves.
  const std::optional<Region> region = tables_->FindRegion(guest.id, to);
  if (region.has_value() && tables_->Info(region->mm).frames != FrameKind::kAdopted) {
    Register(guest, to, new_length);
  }
  return Answer(Status::kOk);
}

void Session::SetAgent(Guest& guest, const Message& note) {
  guest.has_agent = note.value[0] == 1;
  if (guest.has_agent) return;
  // Not through Orders: it comes behind an order that is open, and nothing answers it.
  Message quit = NewPacket(Kind::kOrder);
  quit.op = protocol::OrderOp::kQuit;
  SendPacket(guest.channel.fd.get(), quit);
}

void Session::Unmap(Guest& guest, const Message& note) {
  ReleasedMms released;
  tables_->UnmapRange(guest.id, GuestAddr(note.va), PagesFloor(note.length), &released);
  files_->Release(released);
}

void Session::Protect(Guest& guest, const Message& note) {
  tables_->ProtectRange(guest.id, GuestAddr(note.va), PagesFloor(note.length),
                        AccessFromProt(note.prot));
}

void Session::SetFlags(Guest& guest, const Message& note) {
  // Whether a region is tracked is ours to say.
  const uint64_t allowed = kRegionDontFork | kRegionHintHuge | kRegionHintSmall;
  tables_->FlagRange(guest.id, GuestAddr(note.va), PagesFloor(note.length),
                     static_cast<uint32_t>(note.value[0] & allowed),
                     static_cast<uint32_t>(note.value[1] & allowed));
}

void Session::Punch(Guest& guest, const Message& note) {
  if (!FitsInGuest(GuestAddr(note.va), PagesFloor(note.length))) return;
  const uint64_t end = note.va + note.length;
  std::vector<Region> hit;
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    if (region.va.value() < end && region.end().value() > note.va) hit.push_back(region);
  });
  for (const Region& region : hit) {
    const GuestAddr from(std::max(region.va.value(), note.va));
    const GuestAddr to(std::min(region.end().value(), end));
    tables_->PunchRange(region.mm, region.PageAt(from), PagesBetween(from, to));
  }
}

Session::Verdict Session::Fork(Guest& guest, Packet& packet) {
  if (!IsChannel(packet.fds[0].get())) return Verdict::kEndGuest;
  GuestId child;
  // A full directory: the channel closes, and the child goes on without us.
  if (host_->RoomForGuest(guest.uid) == SessionHost::Room::kFull) return Verdict::kKeep;
  if (tables_->ForkGuest(guest.id, &child) != TableStatus::kOk) return Verdict::kKeep;
  host_->AddChild(guest, child, std::move(packet.fds[0]));
  return Verdict::kKeep;
}

Session::Verdict Session::Attach(Guest& guest, Packet& packet) {
  if (guest.pid != 0 || packet.sender_pid <= 0) return Verdict::kEndGuest;
  UniqueFd uffd = std::move(packet.fds[0]);
  if (uffd.ok() && !IsUserfaultfd(uffd.get())) return Verdict::kEndGuest;
  guest.has_agent = packet.message.value[0] == 1;
  host_->WatchGuest(guest, std::move(uffd), packet.sender_pid);
  return Verdict::kKeep;
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
  ReleasedMms released;
  tables_->RemoveGuest(guest.id, &released);
  files_->Release(released);
}

}  // namespace hostmm
