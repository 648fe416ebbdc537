#include "runtime/collapse_retry.h"

#include <memory>
#include <utility>

namespace hostmm {

void CollapseRetry::Tick() {
  std::vector<Block> now;
  now.swap(waiting_);
  for (const Block& block : now) {
    std::shared_ptr<const Backing> backing = files_->Find(block.mm);
    if (backing == nullptr) continue;  // the file is gone
    auto result = std::make_shared<Collapsed>(Collapsed::kNo);
    pool_->Submit(
        [backing = std::move(backing), block, result] {
          if (backing->Collapse(block.block) == Backing::FillResult::kDone) {
            *result = Collapsed::kYes;
          }
        },
        [this, block, result] { Finish(block, *result); }, WorkerPool::Priority::kLater);
  }
}

void CollapseRetry::Finish(Block block, Collapsed collapsed) {
  if (collapsed == Collapsed::kYes) {
    const TableStatus told = tables_->SetBlockCollapsed(block.mm, block.block);
    // Entries in flight: a hole was punched and is being filled again.
    if (told != TableStatus::kBusy) return;
  }
  if (++block.tries < kMaxTries) waiting_.push_back(block);
}

}  // namespace hostmm
