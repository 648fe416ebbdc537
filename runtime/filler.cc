#include "runtime/filler.h"

#include <algorithm>
#include <utility>

namespace hostmm {
namespace {

// Ranges of one guest that wait. Arbitrary: bounds what one can have us remember.
constexpr int64_t kJobsPerGuest = 8;

// Blocks that one step looks at before others have their turn. Arbitrary.
constexpr uint64_t kLooksPerStep = 256;

}  // namespace

void Filler::Add(GuestId guest, const Region& region, FilePage first, PageCount count) {
  const auto mine = [guest](const Job& job) { return job.guest == guest; };
  if (memory_ != MemoryClimate::kAmple || std::ranges::count_if(jobs_, mine) >= kJobsPerGuest) {
    return;
  }
  const FilePage file_end = FilePage(0) + tables_->Info(region.mm).length;
  const FilePage end = std::min(first + count, file_end);
  if (files_->Find(region.mm) == nullptr || first >= end) return;
  const bool small = (region.flags & (kHintSmall | kTracked)) != 0;
  jobs_.push_back({guest, region.mm, small ? FillGrain::kSmallOnly : FillGrain::kHuge,
                   BlockFloor(first), BlockCeil(end)});
  Step();
}

void Filler::SetMemory(MemoryClimate memory) {
  memory_ = memory;
  if (memory_ != MemoryClimate::kAmple) jobs_.clear();
}

// One block of the first job that has one to fill; then it is another job's turn.
void Filler::Step() {
  while (worker_ == Worker::kIdle && !jobs_.empty()) {
    Job job = jobs_.front();
    jobs_.pop_front();
    std::optional<Task> next = NextTask(&job);
    const MmId mm = job.mm;
    if (job.next < job.end) jobs_.push_back(job);
    if (!next.has_value()) continue;
    worker_ = Worker::kBusy;
    auto task = std::make_shared<Task>(*std::move(next));
    pool_->Submit([task] { Fill(task.get()); }, [this, mm, task] { OnDone(mm, *task); },
                  WorkerPool::Priority::kLater);
  }
}

std::optional<Filler::Task> Filler::NextTask(Job* job) const {
  std::shared_ptr<const Backing> backing = files_->Find(job->mm);
  if (backing == nullptr) {
    job->next = job->end;
    return std::nullopt;
  }
  const FilePage file_end = FilePage(0) + tables_->Info(job->mm).length;
  for (uint64_t look = 0; look < kLooksPerStep && job->next < job->end; ++look) {
    const BlockIndex block = job->next;
    job->next = BlockIndex(block.value() + 1);
    const PageState state = tables_->reader().Lookup(job->mm, FirstPageOf(block)).state;
    if (state == PageState::kPresentHuge) continue;
    Task task;
    task.backing = std::move(backing);
    task.block = block;
    task.pages = std::min(EndPageOf(block), file_end) - FirstPageOf(block);
    task.grain = job->grain;
    return task;
  }
  return std::nullopt;
}

// Faults in the same block may be filling parts of it: the kernel keeps the two apart, and the
// tables record what each has made.
void Filler::Fill(Task* task) {
  const Backing& backing = *task->backing;
  const bool whole = task->pages == PageCount(kPagesPerBlock);
  if (backing.kind() == FrameKind::kHugetlb) {
    task->result = backing.FillHuge(task->block);
    task->made = Task::Made::kHuge;
    return;
  }
  const bool huge = whole && task->grain == FillGrain::kHuge;
  task->result = huge && backing.kind() == FrameKind::kHuge
                     ? backing.FillHuge(task->block)
                     : backing.FillSmall(FirstPageOf(task->block), task->pages);
  if (!huge || task->result != Backing::FillResult::kDone) return;
  // Of a block that is huge already it says so at once.
  if (backing.Collapse(task->block) == Backing::FillResult::kDone) task->made = Task::Made::kHuge;
}

void Filler::OnDone(MmId mm, const Task& task) {
  worker_ = Worker::kIdle;
  if (task.result == Backing::FillResult::kDone && task.made == Task::Made::kHuge) {
    tables_->SetBlockCollapsed(mm, task.block);
  }
  if (task.result == Backing::FillResult::kOutOfFrames) {
    std::erase_if(jobs_, [mm](const Job& job) { return job.mm == mm; });
  }
  Step();
}

}  // namespace hostmm
