// Orders to the agents of guests: one at a time per guest, each answered once.
//
// Threads:  the loop thread.
// Errors:   an order of Send that cannot be sent (no agent, another is open, the channel is full or
//           gone) is not kept; whoever wanted it asks again when there is a reason to. One of Queue
//           is kept until it can be. A guest that never answers gets no more.
#ifndef HOSTMM_RUNTIME_ORDERS_H_
#define HOSTMM_RUNTIME_ORDERS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>

#include "absl/container/flat_hash_map.h"
#include "runtime/guest.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"

namespace hostmm {

class Orders {
 public:
  enum class SendResult { kSent, kBusy };
  using Done = std::function<void(const protocol::Message& answer)>;

  // Sends `order`; its number is set here. `done` may be null. It is not called if the guest goes.
  SendResult Send(Guest& guest, protocol::Message order, Done done);
  // Sends it now, or behind those that are open or queued. As Send otherwise.
  void Queue(Guest& guest, const protocol::Message& order, Done done);
  // Orders that wait for the guest's answers to others, and for how many ticks none of them could
  // be sent.
  size_t QueuedFor(const Guest& guest) const;
  uint32_t TicksWithoutProgress(const Guest& guest) const;
  // An answer came. One that was not asked for is ignored.
  void OnDone(Guest& guest, const protocol::Message& answer);
  void OnGuestGone(GuestId guest);
  // Sends what is queued and could not be sent. Four times a second.
  void Tick(const GuestSet& guests);

 private:
  struct Queued {
    protocol::Message order;
    Done done;
  };
  struct Waiting {
    std::deque<Queued> orders;  // never empty
    uint32_t ticks = 0;         // since the last one of them was sent
  };
  void SendQueued(Guest& guest);

  uint32_t next_ = 1;
  absl::flat_hash_map<uint32_t, Done> open_;       // by slot
  absl::flat_hash_map<uint32_t, Waiting> queued_;  // by slot
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_ORDERS_H_
