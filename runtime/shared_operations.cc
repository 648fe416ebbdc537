#include "runtime/shared_operations.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "runtime/opt_in_range.h"
#include "runtime/packet.h"

namespace hostmm {
namespace {

using protocol::BoardOp;

// How long an operation waits for its members: 8 s, less than the 60 s that the caller waits, more
// than an agent needs on any machine that still works.
constexpr uint32_t kPatienceTicks = 32;
// And if all that it waits for have been late before: 1 s. A process that is stopped would
// otherwise cost everybody 8 s each time.
constexpr uint32_t kLatePatienceTicks = 4;
// After so many ticks the members that are missing are told once more: a packet may have found
// their channel full.
constexpr uint32_t kTicksPerReminder = 4;

// Beyond so many ranges of one late guest, one that spans them all. Arbitrary.
constexpr size_t kMaxMissed = 8;

// Regions that are left to a guest for its own splits when others may split no more. Arbitrary.
constexpr uint32_t kOwnRegions = 256;

void AddMissed(std::vector<SharedOperations::Pages>* missed, SharedOperations::Pages pages) {
  missed->push_back(pages);
  if (missed->size() <= kMaxMissed) return;
  FilePage begin = pages.first;
  FilePage end = pages.end();
  for (const SharedOperations::Pages& part : *missed) {
    begin = std::min(begin, part.first);
    end = std::max(end, part.end());
  }
  *missed = {{begin, end - begin}};
}

// An errno of a guest's, or what stands for one that makes no sense.
int SaneErrno(int error) {
  constexpr int kMaxErrno = 4095;
  return error > 0 && error <= kMaxErrno ? error : EIO;
}

board::Order OrderOf(const SharedOperations::Request& request) {
  board::Order order = {};
  order.first_page = request.pages.first.value();
  order.pages = request.pages.count.value();
  order.op = request.op;
  order.prot = request.prot;
  order.advice = request.advice;
  return order;
}

}  // namespace

template <class Fn>
void SharedOperations::ForEachQueue(Fn fn) {
  for (auto& [key, queue] : queues_) {
    fn(MmId{static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)}, &queue);
  }
}

void SharedOperations::Submit(Request request) {
  const MmId mm = request.mm;
  if (Guest* caller = guests_->Find(request.caller)) ++caller->open_for_all;
  queues_[KeyOf(mm)].requests.push_back(std::move(request));
  Advance(mm);
}

void SharedOperations::Advance(MmId mm) {
  const auto it = queues_.find(KeyOf(mm));
  if (it == queues_.end()) return;
  Queue& queue = it->second;
  while (!queue.open.has_value() && !queue.requests.empty()) {
    Request next = std::move(queue.requests.front());
    queue.requests.pop_front();
    if (next.repaired.valid()) {
      StartRepair(&queue, std::move(next));
    } else {
      Start(&queue, std::move(next));
    }
  }
  if (queue.empty()) queues_.erase(it);
}

void SharedOperations::Start(Queue* queue, Request request) {
  if (request.caller.valid()) {
    // It may have unmapped it while it waited, or be gone.
    const std::optional<OptInRange> range =
        FindOptInRange(*tables_, request.caller, request.va, request.pages.count);
    const bool same =
        range.has_value() && range->mm == request.mm && range->first == request.pages.first;
    if (!same) return Answer(request, ENOMEM);
  }
  std::vector<GuestId> members = MembersOf(request.mm, request.pages);
  if (const int error = Apply(request, members); error != 0) return Answer(request, error);
  // Without a board nobody has been told to watch one: only children that have not come yet.
  if (members.empty() || boards_->Find(request.mm) == nullptr) return Answer(request, 0);
  Announce(queue, std::move(request), std::move(members));
}

