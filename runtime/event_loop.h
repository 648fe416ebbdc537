// The pager's one event loop, over io_uring: multishot poll on every descriptor, one timer, and
// reads and writes of files that may take their time.
//
// It knows nothing of pages. A handler is called on the loop's thread when its descriptor is ready,
// and must read until the kernel has no more (the poll reports edges), or return kMore to be called
// again after the others had their turn.
//
// Reads and writes are done by threads of the kernel, never on the loop's: neither a slow disk nor
// a full pipe holds the loop up. Signals that a write can raise (SIGPIPE, SIGXFSZ) are blocked on
// the thread that makes the loop; the write has EPIPE or EFBIG.
//
// Threads:  everything on the thread that makes the loop, but Stop from a handler only.
// Owner:    the descriptors stay the caller's. Unwatch before closing one: a poll keeps its file
//           alive, and the file of a userfaultfd must go at once. The destructor cancels transfers,
//           and waits until the kernel has let go of their memory.
#ifndef HOSTMM_RUNTIME_EVENT_LOOP_H_
#define HOSTMM_RUNTIME_EVENT_LOOP_H_

#include <liburing.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
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

  struct TransferId {
    uint64_t number = 0;  // 0: none
  };
  // RESULT of a transfer: bytes, which may be fewer than asked for, or -errno.
  using TransferDone = std::function<void(int result)>;

  // Reads or writes [data, data + bytes) at `offset` of the file, or at its own position
  // (kOwnPosition: for pipes and sockets. Not for files: after a write that was cut short, as by
  // RLIMIT_FSIZE, the kernel has not moved it; 6.18). `done` is called later, from Run, once; a
  // pipe that has no room is waited for, also if it is O_NONBLOCK. Until then `fd` and the memory
  // stay.
  static constexpr int64_t kOwnPosition = -1;
  TransferId Read(int fd, std::span<std::byte> data, int64_t offset, TransferDone done);
  TransferId Write(int fd, std::span<const std::byte> data, int64_t offset, TransferDone done);
  // Asks for the end of one; `done` is called all the same, with -ECANCELED or what was done
  // already.
  void Cancel(TransferId id);
  // Closes `fd`, which is the loop's now, without waiting for what its file does then: NFS writes
  // what it has, FUSE asks its server.
  void Close(int fd);

  // Calls `then` from Run, after what is ready now has had its turn.
  void Soon(std::function<void()> then);

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

  struct Transfer {
    TransferDone done;
    enum class State { kWanted, kUnwanted, kClose } state;
  };

  EventLoop() = default;
  io_uring_sqe* NextSqe();
  TransferId Begin(io_uring_sqe* sqe, Transfer transfer);
  void EndTransfer(uint64_t tag, int result);
  bool CancelUnwanted();
  void ArmCancel();
  void EndAllTransfers();
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
  uint64_t last_transfer_ = 0;
  std::map<uint64_t, Transfer> transfers_;  // under way, by number
  bool cancel_armed_ = false;
  __kernel_timespec tick_period_ = {};
  std::function<void()> tick_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_EVENT_LOOP_H_
