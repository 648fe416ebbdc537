// Orders to several guests at once, with one end: when all have answered, or gone, or some are
// late.
//
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_VIEW_ORDERS_H_
#define HOSTMM_RUNTIME_SNAPSHOT_VIEW_ORDERS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "runtime/guest.h"
#include "runtime/orders.h"
#include "runtime/protocol.h"

namespace hostmm {

class ViewOrders {
 public:
  // kSomeLate: or could not do it, or has too many orders to carry out.
  enum class End : uint8_t { kAllDone, kSomeLate };
  using Done = std::function<void(End)>;
  struct Item {
    GuestId guest;
    protocol::Message order;
  };

  ViewOrders(GuestSet* guests, Orders* orders) : guests_(guests), orders_(orders) {}

  // `done` is called once, maybe before this returns; `each` for each answer, also a late one.
  using Each = std::function<void(GuestId)>;
  void Send(const std::vector<Item>& items, Done done, const Each& each = nullptr);
  void OnGuestGone(GuestId guest);
  // Four times a second.
  void Tick();

 private:
  struct Group {
    std::vector<GuestId> waiting;  // once for each order
    uint32_t ticks = 0;
    End end = End::kAllDone;
    Done done;
  };
  void OnAnswer(uint64_t number, GuestId guest, protocol::Status status);
  void EndIfLast(uint64_t number);
  void Finish(uint64_t number, End end);

  GuestSet* const guests_;
  Orders* const orders_;
  uint64_t next_ = 1;
  std::map<uint64_t, Group> groups_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_VIEW_ORDERS_H_
