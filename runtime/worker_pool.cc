#include "runtime/worker_pool.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <system_error>
#include <utility>

#include "runtime/sys_error.h"

namespace hostmm {

absl::StatusOr<UniqueFd> WorkerPool::NewEventFd() {
  UniqueFd fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!fd.ok()) return SysError("eventfd");
  return fd;
}

WorkerPool::WorkerPool(UniqueFd event_fd, int threads) : event_fd_(std::move(event_fd)) {
  for (int i = 0; i < threads; ++i) {
    try {
      threads_.emplace_back([this] { Work(); });
    } catch (const std::system_error&) {
      // One worker does all of it, only later. With none the pool is of no use.
      if (threads_.empty()) throw;
    }
  }
}

WorkerPool::~WorkerPool() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::Submit(Task work, Task done, Priority priority) {
  absl::MutexLock lock(&mu_);
  std::deque<Job>& queue = priority == Priority::kNow ? waiting_ : later_;
  queue.push_back({std::move(work), std::move(done)});
}

void WorkerPool::RunDone() {
  uint64_t count;
  // Reset first: what is done after the read makes the descriptor readable again.
  (void)!read(event_fd_.get(), &count, sizeof(count));
  std::deque<Task> now;
  {
    absl::MutexLock lock(&mu_);
    now.swap(done_);
  }
  for (const Task& task : now) task();
}

void WorkerPool::Work() {
  for (;;) {
    Job job;
    Priority priority = Priority::kNow;
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &WorkerPool::HasWorkOrStops));
      if (stopping_) return;
      if (waiting_.empty()) {
        priority = Priority::kLater;
        later_runs_ = true;
      }
      std::deque<Job>& queue = priority == Priority::kNow ? waiting_ : later_;
      job = std::move(queue.front());
      queue.pop_front();
    }
    job.work();
    job.work = nullptr;  // what it held (a file's frames) goes here, not on the loop
    {
      absl::MutexLock lock(&mu_);
      if (priority == Priority::kLater) later_runs_ = false;
      done_.push_back(std::move(job.done));
    }
    const uint64_t one = 1;
    (void)!write(event_fd_.get(), &one, sizeof(one));
  }
}

}  // namespace hostmm
