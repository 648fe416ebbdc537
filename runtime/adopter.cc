#include "runtime/adopter.h"

#include <algorithm>
#include <vector>

#include "vmm/table_reader.h"

namespace hostmm {
namespace {

// Blocks per order: bits of the mask. At 1-2 ms a collapse, an order takes at most 64-128 ms of one
// agent.
constexpr uint64_t kBlocksPerOrder = 64;

// The longest wait between two looks at a file that does not change, in ticks. Arbitrary.
constexpr uint32_t kMaxBackoff = 64;

// How long an answer may take, in ticks. Arbitrary: far longer than an order of 64 collapses.
constexpr uint32_t kPatienceTicks = 8;

}  // namespace

void Adopter::Tick() {
  std::vector<uint32_t> gone;
  for (auto& [slot, file] : files_) {
    if (tables_->Info(file.mm).regions == 0) {
      gone.push_back(slot);
    } else if (file.wait > 0) {
      --file.wait;
    } else if (AwaitsAnswer(&file) == Wait::kNo) {
      Look(&file);
    }
  }
  for (const uint32_t slot : gone) files_.erase(slot);
}

// Whether the answer to the last order is still to be waited for. Who is stopped, or never answers,
// is passed over after a while: others may map the file too.
Adopter::Wait Adopter::AwaitsAnswer(File* file) const {
  if (!file->asked.valid()) return Wait::kNo;
  const Guest* guest = guests_->Find(file->asked);
  if (guest != nullptr && guest->open_order != 0 && file->patience-- > 0) return Wait::kYes;
  file->asked = GuestId();
  return Wait::kNo;
}

// One order of at most kBlocksPerOrder blocks; at the end of the file a pass is over.
void Adopter::Look(File* file) {
  const uint64_t blocks = tables_->Info(file->mm).length.value() / kPagesPerBlock;
  while (file->cursor < blocks) {
    const Batch batch = NextBatch(file);
    if (batch.mask == 0) continue;
    Guest* guest = guests_->Find(batch.guest);
    if (guest == nullptr) continue;
    protocol::Message order = NewPacket(protocol::Kind::kOrder);
    order.op = protocol::OrderOp::kCollapse;
    order.va = batch.va;
    order.length = (64 - static_cast<uint64_t>(__builtin_clzll(batch.mask))) * kBlockSize;
    order.value[0] = batch.mask;
    const auto done = [this, mm = file->mm, batch](const protocol::Message& answer) {
      OnAnswer(mm, batch, answer);
    };
    if (orders_->Send(*guest, order, done) == Orders::SendResult::kBusy) {
      file->cursor = batch.first_block;
    } else {
      file->asked = batch.guest;
      file->patience = kPatienceTicks;
    }
    return;
  }
  file->cursor = 0;
  file->backoff = file->progress ? 1 : std::min(file->backoff * 2, kMaxBackoff);
  file->wait = file->backoff;
  file->progress = false;
}

// The blocks from the cursor on that are not huge yet and that one guest maps in one piece.
// Advances the cursor.
Adopter::Batch Adopter::NextBatch(File* file) const {
  Batch batch;
  batch.first_block = file->cursor;
  Region region;
  tables_->ForEachMapper(file->mm, BlockIndex(file->cursor),
                         [&](GuestId guest, const Region& candidate, Writable) {
                           // The whole block must be mapped, at a multiple of 2 MiB.
                           const FilePage first = FirstPageOf(BlockIndex(file->cursor));
                           if (batch.guest.valid() || candidate.file_page > first) return;
                           const Guest* mapper = guests_->Find(guest);
                           if (mapper == nullptr || !mapper->has_agent || mapper->open_order != 0)
                             return;
                           if (candidate.AddrOf(first).value() % kBlockSize != 0) return;
                           // What is private may hold pages of its own.
                           if ((candidate.flags & kPrivate) != 0) return;
                           batch.guest = guest;
                           region = candidate;
                         });
  if (!batch.guest.valid()) {
    ++file->cursor;
    return batch;
  }
  batch.va = region.AddrOf(FirstPageOf(BlockIndex(file->cursor))).value();
  for (uint64_t i = 0; i < kBlocksPerOrder; ++i, ++file->cursor) {
    const BlockIndex block(batch.first_block + i);
    if (EndPageOf(block) > region.file_end()) {
      if (i == 0) ++file->cursor;
      break;
    }
    const PageState state = tables_->reader().Lookup(file->mm, FirstPageOf(block)).state;
    if (state != PageState::kPresentHuge) batch.mask |= uint64_t{1} << i;
  }
  return batch;
}

void Adopter::OnAnswer(MmId mm, const Batch& batch, const protocol::Message& answer) {
  const auto it = files_.find(mm.slot);
  if (it == files_.end() || !(it->second.mm == mm)) return;
  // Only what was asked for counts: the answer is a guest's word.
  const uint64_t collapsed = answer.value[0] & batch.mask;
  for (uint64_t i = 0; i < kBlocksPerOrder; ++i) {
    if ((collapsed & (uint64_t{1} << i)) == 0) continue;
    tables_->SetBlockCollapsed(mm, BlockIndex(batch.first_block + i));
    it->second.progress = true;
  }
}

}  // namespace hostmm
