// MADV_REMOVE of frozen memory. The pager punches the hole itself: between a guest's question and
// its own system call a snapshot could be taken, which would then lose what is removed.
//
//   block by block: the pages that have data and that snapshots share -> pre-images -> the hole,
//   the tables -> the answer
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/snapshot/answers.h"
#include "runtime/snapshot/snapshots.h"

namespace hostmm {

namespace {

// Of one guest, which has a thread waiting for each. Arbitrary: each keeps a descriptor.
constexpr uint32_t kMaxOpenRemovals = 128;
// Pages that are copied in one turn of the loop; a block of hugetlb is one. Then the block is
// looked at anew. Arbitrary.
constexpr size_t kCopiedAtOnce = 32;

// The first page from `page` on that has data, or none that matters.
FilePage NextData(int file, FilePage page) {
  const off_t data = lseek(file, static_cast<off_t>(page.value() * kPageSize), SEEK_DATA);
  return data < 0 ? FilePage(kMaxFilePages) : FilePage(static_cast<uint64_t>(data) / kPageSize);
}

}  // namespace

struct Snapshots::Removal {
  explicit Removal(std::shared_ptr<uint32_t> open) : open_of_guest(std::move(open)) {
    ++*open_of_guest;
  }
  ~Removal() { --*open_of_guest; }
  Removal(const Removal&) = delete;
  Removal& operator=(const Removal&) = delete;

  const std::shared_ptr<uint32_t> open_of_guest;
  UniqueFd reply;
  std::vector<Region> parts;  // what is left; pages are taken off the front one
};

void Snapshots::Remove(Guest& guest, Packet& packet) {
  const protocol::Message& ask = packet.message;
  const GuestAddr begin(ask.va);
  if (ask.va % kPageSize != 0 || !FitsInGuest(begin, PagesFloor(ask.length))) {
    return Refuse(packet, EINVAL, "a bad range");
  }
  if (*guest.open_removals >= kMaxOpenRemovals) return Refuse(packet, EAGAIN, "too many at once");
  const GuestAddr end = begin + PagesFloor(ask.length);
  auto removal = std::make_shared<Removal>(guest.open_removals);
  tables_->ForEachRegion(guest.id, [&](const Region& region) {
    Region part = region;
    part.va = std::max(region.va, begin);
    part.file_page = region.PageAt(part.va);
    if (part.va >= end || region.end() <= begin) return;
    part.length = PagesBetween(part.va, std::min(region.end(), end));
    removal->parts.push_back(part);
  });
  for (const Region& part : removal->parts) {
    const bool writable = part.KernelAccess().Contains(Access::kWrite);
    if (files_->Find(part.mm) == nullptr) return Refuse(packet, EINVAL, "not the pager's memory");
    if (!writable) return Refuse(packet, EACCES, "not writable");
  }
  removal->reply = std::move(packet.fds[0]);
  RemoveNext(removal);
}

// One block at a time, so that the loop is not kept from others.
void Snapshots::RemoveNext(const std::shared_ptr<Removal>& removal) {
  if (removal->parts.empty()) {
    if (removal->reply.ok()) {
      SendPacket(removal->reply.get(), NewPacket(protocol::Kind::kReply));
    }
    return;
  }
  Region& part = removal->parts.front();
  const std::shared_ptr<const Backing> backing = files_->Find(part.mm);
  // Whoever asked has gone, and nobody else maps it.
  if (backing == nullptr) return SayRefused(removal->reply.get(), ESRCH, "unmapped meanwhile");
  // The part of a hugetlb block has no hole of its own; the kernel wipes it, as without us.
  const bool blocks = backing->kind() == FrameKind::kHugetlb;
  const FilePage first = part.file_page;
  const FilePage end = std::min(part.file_end(), EndPageOf(BlockFloor(first)));
  const bool frozen = live_.Find(part.mm) != nullptr;
  std::vector<FilePage> shared;
  const size_t most = blocks ? 1 : kCopiedAtOnce;
  for (FilePage page = first; frozen && page < end && shared.size() < most;
       page = page + PageCount(1)) {
    // A hole stays what it is.
    if (!blocks) page = std::max(page, NextData(backing->file().get(), page));
    if (page >= end) break;
    const FilePage unit = blocks ? FirstPageOf(BlockFloor(page)) : page;
    // Who shares it when a copy is done gets what was there when it began.
    const bool needed = cow_.IsShared(part.mm, page) || first_writes_.IsCopying(part.mm, unit);
    if (needed) shared.push_back(unit);
  }
  const MmId mm = part.mm;
  if (shared.empty()) {
    Punch(mm, first, end - first);
    part.va = part.va + (end - first);
    part.length = part.length - (end - first);
    part.file_page = end;
    if (part.length.value() == 0) removal->parts.erase(removal->parts.begin());
    loop_->Soon([this, removal] { RemoveNext(removal); });
    return;
  }
  auto left = std::make_shared<size_t>(shared.size());
  for (const FilePage page : shared) {
    // When the last one is copied the block is looked at anew: another snapshot may share it by
    // now.
    first_writes_.Privatize(mm, page, PageCount(blocks ? kPagesPerBlock : 1),
                            [this, removal, left] {
                              if (--*left == 0) RemoveNext(removal);
                            });
  }
}

// Of a frozen file, so that nobody has the pages mapped writable that a snapshot shares.
void Snapshots::Punch(MmId mm, FilePage first, PageCount count) {
  const std::shared_ptr<const Backing> backing = files_->Find(mm);
  fallocate(backing->file().get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            static_cast<off_t>(first.value() * kPageSize), static_cast<off_t>(BytesOf(count)));
  tables_->PunchRange(mm, first, count);
}

}  // namespace hostmm