// One run of pages with one protection is an operation; the rest of the range comes next.
void SharedOperations::StartRepair(Queue* queue, Request request) {
  if (guests_->Find(request.repaired) == nullptr || boards_->Find(request.mm) == nullptr) return;
  std::optional<Region> first;
  tables_->ForEachRegion(request.repaired, [&](const Region& region) {
    const bool hit = region.IsOptIn() && region.mm == request.mm &&
                     region.file_page < request.pages.end() &&
                     region.file_end() > request.pages.first;
    if (hit && (!first.has_value() || region.file_page < first->file_page)) first = region;
  });
  if (!first.has_value()) return;
  const FilePage begin = std::max(first->file_page, request.pages.first);
  const FilePage end = std::min(first->file_end(), request.pages.end());
  if (end < request.pages.end()) {
    Request rest;
    rest.op = request.op;
    rest.mm = request.mm;
    rest.pages = {end, request.pages.end() - end};
    rest.repaired = request.repaired;
    queue->requests.push_front(std::move(rest));
  }
  request.pages = {begin, end - begin};
  request.prot = ProtFromAccess(first->access);
  const std::vector<GuestId> only = {request.repaired};
  Announce(queue, std::move(request), only);
}

int SharedOperations::Apply(const Request& request, const std::vector<GuestId>& members) {
  if (request.op == BoardOp::kZap) return 0;
  if (!HasRoomInAll(members)) return ENOMEM;
  TableStatus status;
  if (request.op == BoardOp::kProtect) {
    status = tables_->ProtectRange(request.caller, request.va, request.pages.count,
                                   AccessFromProt(request.prot));
  } else {
    const bool huge = request.advice == MADV_HUGEPAGE;
    status = tables_->FlagRange(request.caller, request.va, request.pages.count,
                                huge ? kHintHuge : kHintSmall, huge ? kHintSmall : kHintHuge);
  }
  return status == TableStatus::kOk ? 0 : ENOMEM;
}

// No operation of somebody else's takes a guest to the number of regions at which it is ended.
bool SharedOperations::HasRoomInAll(const std::vector<GuestId>& members) const {
  return std::ranges::all_of(members, [&](GuestId member) {
    const std::optional<GuestInfo> info = tables_->reader().Info(member);
    return !info.has_value() || info->regions + kOwnRegions < max_regions_;
  });
}

std::vector<GuestId> SharedOperations::MembersOf(MmId mm, Pages pages) const {
  std::vector<GuestId> members;
  tables_->ForEachSharer(mm, pages.first, pages.count,
                         [&](GuestId guest, const Region&) { members.push_back(guest); });
  std::ranges::sort(members);
  const auto repeated = std::ranges::unique(members);
  members.erase(repeated.begin(), repeated.end());
  return members;
}

void SharedOperations::Announce(Queue* queue, Request request, std::vector<GuestId> members) {
  Board* found = boards_->Find(request.mm);
  const MmId mm = request.mm;
  found->SetPending(static_cast<int32_t>(members.size()));
  const uint64_t sequence = found->Write(OrderOf(request));
  const bool all = members.size() == boards_->WatchersOf(mm);
  if (!all || found->Ring() != Board::RingResult::kRung) Look(mm, members);
  ++counts_.operations;
  counts_.woken += members.size();
  queue->open =
      Open{.request = std::move(request), .sequence = sequence, .waiting = std::move(members)};
}

void SharedOperations::Look(MmId mm, const std::vector<GuestId>& members) const {
  protocol::Message look = NewPacket(protocol::Kind::kOrder);
  look.op = protocol::OrderOp::kLook;
  look.mm = {mm.slot, mm.generation};
  for (const GuestId member : members) {
    const Guest* guest = guests_->Find(member);
    // Without an agent: the one that comes looks at its boards first.
    if (guest != nullptr && guest->has_agent) SendPacket(guest->channel.fd.get(), look);
  }
}

