// The snapshots that somebody knows: by handle, by name, or because something is under way with
// them.
//
// Handle:   one end of a socket pair; the other end is the pager's. Whoever has it may ask about
//           the snapshot and map it; it is recognised by its cookie (SO_COOKIE) when it comes back:
//           all copies have it, and no other socket gets it, ever. When its last copy is closed,
//           the pager's end says so.
// Life:     a TakenSnapshot is here as long as it has a handle, a name or a hold. Its mm in the
//           tables has a pin for just as long, and lives on with its views after that. A lost one
//           has no mm.
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOT_SET_H_
#define HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOT_SET_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "runtime/event_loop.h"
#include "runtime/guest.h"
#include "runtime/image/image_format.h"
#include "runtime/packet.h"
#include "runtime/unique_fd.h"
#include "vmm/units.h"

namespace hostmm {

struct TakenSnapshot {
  uint64_t number = 0;  // of this pager's snapshots, from 1
  MmId mm;              // its own; of a lost one: dead
  MmId source;
  ImageId image;          // of its images
  uint64_t taken_ns = 0;  // CLOCK_REALTIME
  std::string name;       // of the region, for people
  uint64_t length = 0;    // bytes
  uint64_t unit = 0;      // bytes that are copied at once
  uid_t uid = 0;          // who may have it by name
  std::string kept;       // the name under which it lives on; empty: none
  std::string lost;       // why; empty: whole
  uint32_t holds = 0;     // handles, the name, and what is under way
};

class SnapshotSet {
 public:
  using OnPacket = std::function<void(TakenSnapshot*, Packet)>;
  // Nobody holds it any more.
  using OnDropped = std::function<void(TakenSnapshot*)>;

  SnapshotSet(EventLoop* loop, OnPacket on_packet, OnDropped on_dropped)
      : loop_(loop), on_packet_(std::move(on_packet)), on_dropped_(std::move(on_dropped)) {}

  // Without a hold yet; the caller takes one, or it stays for ever.
  TakenSnapshot* Add(const TakenSnapshot& snapshot);
  void Hold(TakenSnapshot* snapshot) { ++snapshot->holds; }
  void Unhold(TakenSnapshot* snapshot);
  // The same, by number: whether it is lost or not.
  void UnholdNumber(uint64_t number);

  // A new handle. Errors: the failed system call.
  absl::StatusOr<UniqueFd> NewHandle(TakenSnapshot* snapshot);
  // nullptr: `fd` is no handle.
  TakenSnapshot* FindHandle(int fd) const;
  TakenSnapshot* FindMm(MmId mm) const;
  TakenSnapshot* FindKept(const std::string& name) const;
  std::vector<TakenSnapshot*> OfSource(MmId source) const;

 private:
  struct Handle {
    WatchedFd ours;
    uint64_t snapshot = 0;
  };

  TakenSnapshot* Find(uint64_t number) const;
  EventLoop::Progress OnHandle(uint64_t cookie);

  EventLoop* const loop_;
  const OnPacket on_packet_;
  const OnDropped on_dropped_;
  uint64_t next_ = 1;
  std::map<uint64_t, std::unique_ptr<TakenSnapshot>> snapshots_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Handle>> handles_;  // by cookie
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOT_SET_H_
