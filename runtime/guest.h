// A guest as the pager's kernel side knows it: its descriptors and what it has asked for and not
// finished. What it has mapped stands in the tables (vmm/), under the same id.
//
// Owner:    the pager's GuestSet.
// Threads:  the loop thread.
// Life:     made at kHello or, for a forked child, at its parent's kForkIntent (then `pid` is 0
//           until kChildAttach); gone when its channel closes or its pidfd says that it is dead,
//           whichever comes first.
#ifndef HOSTMM_RUNTIME_GUEST_H_
#define HOSTMM_RUNTIME_GUEST_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/event_loop.h"
#include "runtime/unique_fd.h"
#include "vmm/region.h"
#include "vmm/units.h"

namespace hostmm {

// A watched descriptor: the watch goes before the descriptor does (see EventLoop).
struct WatchedFd {
  UniqueFd fd;
  EventLoop::WatchId watch;

  void Close(EventLoop* loop) {
    loop->Unwatch(&watch);
    fd.reset();
  }
};

// Whether the agent has been told to watch: not while there is none, or its channel is full.
struct WatchedBoard {
  enum class Told : uint8_t { kNo, kYes };
  MmId mm;
  Told told = Told::kNo;
};

// A private region that its guest has asked to fork (kForkCow), and the snapshot that was taken for
// it, which is held meanwhile.
struct CowFork {
  GuestAddr va;
  GuestAddr end;
  MmId snapshot;
  uint64_t number = 0;  // of the snapshot (runtime/snapshot/snapshot_set.h)
  uint32_t freeze = 0;  // that it has to end
};

// A file that is frozen, as far as this guest's agent was told and has answered.
struct ToldFrozen {
  MmId mm;
  // Of the last kFreeze; 0: none of which the answer counts. An earlier one may be from before a
  // thaw.
  uint32_t order = 0;
  // Its library knows: a child that it forks registers itself for everything.
  enum class Knows : uint8_t { kNo, kYes } knows = Knows::kNo;
};

struct Guest {
  GuestId id;
  pid_t pid = 0;
  uid_t uid = 0;
  gid_t gid = 0;
  std::string program;
  WatchedFd channel;
  WatchedFd uffd;   // none in native mode, and until it attaches
  WatchedFd pidfd;  // none until the pid is known
  // The pager's tick at which it was made: one that does not attach is not waited for.
  uint64_t born = 0;
  // A file made by kCreate that kMap has not come for yet. Pinned in the tables meanwhile.
  std::optional<MmId> created;
  // Whether somebody there reads orders.
  bool has_agent = false;
  // Number of the order that it has not answered yet, or 0. One at a time.
  uint32_t open_order = 0;
  // Packets that came on its channel, without those of its agent (board.h: Slot::packets).
  uint32_t packets = 0;
  // The files that it maps opt-in: those whose boards its agent watches, or is to watch.
  std::vector<WatchedBoard> boards;
  // It is removing this memory (between its kMayPunch and its kPunch): what goes with that no
  // snapshot that is taken meanwhile would have.
  std::optional<AddrRange> punches;
  // Its kRemove that have not been answered; they share it, and may live longer.
  std::shared_ptr<uint32_t> open_removals = std::make_shared<uint32_t>(0);
  // Its kForAll that have not been answered.
  uint32_t open_for_all = 0;
  std::vector<ToldFrozen> frozen;  // runtime/snapshot/freezer.h
  // What its next kForkIntent's child is to have views of.
  std::vector<CowFork> cow_forks;
};

class GuestSet {
 public:
  // Takes over `guest` under its id.
  Guest* Add(std::unique_ptr<Guest> guest);
  // nullptr if that guest is gone.
  Guest* Find(GuestId id) const;
  void Erase(GuestId id);
  size_t size() const { return guests_.size(); }
  uint32_t CountOf(uid_t uid) const {
    const auto it = per_user_.find(uid);
    return it == per_user_.end() ? 0 : it->second;
  }
  void ForEach(const std::function<void(Guest&)>& fn) const {
    for (const auto& [slot, guest] : guests_) fn(*guest);
  }

 private:
  absl::flat_hash_map<uint32_t, std::unique_ptr<Guest>> guests_;  // by slot
  absl::flat_hash_map<uid_t, uint32_t> per_user_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_GUEST_H_
