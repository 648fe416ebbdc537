#include "runtime/snapshot/views.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "runtime/packet.h"
#include "runtime/userfaultfd.h"

namespace hostmm {
namespace {

// Of what is read, mapped from the touched page on. As for other tracked memory.
constexpr uint64_t kSharedAtOnce = 64;

// Sets bits [first, first + count) of an order's bitmap.
void SetBits(protocol::Message* order, uint64_t first, uint64_t count) {
  static_assert(sizeof(order->text) * 8 == kPagesPerBlock);
  for (uint64_t i = first; i < first + count; ++i) {
    order->text[i / 8] = static_cast<char>(order->text[i / 8] | (1 << (i % 8)));
  }
}

}  // namespace

void Views::OnTouch(Guest& guest, const FaultEvent& event) {
  const std::optional<Region> region = tables_->FindRegion(guest.id, event.addr);
  const uint64_t page_va = event.addr.value() & ~(kPageSize - 1);
  const LiveFile* file = nullptr;
  if (region.has_value()) file = files_->Find(cow_.SourceOf(region->mm));
  if (file == nullptr) {
    // Unmapped meanwhile, or lost: the mapping is another one by now, or will be.
    UffdWake(guest.uffd.fd.get(), page_va, kPageSize);
    return;
  }
  const FilePage page = region->PageAt(event.addr);
  const bool blocks = file->backing->kind() == FrameKind::kHugetlb;
  const FilePage first = blocks ? FirstPageOf(BlockFloor(page)) : page;
  const PageCount count(blocks ? kPagesPerBlock : 1);
  const Touch touch{guest.id, event, *region, first, count, region->AddrOf(first).value()};
  const bool as_it_was = cow_.Find(region->mm, page).from == CowTables::Page::From::kLive;
  const bool only_read = event.access != Access::kWrite && (region->flags & kCopyOnly) == 0;
  if (!as_it_was || !only_read) return CopyOver(guest, touch);
  if (event.kind == FaultKind::kMissing) return Zero(guest, touch, *file);
  Share(guest, touch);
}

void Views::Share(const Guest& guest, const Touch& touch) {
  const FilePage end = std::min(touch.region.file_end(), EndPageOf(BlockFloor(touch.first)));
  uint64_t count = touch.count.value();
  const auto shares = [&](uint64_t i) {
    const FilePage page = touch.first + PageCount(i);
    return page < end && cow_.Find(touch.region.mm, page).from == CowTables::Page::From::kLive;
  };
  while (count < kSharedAtOnce && shares(count)) ++count;
  pages_.Add(guest.id, touch.region.mm, touch.first, PageCount(count));
  const int uffd = guest.uffd.fd.get();
  Answer(uffd, touch,
         UffdContinueWindow(uffd, touch.va, BytesOf(PageCount(count)), touch.bytes(),
                            WriteProtected::kYes));
}

void Views::Zero(const Guest& guest, const Touch& touch, const LiveFile& file) {
  const int uffd = guest.uffd.fd.get();
  if (file.backing->kind() != FrameKind::kHugetlb) {
    return Answer(uffd, touch, UffdZero(uffd, touch.va, kPageSize));
  }
  const std::vector<std::byte> zeros(kBlockSize);
  Answer(uffd, touch, UffdCopy(uffd, touch.va, zeros.data(), kBlockSize));
}

// What is mapped there already stands for good, or the thread comes again. Without memory for it
// that would go on for ever.
void Views::Answer(int uffd, const Touch& touch, UffdResult result) {
  if (result == UffdResult::kDone) return;
  const MmId source = cow_.SourceOf(touch.region.mm);
  if (result == UffdResult::kRefused && source.valid()) {
    return lost_(source, "no memory for a page of a view");
  }
  // Its own, and protected by mistake.
  const bool own = result == UffdResult::kAlreadyMapped &&
                   touch.event.kind == FaultKind::kWriteProtect &&
                   !pages_.Has(touch.guest, touch.region.mm, touch.first);
  if (own) UffdWriteProtect(uffd, touch.va, touch.bytes(), WriteProtected::kNo);
  UffdWake(uffd, touch.va, touch.bytes());
}

void Views::CopyOver(Guest& guest, const Touch& touch) {
  const bool mapped = touch.event.kind == FaultKind::kWriteProtect &&
                      pages_.Has(guest.id, touch.region.mm, touch.first);
  if (!mapped) return Copy(touch);
  const std::vector<ViewOrders::Item> zaps =
      ZapsOf(guest.id, touch.region.mm, touch.first, touch.count);
  // Late or not: if the page is still there, or there again because another thread has read it, the
  // copy finds it, and the thread comes again. So the set goes on to name it.
  orders_->Send(zaps, [this, touch](ViewOrders::End) { Copy(touch); });
}

// Meanwhile the guest may have unmapped the view, and mapped another one at the same address.
bool Views::IsThere(const Touch& touch) const {
  const std::optional<Region> region = tables_->FindRegion(touch.guest, touch.event.addr);
  return region.has_value() && region->mm == touch.region.mm &&
         region->PageAt(touch.event.addr) == touch.region.PageAt(touch.event.addr);
}

void Views::Copy(const Touch& touch) {
  const Guest* guest = guests_->Find(touch.guest);
  const LiveFile* file = files_->Find(cow_.SourceOf(touch.region.mm));
  if (guest == nullptr) return;
  if (file == nullptr || !IsThere(touch)) {
    UffdWake(guest->uffd.fd.get(), touch.va, touch.bytes());
    return;
  }
  const CowTables::Page from = cow_.Find(touch.region.mm, touch.first);
  const bool live = from.from == CowTables::Page::From::kLive;
  if (touch.count.value() != 1) {
    // Too long for the loop, and a worker cannot read what may be written meanwhile.
    if (live) return privatize_(file->mm, touch.first, touch.count, [this, touch] { Copy(touch); });
    return CopyBlock(touch, *file, from);
  }
  alignas(kPageSize) std::byte page[kPageSize];
  const int error = live ? ReadFrames(file->backing->file().get(), touch.first.value() * kPageSize,
                                      page, kPageSize)
                         : file->store->Read(from.frame, page, kPageSize);
  if (error != 0) return lost_(file->mm, "a page of it cannot be read");
  const int uffd = guest->uffd.fd.get();
  Answer(uffd, touch, UffdCopy(uffd, touch.va, page, kPageSize));
}

void Views::CopyBlock(const Touch& touch, const LiveFile& file, CowTables::Page from) {
  struct Block {
    std::vector<std::byte> bytes = std::vector<std::byte>(kBlockSize);
    int error = 0;
  };
  auto block = std::make_shared<Block>();
  pool_->Submit(
      [store = file.store, block, frame = from.frame] {
        block->error = store->Read(frame, block->bytes.data(), kBlockSize);
      },
      [this, touch, block, source = file.mm] {
        if (block->error != 0) return lost_(source, "a block of it cannot be read");
        const Guest* guest = guests_->Find(touch.guest);
        if (guest == nullptr) return;
        const int uffd = guest->uffd.fd.get();
        if (!IsThere(touch)) {
          UffdWake(uffd, touch.va, touch.bytes());
          return;
        }
        Answer(uffd, touch, UffdCopy(uffd, touch.va, block->bytes.data(), kBlockSize));
      });
}

std::vector<ViewOrders::Item> Views::ZapsOf(GuestId holder, MmId snapshot, FilePage first,
                                            PageCount count) const {
  std::vector<ViewOrders::Item> zaps;
  tables_->ForEachRegion(holder, [&](const Region& region) {
    const FilePage begin = std::max(first, region.file_page);
    const FilePage end = std::min(first + count, region.file_end());
    if (!(region.mm == snapshot) || begin >= end) return;
    protocol::Message zap = NewPacket(protocol::Kind::kOrder);
    zap.op = protocol::OrderOp::kZapPages;
    zap.mm = {snapshot.slot, snapshot.generation};
    zap.va = region.AddrOf(begin).value();
    zap.length = kBlockSize;
    SetBits(&zap, 0, (end - begin).value());
    zaps.push_back({holder, zap});
  });
  return zaps;
}

void Views::Revoke(const std::vector<MmId>& snapshots, FilePage first, PageCount count,
                   Revoked done) {
  std::vector<ViewOrders::Item> zaps;
  for (const MmId snapshot : snapshots) {
    for (const GuestId holder : pages_.Holders(snapshot, first, count)) {
      pages_.Remove(holder, snapshot, first, count);
      for (ViewOrders::Item& zap : ZapsOf(holder, snapshot, first, count)) zaps.push_back(zap);
    }
  }
  orders_->Send(zaps, std::move(done));
}

void Views::Lose(MmId snapshot, std::function<void()> done) {
  struct View {
    GuestId guest;
    Region region;
  };
  std::vector<View> views;
  guests_->ForEach([&](const Guest& guest) {
    tables_->ForEachRegion(guest.id, [&](const Region& region) {
      if (region.mm == snapshot) views.push_back({guest.id, region});
    });
  });
  std::vector<ViewOrders::Item> orders;
  for (const View& view : views) {
    protocol::Message lose = NewPacket(protocol::Kind::kOrder);
    lose.op = protocol::OrderOp::kLoseView;
    lose.va = view.region.va.value();
    lose.length = BytesOf(view.region.length);
    orders.push_back({view.guest, lose});
  }
  // Who waits for a page there finds another mapping now; also when it was late.
  const auto wake = [this, views](GuestId id) {
    const Guest* guest = guests_->Find(id);
    for (const View& view : views) {
      if (guest == nullptr || !(view.guest == id) || !guest->uffd.fd.ok()) continue;
      UffdWake(guest->uffd.fd.get(), view.region.va.value(), BytesOf(view.region.length));
    }
  };
  orders_->Send(
      orders, [done = std::move(done)](ViewOrders::End) { done(); }, wake);
}

}  // namespace hostmm
