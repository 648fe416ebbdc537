#include "runtime/session.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <utility>

#include "runtime/answer.h"
#include "runtime/file_quota.h"
#include "runtime/opt_in_range.h"
#include "runtime/packet.h"
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
      answer = mappings_.Create(guest, message, &file);
      break;
    case Kind::kMap:
      answer = mappings_.Map(guest, message);
      break;
    case Kind::kAdopt:
      answer = mappings_.Adopt(guest, message, packet.fds[1]);
      break;
    case Kind::kMove:
      answer = mappings_.Move(guest, message);
      break;
    case Kind::kMayPunch:
      answer = MayPunch(guest, message);
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
  if (answer.status != Status::kOk && answer.status != Status::kFailed) ++refused_;
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer, file.get());
  return Verdict::kKeep;
}

void Session::OnSnapshotQuestion(Guest& guest, Packet& packet) {
  switch (packet.message.kind) {
    case Kind::kTakeSnapshot:
      if (!HasRoomForFile(*tables_, guest.uid)) {
        return Refuse(packet, ENOSPC, "this user has too many regions");
      }
      return snapshots_->Take(guest, packet);
    case Kind::kViewFile:
      return snapshots_->ViewFile(packet);
    case Kind::kMapView:
      if (!mappings_.HasRoomForRegion(guest)) {
        return Refuse(packet, ENOSPC, "this process has too many regions");
      }
      if (FitsInGuest(GuestAddr(packet.message.va), PagesFloor(packet.message.length))) {
        mappings_.Release(guest, GuestAddr(packet.message.va), PagesFloor(packet.message.length));
      }
      return snapshots_->MapView(guest, packet);
    case Kind::kSettleView:
      // It splits regions.
      if (!mappings_.HasRoomForRegion(guest)) {
        return Refuse(packet, ENOSPC, "this process has too many regions");
      }
      return snapshots_->Settle(guest, packet);
    case Kind::kForkCow:
      return snapshots_->ForkCow(guest, packet);
    default:
      return snapshots_->Remove(guest, packet);
  }
}

Session::Verdict Session::OnNote(Guest& guest, const Message& note) {
  // It is done, so it cannot be refused; and to be wrong about the guest is no way either.
  if (!mappings_.HasRoomForRegion(guest)) return Verdict::kEndGuest;
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
      HasRoomForFile(*tables_, guest.uid) ? Names::Who::Room::kFree : Names::Who::Room::kFull;
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
  mappings_.Release(guest, GuestAddr(note.va), PagesFloor(note.length));
}

void Session::Protect(Guest& guest, const Message& note) {
  const AccessSet access = AccessFromProt(note.prot);
  for (const Region& part : mappings_.PartsIn(guest, note.va, note.length)) {
    // Of opt-in memory it is not one guest's to say what has been done: that takes a kForAll, which
    // is enforced in all.
    if (!part.IsOptIn()) tables_->ProtectRange(guest.id, part.va, part.length, access);
  }
}

void Session::SetFlags(Guest& guest, const Message& note) {
  // Whether a region is tracked is ours to say; and of opt-in memory a hint is everybody's.
  for (const Region& part : mappings_.PartsIn(guest, note.va, note.length)) {
    const uint64_t allowed =
        part.IsOptIn() ? kRegionDontFork : kRegionDontFork | kRegionHintHuge | kRegionHintSmall;
    tables_->FlagRange(guest.id, part.va, part.length,
                       static_cast<uint32_t>(note.value[0] & allowed),
                       static_cast<uint32_t>(note.value[1] & allowed));
  }
}

Message Session::MayPunch(Guest& guest, const Message& ask) const {
  for (const Region& part : mappings_.PartsIn(guest, ask.va, ask.length)) {
    if (!snapshots_->IsFrozen(part.mm)) continue;
    Message answer = Answer(Status::kFailed);
    answer.value[1] = EBUSY;
    return answer;
  }
  const GuestAddr begin(ask.va);
  if (FitsInGuest(begin, PagesFloor(ask.length))) {
    guest.punches = {begin, begin + PagesFloor(ask.length)};
  }
  return Answer(Status::kOk);
}

void Session::Punch(Guest& guest, const Message& note) {
  // Begun before a freeze that is open now, if at all: that waits for it.
  const bool allowed = guest.punches.has_value();
  guest.punches.reset();
  for (const Region& part : mappings_.PartsIn(guest, note.va, note.length)) {
    // Done by itself, though it is frozen: nobody has copied what was there.
    if (!allowed && snapshots_->IsFrozen(part.mm)) {
      snapshots_->LoseFor(part.mm, "frozen memory was removed");
    }
    tables_->PunchRange(part.mm, part.file_page, part.length);
  }
}

void Session::Fill(Guest& guest, const Message& note) {
  for (const Region& part : mappings_.PartsIn(guest, note.va, note.length)) {
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

void Session::Forget(Guest& guest) { mappings_.Forget(guest); }

}  // namespace hostmm
