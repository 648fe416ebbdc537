#include "runtime/resolver.h"

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>

#include "runtime/page_table_budget.h"
#include "runtime/snapshot/snapshots.h"
#include "runtime/uffd_decode.h"
#include "runtime/userfaultfd.h"

namespace hostmm {
namespace {

// Events per read(2) and reads per turn: one guest with many threads does not keep the others
// waiting. Arbitrary.
constexpr int kEventsPerRead = 16;
constexpr int kReadsPerTurn = 8;

// Up to this many small pages the loop makes itself: about 1 us each, less than waking a worker and
// being woken by it.
constexpr uint64_t kInlinePages = 8;

// Of a tracked region, around a page that is there already.
constexpr PageCount kContinuedAtOnce{64};

// Never waits, whatever the guest does to the O_NONBLOCK of the open file, which it shares with us.
// Before 6.10 a userfaultfd knows only that flag.
ssize_t ReadEvents(int uffd, uffd_msg* messages, size_t bytes) {
  const iovec vector = {messages, bytes};
  const ssize_t got = preadv2(uffd, &vector, 1, -1, RWF_NOWAIT);
  return got < 0 && errno == EOPNOTSUPP ? read(uffd, messages, bytes) : got;
}

// Nobody asks for fork events, but a guest's userfaultfd may have them: reading one has made a
// descriptor here.
void CloseForkedUserfaultfd(const uffd_msg& message) {
  if (message.event == UFFD_EVENT_FORK) close(static_cast<int>(message.arg.fork.ufd));
}

}  // namespace

EventLoop::Progress Resolver::Drain(Guest& guest) {
  uffd_msg messages[kEventsPerRead];
  for (int turn = 0; turn < kReadsPerTurn; ++turn) {
    const ssize_t got = ReadEvents(guest.uffd.fd.get(), messages, sizeof(messages));
    if (got <= 0) return EventLoop::Progress::kDrained;
    const int count = static_cast<int>(static_cast<size_t>(got) / sizeof(uffd_msg));
    for (int i = 0; i < count; ++i) {
      const std::optional<FaultEvent> event = DecodeFault(guest.id, messages[i]);
      if (event.has_value()) {
        OnEvent(guest, *event);
      } else {
        CloseForkedUserfaultfd(messages[i]);
      }
    }
    // Fewer than fit: there was no more. What comes later is a new edge of the poll.
    if (count < kEventsPerRead) return EventLoop::Progress::kDrained;
  }
  return EventLoop::Progress::kMore;
}

void Resolver::OnEvent(Guest& guest, const FaultEvent& event) {
  if (snapshots_ != nullptr && snapshots_->any() &&
      snapshots_->Park(event) == Freezer::Park::kYes) {
    return;
  }
  Resolve(guest, event, Decide(*tables_, event, ClimateFor(event.kind)));
}

void Resolver::SetSnapshots(Snapshots* snapshots) {
  snapshots_ = snapshots;
  snapshots_->SetResume([this](const FaultEvent& event) {
    if (Guest* guest = guests_->Find(event.guest); guest != nullptr) OnEvent(*guest, event);
  });
}

void Resolver::SetBudget(PageTableBudget* budget) {
  budget_ = budget;
  budget_->SetResume(
      [this](const PageTableBudget::Fault& fault) { ContinueLater(fault.decision, fault.page); });
}

// What was decided before a snapshot may not hold any more: the thread comes again.
void Resolver::ContinueLater(const FaultDecision& decision, GuestAddr page) {
  if (snapshots_ == nullptr || !snapshots_->IsFrozen(decision.mm)) return Continue(decision, page);
  Wake({decision.guest, page.value(), kPageSize});
  Commit(*tables_, decision, Outcome::kDone, Grain::kSmall);
}

void Resolver::SetMemory(MemoryClimate memory) {
  climate_.memory = memory;
  if (budget_ != nullptr) budget_->Tick();
}

// Under a budget an untouched page is made as in other base files, so that a sparse toucher pays no
// more; what is there is mapped in one go.
Climate Resolver::ClimateFor(FaultKind kind) const {
  Climate climate = climate_;
  if (kind == FaultKind::kMinor) {
    climate.tracked_around = kContinuedAtOnce;
  } else if (budget_ != nullptr) {
    climate.tracked_around = kFirstWindow;
  }
  return climate;
}

void Resolver::Resolve(Guest& guest, const FaultEvent& event, const FaultDecision& decision) {
  const Waiter waiter{decision.guest, decision.wake_start.value(), decision.wake_bytes};
  const GuestAddr page =
      decision.grain == Grain::kHuge ? decision.wake_start : PageFloor(event.addr);
  switch (decision.action) {
    case FaultAction::kPopulate:
      Populate(decision);
      return;
    case FaultAction::kContinue:
      if (decision.cause == FaultCause::kPrivatized) {
        snapshots_->OnFirstWrite(event, decision);
        break;
      }
      if (budget_ != nullptr &&
          budget_->Admit(guest, {decision, page}) == PageTableBudget::Admission::kLater) {
        return;
      }
      Continue(decision, page);
      return;
    case FaultAction::kJoin:
      parked_[KeyOf(decision)].push_back(waiter);
      break;
    case FaultAction::kWake:
      if (event.kind == FaultKind::kWriteProtect && guest.uffd.fd.ok()) {
        UffdWriteProtect(guest.uffd.fd.get(), page.value(), waiter.bytes, WriteProtected::kNo);
      }
      Wake(waiter);
      break;
    case FaultAction::kDeny:
      // Whoever has told the guest to replace the view wakes it then.
      if (decision.cause != FaultCause::kLostSnapshot) Deny(waiter);
      break;
    case FaultAction::kPrivatize:
    case FaultAction::kUnprotect:
      return snapshots_->OnFirstWrite(event, decision);
    case FaultAction::kView:
      return snapshots_->OnViewTouch(guest, event);
  }
  Commit(*tables_, decision, Outcome::kDone, decision.grain);
}

void Resolver::Populate(const FaultDecision& decision) {
  const std::shared_ptr<const Backing> backing = files_->Find(decision.mm);
  if (backing == nullptr) return Finish(decision, {Outcome::kFailed, Grain::kSmall});
  const bool quick = decision.grain == Grain::kSmall && decision.count.value() <= kInlinePages &&
                     climate_.memory == MemoryClimate::kAmple;
  if (quick) return Finish(decision, Fill(*backing, decision));
  auto filled = std::make_shared<Filled>();
  pool_->Submit([backing, decision, filled] { *filled = Fill(*backing, decision); },
                [this, backing, decision, filled] {
                  if (decision.grain == Grain::kCollapse && filled->outcome == Outcome::kDone) {
                    Collapse(backing, decision);
                  } else {
                    Finish(decision, *filled);
                  }
                });
}

// Makes the frames. Runs on a worker, or inline: touches nothing but the file.
Resolver::Filled Resolver::Fill(const Backing& backing, const FaultDecision& decision) {
  const auto outcome = [](Backing::FillResult result) {
    if (result == Backing::FillResult::kDone) return Outcome::kDone;
    return result == Backing::FillResult::kOutOfFrames ? Outcome::kOutOfFrames : Outcome::kFailed;
  };
  const bool huge = decision.grain == Grain::kHuge;
  const bool wanted =
      huge && (decision.probe == Probe::kNone || decision.fallback_count.value() == 0 ||
               backing.Sample(decision.neighbour) == Backing::Use::kUsed);
  if (wanted) return {outcome(backing.FillHuge(decision.block)), Grain::kHuge};
  const FilePage first = huge ? decision.fallback_first : decision.first;
  const PageCount count = huge ? decision.fallback_count : decision.count;
  return {outcome(backing.FillSmall(first, count)), Grain::kSmall};
}

// The block is full of small pages: nobody need wait for the rest, which takes milliseconds. Its
// entries stay in flight until then.
void Resolver::Collapse(std::shared_ptr<const Backing> backing, const FaultDecision& decision) {
  for (const Waiter& waiter : TakeWaiters(decision)) Wake(waiter);
  auto filled = std::make_shared<Filled>(Filled{Outcome::kDone, Grain::kSmall});
  pool_->Submit(
      [backing = std::move(backing), decision, filled] {
        if (backing->Collapse(decision.block) == Backing::FillResult::kDone) {
          filled->actual = Grain::kCollapse;
        }
      },
      [this, decision, filled] { Finish(decision, *filled); }, WorkerPool::Priority::kLater);
}

void Resolver::Finish(const FaultDecision& decision, Filled filled) {
  Commit(*tables_, decision, filled.outcome, filled.actual);
  const bool stays_small = decision.grain == Grain::kCollapse && filled.outcome == Outcome::kDone &&
                           filled.actual != Grain::kCollapse;
  if (stays_small) retry_->Add(decision.mm, decision.block);
  for (const Waiter& waiter : TakeWaiters(decision)) {
    // Without frames the kernel answers, as it would without us: SIGBUS, the OOM killer, or a page
    // after all.
    if (filled.outcome == Outcome::kDone) {
      Wake(waiter);
    } else {
      Deny(waiter);
    }
  }
}

// Whoever sleeps for the decision's block: who caused it and who was parked.
std::vector<Resolver::Waiter> Resolver::TakeWaiters(const FaultDecision& decision) {
  std::vector<Waiter> waiters;
  if (auto it = parked_.find(KeyOf(decision)); it != parked_.end()) {
    waiters = std::move(it->second);
    parked_.erase(it);
  }
  waiters.push_back({decision.guest, decision.wake_start.value(), decision.wake_bytes});
  return waiters;
}

void Resolver::Continue(const FaultDecision& decision, GuestAddr page) {
  const Guest* guest = guests_->Find(decision.guest);
  const bool there = guest != nullptr && guest->uffd.fd.ok();
  const UffdResult result = there ? MapPresent(*guest, decision, page) : UffdResult::kGuestGone;
  Outcome outcome = Outcome::kDone;
  if (result == UffdResult::kGuestGone) outcome = Outcome::kGuestGone;
  if (result == UffdResult::kRefused) outcome = Outcome::kFailed;
  // Mapped meanwhile, unmapped, or the address space is changing: the thread tries again and comes
  // back if need be.
  if (result != UffdResult::kDone) Wake({decision.guest, page.value(), kPageSize});
  Commit(*tables_, decision, outcome, Grain::kSmall);
}

// MADV_NOHUGEPAGE: small steps, here as for frames.
bool Resolver::WantsOnlyWhatItTouches(GuestId guest, GuestAddr page) const {
  const std::optional<Region> region = tables_->FindRegion(guest, page);
  return region.has_value() && (region->flags & kHintSmall) != 0;
}

// From the page that is waited for onwards, then what is before it: a call ends at the first page
// that is mapped already, which must not be in front of the one that matters.
UffdResult Resolver::MapPresent(const Guest& guest, const FaultDecision& decision,
                                GuestAddr page) const {
  // One block of addresses, which is what the budget has admitted: a mapping at any address need
  // not keep to the file's blocks.
  const uint64_t block = page.value() & ~(kBlockSize - 1);
  uint64_t begin = std::max(decision.wake_start.value(), block);
  uint64_t end = std::min(decision.wake_start.value() + decision.wake_bytes, block + kBlockSize);
  if (decision.count.value() > 1 && WantsOnlyWhatItTouches(decision.guest, page)) {
    begin = page.value();
    end = begin + kPageSize;
  }
  const int uffd = guest.uffd.fd.get();
  const auto protect = decision.write_protect ? WriteProtected::kYes : WriteProtected::kNo;
  const uint64_t unit = decision.grain == Grain::kHuge ? kBlockSize : kPageSize;
  const UffdResult result =
      UffdContinueWindow(uffd, page.value(), end - page.value(), unit, protect);
  if (result != UffdResult::kDone && result != UffdResult::kPartial) return result;
  if (begin < page.value()) UffdContinue(uffd, begin, page.value() - begin, protect);
  return UffdResult::kDone;
}

// Takes the range out of our hands. The kernel wants whole 2 MiB on hugetlb, so those are the
// second try; without either the fault would come back for ever.
void Resolver::Deny(const Waiter& waiter) {
  Guest* guest = guests_->Find(waiter.guest);
  if (guest == nullptr || !guest->uffd.fd.ok()) return;
  const std::optional<Region> region = tables_->FindRegion(waiter.guest, GuestAddr(waiter.va));
  if (snapshots_ != nullptr && region.has_value() && snapshots_->IsFrozen(region->mm)) {
    return snapshots_->LoseFor(region->mm, "a fault of it could not be served",
                               [this, waiter] { LeaveToKernel(waiter); });
  }
  LeaveToKernel(waiter);
}

void Resolver::LeaveToKernel(const Waiter& waiter) {
  Guest* guest = guests_->Find(waiter.guest);
  if (guest == nullptr || !guest->uffd.fd.ok()) return;
  const uint64_t page = waiter.va & ~(kPageSize - 1);
  const uint64_t bytes = waiter.bytes == 0 ? kPageSize : waiter.bytes;
  if (UffdUnregister(guest->uffd.fd.get(), page, bytes) != UffdResult::kDone) {
    const uint64_t block = page & ~(kBlockSize - 1);
    UffdUnregister(guest->uffd.fd.get(), block, kBlockSize);
  }
  UffdWake(guest->uffd.fd.get(), page, bytes);
}

void Resolver::Wake(const Waiter& waiter) {
  Guest* guest = guests_->Find(waiter.guest);
  // A guest that died meanwhile needs no wake; its userfaultfd closed with it.
  if (guest == nullptr || !guest->uffd.fd.ok()) return;
  UffdWake(guest->uffd.fd.get(), waiter.va, waiter.bytes);
}

Resolver::BlockKey Resolver::KeyOf(const FaultDecision& decision) {
  return {(static_cast<uint64_t>(decision.mm.generation) << 32) | decision.mm.slot,
          decision.block.value()};
}

size_t Resolver::parked() const {
  size_t count = 0;
  for (const auto& [key, waiters] : parked_) count += waiters.size();
  return count;
}

}  // namespace hostmm
