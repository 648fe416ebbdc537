#include "runtime/opt_in.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

namespace hostmm {
namespace {

using protocol::BoardOp;
using protocol::Message;
using protocol::Status;

// kForAll of one guest that wait or are open: one for each of its threads that is in mprotect.
// Arbitrary; bounds the descriptors that a guest can have us hold.
constexpr uint32_t kMaxOpenForAll = 128;

void Refuse(const Packet& packet, Status status, int error) {
  Message answer = NewPacket(protocol::Kind::kReply);
  answer.status = status;
  answer.value[1] = static_cast<uint64_t>(error);
  if (packet.fds[0].ok()) SendPacket(packet.fds[0].get(), answer);
}

constexpr uint32_t kAllProt = PROT_READ | PROT_WRITE | PROT_EXEC;

}  // namespace

OptIn::Entered OptIn::Enter(Guest& guest, GuestAddr va, PageCount length) {
  const std::optional<OptInRange> range = FindOptInRange(*tables_, guest.id, va, length);
  if (!range.has_value()) return Entered::kDone;
  if (boards_.Watch(guest, range->mm) == BoardSet::WatchResult::kNoBoard) return Entered::kNoRoom;
  // Where nobody else maps it any more the region has brought its own protection; but the agent
  // will find the order that is open. Let it count as given after the mapping was made.
  const std::optional<SharedOperations::OpenProtect> open = operations_.FindOpenProtect(range->mm);
  if (!open.has_value()) return Entered::kDone;
  const FilePage begin = std::max(range->first, open->pages.first);
  const FilePage end = std::min(range->first + range->count, open->pages.end());
  if (begin >= end) return Entered::kDone;
  const TableStatus status = tables_->ProtectRange(guest.id, va + (begin - range->first),
                                                   end - begin, AccessFromProt(open->prot));
  return status == TableStatus::kOk ? Entered::kDone : Entered::kNoRoom;
}

void OptIn::Leave(Guest& guest, const std::vector<Region>& gone) {
  CountAgain(guest.id, gone);
  for (size_t i = guest.boards.size(); i-- > 0;) {
    const MmId mm = guest.boards[i].mm;
    if (LookForOptIn(*tables_, guest.id, mm) == MapsOptIn::kYes) continue;
    boards_.Unwatch(guest, mm);
    operations_.OnUnwatched(guest.id, mm);
  }
}

int OptIn::WhyNot(const Message& ask, const OptInRange& range) {
  switch (static_cast<BoardOp>(ask.value[1])) {
    case BoardOp::kProtect:
      if ((ask.prot & ~kAllProt) != 0) return EINVAL;
      return (ask.prot & PROT_WRITE) != 0 && (range.flags & kNeverWrite) != 0 ? EACCES : 0;
    case BoardOp::kAdvise:
      return ask.value[0] == MADV_HUGEPAGE || ask.value[0] == MADV_NOHUGEPAGE ? 0 : EINVAL;
    case BoardOp::kZap:
    case BoardOp::kVote:
      return 0;
    case BoardOp::kNone:
      break;
  }
  return EINVAL;
}

void OptIn::ForAll(Guest& guest, Packet& packet) {
  const Message& ask = packet.message;
  if (guest.open_for_all >= kMaxOpenForAll) return Refuse(packet, Status::kFull, EAGAIN);
  const std::optional<OptInRange> range =
      FindOptInRange(*tables_, guest.id, GuestAddr(ask.va), PagesFloor(ask.length));
  // Whole pages, of hugetlb frames 2 MiB: an mprotect of less would fail in the agents.
  const uint64_t unit = range.has_value() && tables_->Info(range->mm).frames == FrameKind::kHugetlb
                            ? kBlockSize
                            : kPageSize;
  if (!range.has_value()) return Refuse(packet, Status::kRefused, ENOMEM);
  if (ask.va % unit != 0 || ask.length % unit != 0) {
    return Refuse(packet, Status::kRefused, EINVAL);
  }
  if (const int error = WhyNot(ask, *range); error != 0) {
    return Refuse(packet, Status::kFailed, error);
  }
  SharedOperations::Request request;
  request.op = static_cast<BoardOp>(ask.value[1]);
  request.mm = range->mm;
  request.pages = {range->first, range->count};
  request.prot = ask.prot;
  request.advice = ask.value[0];
  request.caller = guest.id;
  request.va = GuestAddr(ask.va);
  request.reply = std::move(packet.fds[0]);
  if (request.op == BoardOp::kVote) return Vote(std::move(request));
  operations_.Submit(std::move(request));
}

void OptIn::Vote(SharedOperations::Request request) {
  ++votes_counted_;
  const PageRange range{request.pages.first, request.pages.end()};
  votes_.Vote(request.mm, request.caller, range);
  const std::vector<SharedOperations::Pages> zaps = TakeUnanimous(request.mm, range);
  if (zaps.empty()) {
    const Message answer = NewPacket(protocol::Kind::kReply);
    if (request.reply.ok()) SendPacket(request.reply.get(), answer);
    return;
  }
  // The asker waits for the last one, and so for all.
  for (size_t i = 0; i + 1 < zaps.size(); ++i) Zap(request.mm, zaps[i]);
  request.op = BoardOp::kZap;
  request.va = request.va + (zaps.back().first - request.pages.first);
  request.pages = zaps.back();
  operations_.Submit(std::move(request));
}

void OptIn::Zap(MmId mm, SharedOperations::Pages pages) {
  SharedOperations::Request request;
  request.op = BoardOp::kZap;
  request.mm = mm;
  request.pages = pages;
  operations_.Submit(std::move(request));
}

std::vector<SharedOperations::Pages> OptIn::TakeUnanimous(MmId mm, PageRange range) {
  std::vector<AdviceVotes::Mapper> mappers;
  tables_->ForEachSharer(mm, range.first, range.end - range.first,
                         [&](GuestId guest, const Region& region) {
                           mappers.push_back({guest, {{region.file_page, region.file_end()}}});
                         });
  std::vector<SharedOperations::Pages> taken;
  for (const PageRange& part : votes_.Unanimous(mm, range, mappers)) {
    votes_.Clear(mm, part);
    taken.push_back({part.first, part.end - part.first});
    tables_->PunchRange(mm, taken.back().first, taken.back().count);
  }
  return taken;
}

void OptIn::CountAgain(GuestId leaver, const std::vector<Region>& gone) {
  if (votes_.empty()) return;
  for (const Region& region : gone) {
    if (!region.IsOptIn()) continue;
    const PageRange range{region.file_page, region.file_end()};
    votes_.Drop(region.mm, leaver, range);
    for (const SharedOperations::Pages& pages : TakeUnanimous(region.mm, range)) {
      Zap(region.mm, pages);
    }
  }
}

void OptIn::SayAccess(const Guest& guest, GuestAddr va, Message* answer) const {
  const AccessSpan span = AccessSpanAt(*tables_, guest.id, va);
  answer->prot = ProtFromAccess(span.access);
  answer->length = BytesOf(span.length);
}

void OptIn::OnAgent(Guest& guest) { boards_.TellAgain(guest); }

void OptIn::OnFork(const Guest& parent, GuestId child) {
  Guest* made = guests_->Find(child);
  if (made == nullptr) return;
  for (const WatchedBoard& watched : parent.boards) {
    // From now on the child counts; its agent is told when there is one.
    if (LookForOptIn(*tables_, child, watched.mm) == MapsOptIn::kYes) {
      boards_.Watch(*made, watched.mm);
    }
  }
  operations_.OnFork(parent, child);
}

void OptIn::Forget(Guest& guest, const std::vector<Region>& gone) {
  votes_.DropGuest(guest.id);
  CountAgain(guest.id, gone);
  boards_.Drop(guest);
  operations_.OnGuestGone(guest.id);
}

void OptIn::Tick() {
  boards_.Tick();
  operations_.Tick();
}

}  // namespace hostmm