bool SharedOperations::IsDone(const Board& board, Open* open, GuestId member) const {
  const Guest* guest = guests_->Find(member);
  if (guest == nullptr) return true;
  const board::Slot slot = board.Read(member.slot);
  if (slot.sequence != open->sequence) return false;
  if (static_cast<int32_t>(guest->packets - slot.packets) < 0) return false;
  if (slot.error != 0 && open->error == 0) open->error = SaneErrno(slot.error);
  return true;
}

SharedOperations::Over SharedOperations::Check(Queue* queue) {
  if (!queue->open.has_value()) return Over::kNo;
  Open& open = *queue->open;
  const Board* found = boards_->Find(open.request.mm);
  if (found == nullptr) {
    open.waiting.clear();
  } else {
    std::erase_if(open.waiting, [&](GuestId member) { return IsDone(*found, &open, member); });
  }
  if (!open.waiting.empty()) return Over::kNo;
  End(queue, open.error);
  return Over::kYes;
}

void SharedOperations::End(Queue* queue, int error) {
  Answer(queue->open->request, error);
  if (Board* found = boards_->Find(queue->open->request.mm)) {
    found->Clear(queue->late.empty() ? Board::Note::kNo : Board::Note::kYes);
  }
  queue->open.reset();
}

void SharedOperations::OnPacket(const Guest& guest) {
  for (size_t i = 0; i < guest.boards.size(); ++i) {
    const MmId mm = guest.boards[i].mm;
    const auto it = queues_.find(KeyOf(mm));
    if (it == queues_.end() || !it->second.open.has_value()) continue;
    // Of this guest alone: it may have noted that it is done, and this was what it had said before.
    Open& open = *it->second.open;
    const Board* found = boards_->Find(mm);
    const auto member = std::ranges::find(open.waiting, guest.id);
    if (found == nullptr || member == open.waiting.end() || !IsDone(*found, &open, guest.id)) {
      continue;
    }
    open.waiting.erase(member);
    if (!open.waiting.empty()) continue;
    End(&it->second, open.error);
    Advance(mm);
  }
}

void SharedOperations::OnBoardDone(const Guest& guest, MmId mm) {
  const auto it = queues_.find(KeyOf(mm));
  const bool watches = std::ranges::any_of(
      guest.boards, [mm](const WatchedBoard& watched) { return watched.mm == mm; });
  if (it == queues_.end() || !watches) return;
  Check(&it->second);
  Repair(&it->second, mm);
  Advance(mm);
}

// A child has what its parent's mappings had at the fork: the protection from before the operation
// if the fork comes before what the parent noted on the board.
void SharedOperations::OnFork(const Guest& parent, GuestId child) {
  for (const WatchedBoard& watched : parent.boards) {
    const auto it = queues_.find(KeyOf(watched.mm));
    Board* found = boards_->Find(watched.mm);
    if (it == queues_.end() || !it->second.open.has_value() || found == nullptr) continue;
    Open& open = *it->second.open;
    if (std::ranges::find(open.waiting, parent.id) == open.waiting.end()) continue;
    const board::Slot slot = found->Read(parent.id.slot);
    const bool noted_before =
        slot.sequence == open.sequence && static_cast<int32_t>(slot.packets - parent.packets) < 0;
    if (noted_before || LookForOptIn(*tables_, child, watched.mm) == MapsOptIn::kNo) continue;
    found->AddPending(1);
    open.waiting.push_back(child);
    ++counts_.woken;
  }
}

void SharedOperations::OnUnwatched(GuestId guest, MmId mm) {
  const auto it = queues_.find(KeyOf(mm));
  if (it == queues_.end()) return;
  Queue& queue = it->second;
  std::erase_if(queue.late, [guest](const Late& late) { return late.guest == guest; });
  if (queue.open.has_value() && std::erase(queue.open->waiting, guest) != 0) {
    // Nobody counts for it any more.
    if (Board* found = boards_->Find(mm)) found->AddPending(-1);
    Check(&queue);
  }
  Advance(mm);
}

