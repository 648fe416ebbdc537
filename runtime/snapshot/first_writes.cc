#include "runtime/snapshot/first_writes.h"

#include <memory>
#include <optional>

#include "runtime/userfaultfd.h"

namespace hostmm {

void FirstWrites::OnWrite(const FaultEvent& event, const FaultDecision& decision) {
  const Key key = KeyOf(decision.mm, decision.first);
  const bool copying = copying_.contains(key);
  if (decision.action != FaultAction::kPrivatize && !copying) {
    return Grant(event, decision.mm, decision.first, decision.count);
  }
  copying_[key].writers.push_back(event);
  if (!copying) Begin(decision.mm, decision.first, decision.count);
}

void FirstWrites::Privatize(MmId source, FilePage first, PageCount count,
                            std::function<void()> then) {
  const auto [it, is_first] = copying_.try_emplace(KeyOf(source, first));
  it->second.others.push_back(std::move(then));
  if (is_first) Begin(source, first, count);
}

void FirstWrites::Begin(MmId source, FilePage first, PageCount count) {
  LiveFile* file = files_->Find(source);
  if (file == nullptr || !cow_.IsShared(source, first)) return Finish(source, first, count);
  const std::optional<FrameNumber> frame = file->store->Allocate(count.value());
  if (!frame.has_value() && file->store->gives_back()) {
    return file->store->AfterGiveBack([=, this] { Begin(source, first, count); });
  }
  if (!frame.has_value()) {
    return lose_(source, "the memory for copies is used up (--snapshot-memory)",
                 [=, this] { Finish(source, first, count); });
  }
  const int live = file->backing->file().get();
  auto copy = std::make_shared<Copy>(Copy{.store = file->store, .frame = *frame, .error = 0});
  if (count.value() == 1) {
    copy->error = copy->store->Copy(live, first, count, *frame);
    return OnCopied(source, first, count, copy);
  }
  pool_->Submit(
      [copy, backing = file->backing, first, count] {
        copy->error = copy->store->Copy(backing->file().get(), first, count, copy->frame);
      },
      [=, this] { OnCopied(source, first, count, copy); });
}

void FirstWrites::OnCopied(MmId source, FilePage first, PageCount count,
                           const std::shared_ptr<Copy>& made) {
  LiveFile* file = files_->Find(source);
  Copy& copy = *made;
  // The last snapshot has gone, and with it the store; there may be other ones by now.
  if (file == nullptr || file->store != copy.store) {
    PreimageStore::Retire(std::move(copy.store), pool_);
    return Begin(source, first, count);
  }
  const std::vector<MmId> sharing = cow_.Sharing(source, first);
  uint32_t uses = 0;
  const TableStatus status = copy.error == 0 && !sharing.empty()
                                 ? cow_.Privatize(source, first, count, copy.frame, &uses)
                                 : TableStatus::kNoSpace;
  if (status != TableStatus::kOk) {
    file->store->Discard(copy.frame, count);
    PreimageStore::GiveBack(file->store, pool_);
    if (sharing.empty()) return Finish(source, first, count);
    return lose_(source, copy.error != 0 ? "no memory for a copy" : "the pager's tables are full",
                 [=, this] { Finish(source, first, count); });
  }
  file->store->SetUses(copy.frame, count.value(), uses);
  views_->Revoke(sharing, first, count, [=, this](ViewOrders::End end) {
    if (end == ViewOrders::End::kAllDone) return Finish(source, first, count);
    lose_(source, "a process that has a view of it did not give a page back in time",
          [=, this] { Finish(source, first, count); });
  });
}

void FirstWrites::Finish(MmId source, FilePage first, PageCount count) {
  const auto it = copying_.find(KeyOf(source, first));
  if (it == copying_.end()) return;
  const Copying copied = std::move(it->second);
  copying_.erase(it);
  for (const FaultEvent& event : copied.writers) Grant(event, source, first, count);
  for (const std::function<void()>& then : copied.others) then();
}

void FirstWrites::Grant(const FaultEvent& event, MmId source, FilePage first, PageCount count) {
  const Guest* guest = guests_->Find(event.guest);
  if (guest == nullptr || !guest->uffd.fd.ok()) return;
  const int uffd = guest->uffd.fd.get();
  const uint64_t bytes = BytesOf(count);
  const uint64_t touched = event.addr.value() & ~(bytes - 1);
  const LiveFile* file = files_->Find(source);
  const std::optional<Region> region = tables_->FindRegion(event.guest, event.addr);
  const bool there = region.has_value() && region->mm == source && first >= region->file_page &&
                     first + count <= region->file_end() &&
                     region->AddrOf(first).value() == touched;
  const bool granted = there && file != nullptr && file->state == LiveFile::State::kFrozen &&
                       !cow_.IsShared(source, first);
  if (granted) {
    const UffdResult result = event.kind == FaultKind::kMinor
                                  ? UffdContinue(uffd, touched, bytes)
                                  : UffdWriteProtect(uffd, touched, bytes, WriteProtected::kNo);
    if (result == UffdResult::kDone) return;
    // Somebody has read it meanwhile: it is mapped, protected.
    if (result == UffdResult::kAlreadyMapped) {
      UffdWriteProtect(uffd, touched, bytes, WriteProtected::kNo);
    }
  }
  UffdWake(uffd, touched, bytes);
}

}  // namespace hostmm
