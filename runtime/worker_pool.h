// Threads that fill frames, so that the loop does not spend its time on a 2 MiB block (about
// 250 us, much more when memory is short). What it can still wait for: pager.h.
//
// Flow:     loop thread: Submit(work, done)    worker: work()    loop thread, later: done()
//           Work of Priority::kLater begins only when nothing else waits, one at a time: a collapse
//           takes milliseconds, and somebody sleeps until a fault's frames are there. `event_fd`
//           becomes readable when something is done; RunDone then calls what is.
// Locks:    one mutex over all queues, held for a push or a pop; no other lock is ever taken under
//           it, and neither work() nor done() runs under it. See the lock order in pager.h.
// Threads:  Submit and RunDone on the loop thread.
#ifndef HOSTMM_RUNTIME_WORKER_POOL_H_
#define HOSTMM_RUNTIME_WORKER_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "runtime/unique_fd.h"

namespace hostmm {

class WorkerPool {
 public:
  using Task = std::function<void()>;
  enum class Priority { kNow, kLater };

  // Takes fewer threads if the kernel gives no more. Throws std::system_error if it gives none
  // (RLIMIT_NPROC), as std::thread does.
  WorkerPool(UniqueFd event_fd, int threads);
  // Finishes what runs; what waits is dropped.
  ~WorkerPool();

  static absl::StatusOr<UniqueFd> NewEventFd();

  int event_fd() const { return event_fd_.get(); }
  void Submit(Task work, Task done, Priority priority = Priority::kNow) ABSL_LOCKS_EXCLUDED(mu_);
  void RunDone() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Job {
    Task work;
    Task done;
  };

  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  bool HasWorkOrStops() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return stopping_ || !waiting_.empty() || (!later_.empty() && !later_runs_);
  }

  const UniqueFd event_fd_;
  absl::Mutex mu_;
  std::deque<Job> waiting_ ABSL_GUARDED_BY(mu_);
  std::deque<Job> later_ ABSL_GUARDED_BY(mu_);
  bool later_runs_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Task> done_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_WORKER_POOL_H_
