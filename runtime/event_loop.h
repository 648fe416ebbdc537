// The pager's one event loop, over io_uring: multishot poll on every descriptor, one timer.
//
// It knows nothing of pages. A handler is called on the loop's thread when its descriptor is ready,
// and must read until the kernel has no more (the poll reports edges), or return kMore to be called
// again after the others had their turn.
//
// Threads:  everything on the thread that calls Run, but Stop from a handler only.
// Owner:    the descriptors stay the caller's. Unwatch before closing one: a poll keeps its file
//           alive, and the file of a userfaultfd must go at once.
#ifndef HOSTMM_RUNTIME_EVENT_LOOP_H_
#define HOSTMM_RUNTIME_EVENT_LOOP_H_

#include <liburing.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace hostmm {

class EventLoop {
 public:
  enum class Progress { kDrained, kMore };
  using Handler = std::function<Progress()>;

  struct WatchId {
    uint32_t slot = 0;
    uint32_t generation = 0;  // 0: no watch
  };

  // Errors: Unavailable with the remedy when the kernel refuses io_uring.
  static absl::StatusOr<std::unique_ptr<EventLoop>> Create();
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  // Calls `handler` whenever `fd` becomes readable, hung up or broken, also if it is so already.
  WatchId Watch(int fd, Handler handler);
  // No call of the handler after this. A stale or empty id is nothing.
  void Unwatch(WatchId* id);

  // Calls `tick` every `period`, from within Run.
  void SetTick(absl::Duration period, std::function<void()> tick);

  // Runs until Stop. Errors: io_uring broke.
  absl::Status Run();
  void Stop() { stopped_ = true; }

 private:
  struct Slot {
    uint32_t generation = 1;
    int fd = -1;
    std::shared_ptr<Handler> handler;  // null: free. Shared, so that a handler may unwatch itself.
    bool queued = false;               // its tag is in ready_
  };

  EventLoop() = default;
  io_uring_sqe* NextSqe();
  void ArmPoll(uint32_t slot);
  void ArmTick();
  void ArmBroken();
  void Dispatch(uint64_t tag);
  void OnCompletion(uint64_t tag, int result, uint32_t flags);
  void ServeReady();

  io_uring ring_ = {};
  bool ring_ready_ = false;
  bool stopped_ = false;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_slots_;
  std::vector<uint64_t> broken_;  // tags whose poll the kernel ended; armed again on the next tick
  std::vector<uint64_t> ready_;   // tags to be called without a completion
  __kernel_timespec tick_period_ = {};
  std::function<void()> tick_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_EVENT_LOOP_H_