void SharedOperations::OnGuestGone(GuestId guest) {
  std::vector<MmId> files;
  ForEachQueue([&](MmId mm, Queue*) { files.push_back(mm); });
  for (const MmId mm : files) OnUnwatched(guest, mm);
}

uint32_t SharedOperations::PatienceFor(const Queue& queue) const {
  const bool all_late = std::ranges::all_of(queue.open->waiting, [&](GuestId member) {
    return std::ranges::any_of(queue.late,
                               [member](const Late& late) { return late.guest == member; });
  });
  return all_late ? kLatePatienceTicks : kPatienceTicks;
}

// The caller is told; what the late have missed is kept for when they come back.
void SharedOperations::GiveUp(Queue* queue) {
  ++counts_.timed_out;
  const Open& open = *queue->open;
  const bool protects = open.request.op == BoardOp::kProtect;
  for (const GuestId guest : open.waiting) {
    if (!protects) break;
    const auto same = [guest](const Late& late) { return late.guest == guest; };
    auto late = std::ranges::find_if(queue->late, same);
    if (late == queue->late.end()) late = queue->late.insert(late, Late{guest, 0, {}});
    late->sequence = open.sequence;
    AddMissed(&late->missed, open.request.pages);
    // It does not do what it was told once more, so the rest of that would only take time.
    std::erase_if(queue->requests, [&](const Request& request) {
      const bool mine = request.repaired == guest;
      if (mine) AddMissed(&late->missed, request.pages);
      return mine;
    });
  }
  End(queue, ETIMEDOUT);
}

void SharedOperations::Repair(Queue* queue, MmId mm) const {
  const Board* found = boards_->Find(mm);
  std::erase_if(queue->late, [&](const Late& late) {
    if (found == nullptr || guests_->Find(late.guest) == nullptr) return true;
    const uint64_t noted = found->Read(late.guest.slot).sequence;
    if (noted < late.sequence) return false;
    // It was late, and no more than that.
    if (noted == late.sequence && late.missed.size() == 1) return true;
    for (const Pages& pages : late.missed) {
      Request request;
      request.op = BoardOp::kProtect;
      request.mm = mm;
      request.pages = pages;
      request.repaired = late.guest;
      queue->requests.push_front(std::move(request));
    }
    return true;
  });
}

void SharedOperations::Tick() {
  std::vector<MmId> files;
  ForEachQueue([&](MmId mm, Queue*) { files.push_back(mm); });
  for (const MmId mm : files) {
    const auto it = queues_.find(KeyOf(mm));
    if (it == queues_.end()) continue;
    Queue& queue = it->second;
    if (queue.open.has_value()) {
      Open& open = *queue.open;
      ++open.ticks;
      if (Check(&queue) == Over::kNo) {
        if (open.ticks >= PatienceFor(queue)) {
          GiveUp(&queue);
        } else if (open.ticks % kTicksPerReminder == 0) {
          Look(mm, open.waiting);
        }
      }
    }
    Repair(&queue, mm);
    Advance(mm);
  }
}

std::optional<SharedOperations::OpenProtect> SharedOperations::FindOpenProtect(MmId mm) const {
  const auto it = queues_.find(KeyOf(mm));
  if (it == queues_.end() || !it->second.open.has_value()) return std::nullopt;
  const Request& request = it->second.open->request;
  if (request.op != BoardOp::kProtect) return std::nullopt;
  return OpenProtect{request.pages, request.prot};
}

void SharedOperations::Answer(const Request& request, int error) {
  if (!request.caller.valid()) return;
  if (Guest* caller = guests_->Find(request.caller)) --caller->open_for_all;
  protocol::Message answer = NewPacket(protocol::Kind::kReply);
  answer.status = error == 0 ? protocol::Status::kOk : protocol::Status::kFailed;
  answer.value[1] = static_cast<uint64_t>(error);
  if (request.reply.ok()) SendPacket(request.reply.get(), answer);
}

}  // namespace hostmm
