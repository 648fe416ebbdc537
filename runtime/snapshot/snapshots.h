// Snapshots as sessions, tools and the fault road see them: take one, map a view of one, say what
// one is, and keep it what it was.
//
//   Session, tools ->  Snapshots  -> SnapshotSet    who holds which snapshot
//                         |       -> Freezer        the one revoke for all writers
//   Resolver       ->     |       -> FirstWrites    pre-images
//                         |       -> Views          what readers see
//                         '------ -> Exports        images
//
// Threads:  the loop thread.
// Errors:   answers of kFailed with an errno and a line that says why.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOTS_H_
#define HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOTS_H_

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "runtime/event_loop.h"
#include "runtime/file_table.h"
#include "runtime/guest.h"
#include "runtime/orders.h"
#include "runtime/packet.h"
#include "runtime/snapshot/first_writes.h"
#include "runtime/snapshot/freezer.h"
#include "runtime/snapshot/live_files.h"
#include "runtime/snapshot/snapshot_set.h"
#include "runtime/snapshot/view_orders.h"
#include "runtime/snapshot/views.h"
#include "runtime/worker_pool.h"
#include "vmm/cow_tables.h"
#include "vmm/fault.h"
#include "vmm/host_tables.h"

namespace hostmm {

class ImageWriter;

class Snapshots {
 public:
  struct Parts {
    HostTables* tables;
    FileTable* files;
    GuestSet* guests;
    Orders* orders;
    WorkerPool* pool;
    EventLoop* loop;
  };
  struct Terms {
    // kTooOld: pages cannot be given back write-protected, or first writes not seen.
    enum class Uffd : uint8_t { kNone, kTooOld, kHere } uffd = Uffd::kNone;
    uint64_t normal_modes = 0;  // UFFDIO_REGISTER_MODE_* of memory that is not frozen
    uint64_t memory_limit = 0;  // bytes of pre-images of one file; 0: none
    CowPolicy policy;
  };
  // Of a userfaultfd that offers these UFFD_FEATURE_*.
  static Terms::Uffd UffdWith(uint64_t features);
  // A region by its name, if `peer` may read it. RETURNS an errno, or 0.
  using ResolveName = std::function<int(const Peer& peer, const std::string& name, MmId* mm)>;

  Snapshots(const Parts& parts, const Terms& terms);
  ~Snapshots();
  Snapshots(const Snapshots&) = delete;
  Snapshots& operator=(const Snapshots&) = delete;

  void SetResume(Freezer::Resume resume) { freezer_.SetResume(std::move(resume)); }

  // Questions of guests; each takes the reply socket out of the packet when it answers later.
  void Take(Guest& guest, Packet& packet);
  void ViewFile(Packet& packet);
  void MapView(Guest& guest, Packet& packet);
  void Settle(Guest& guest, Packet& packet);
  void ForkCow(Guest& guest, Packet& packet);
  void Remove(Guest& guest, Packet& packet);
  // Of a tool: kSnapshotOf, kDropKept.
  void OnTool(const Peer& peer, Packet& packet, const ResolveName& resolve);

  void OnFreezeDone(Guest& guest, const protocol::Message& message) {
    freezer_.OnFreezeDone(guest, message);
  }
  // A kForkIntent has come; the tables have not copied the parent yet.
  void BeforeFork(Guest& parent);
  // `child` has been copied; nullptr: it could not be, and goes on without us.
  void AfterFork(Guest& parent, Guest* child);
  // The guest has a userfaultfd and perhaps an agent, or another agent.
  void OnAttach(Guest& guest);
  // A region of the file was mapped at a new place and registered with ModesFor. kYes: it is
  // frozen.
  enum class Frozen : uint8_t { kNo, kYes };
  Frozen OnMapped(Guest& guest, MmId mm);
  uint64_t ModesFor(MmId mm) const { return freezer_.ModesFor(mm); }
  // The guest has unmapped `gone`, in the tables too.
  void OnUnmapped(Guest& guest, const std::vector<Region>& gone);
  // The guest's channel has ended; nothing of it has been closed yet.
  void OnLeaving(const Guest& guest);
  // A child that was announced did not come in time, and may yet live.
  void OnSilent(const Guest& guest);
  // The guest maps the file and is not watched: snapshots of it are lost, and none is taken.
  void Abandon(const Guest& guest, MmId mm);
  // Its library registered itself as if files were frozen that may not be any more.
  void OnTrackedChild(Guest& guest) { freezer_.OnTrackedChild(guest); }
  // It is in no table any more.
  void OnGone(Guest& guest);
  // Four times a second.
  void Tick();

  // The fault road. `any()`: whether it has to ask at all.
  bool any() const { return !live_.empty(); }
  Freezer::Park Park(const FaultEvent& event);
  void OnFirstWrite(const FaultEvent& event, const FaultDecision& decision) {
    first_writes_.OnWrite(event, decision);
  }
  void OnViewTouch(Guest& guest, const FaultEvent& event) { views_.OnTouch(guest, event); }
  // Somebody may write to the file unseen; nobody may before `then`.
  void LoseFor(
      MmId source, const std::string& why, std::function<void()> then = [] {}) {
    Lose(source, why, std::move(then));
    freezer_.OnLeft(source);
  }
  bool IsFrozen(MmId mm) const { return freezer_.IsFrozen(mm); }

  // The tables have released the mm: a snapshot, or a file that had some.
  void OnReleased(MmId mm);

 private:
  struct Losing {
    std::vector<std::function<void()>> then;
    std::vector<MmId> open;  // snapshots whose views have not all been replaced
  };
  // Who asked for a snapshot.
  struct Asker {
    UniqueFd reply;
    uid_t uid = 0;
  };
  struct Removal;
  struct Unwatched {
    pid_t pid = 0;  // 0: it is not known who
    UniqueFd pidfd;
  };
  void AddUnwatched(MmId mm, pid_t pid, const UniqueFd& pidfd);

  void TakeOf(MmId source, std::shared_ptr<Asker> asker);
  std::string WhyNot(MmId source);
  void WaitForFreeze(MmId source, const Asker& asker, std::function<void()> request);
  static const char* WhyNotFrozen(int error);
  void OnFrozen(MmId source, const std::shared_ptr<Asker>& asker, int error);
  TakenSnapshot* Record(MmId source, uid_t uid);
  void AnswerHandle(int reply, TakenSnapshot* snapshot);
  void OnHandlePacket(TakenSnapshot* snapshot, Packet packet);
  void Export(TakenSnapshot* snapshot, Packet& packet);
  void SayInfo(const TakenSnapshot& snapshot, const Packet& packet) const;
  void Keep(TakenSnapshot* snapshot, const Packet& packet);
  void OnDropped(TakenSnapshot* snapshot);
  void Unpin(MmId mm);
  void ThawIfLast(MmId source);
  void RunRequests(MmId source);
  void Lose(MmId source, const std::string& why, std::function<void()> then);
  void OnViewsLost(MmId source, MmId snapshot);
  void EndLosing(MmId source);
  void CountSnapshots(MmId source);
  void GiveBack(MmId source);
  enum class Held : uint8_t { kYes, kNo };
  Held HoldView(Guest& guest, MmId snapshot);
  enum class Mapped : uint8_t { kNo, kYes };
  Mapped MapCowViews(const Guest& parent, const Guest& child);
  void Disown(const Guest& child);
  void LoseForUnwatchedChild(GuestId guest);
  void ForkCowOf(GuestId id, AddrRange range, const std::shared_ptr<Asker>& asker);
  int StartCowFork(Guest& guest, AddrRange range, MmId source, const Asker& asker);
  void AnswerCowFork(Guest& guest, AddrRange range, const TakenSnapshot& taken, int reply,
                     const UniqueFd& file);
  std::optional<CowFork> OpenCowFork(const Guest& guest, const LiveFile& file) const;
  void DropCowFork(Guest& guest, GuestAddr va);
  void DropCowForks(Guest& guest);
  bool MapsFile(GuestId guest, MmId mm) const;
  void RemoveNext(const std::shared_ptr<Removal>& removal);
  void Punch(MmId mm, FilePage first, PageCount count);
  static uint64_t KeyOf(MmId mm) { return (static_cast<uint64_t>(mm.generation) << 32) | mm.slot; }

  HostTables* const tables_;
  FileTable* const files_;
  GuestSet* const guests_;
  WorkerPool* const pool_;
  EventLoop* const loop_;
  const Terms terms_;
  CowTables cow_;
  LiveFiles live_;
  ViewOrders orders_;
  Freezer freezer_;
  Views views_;
  FirstWrites first_writes_;
  SnapshotSet set_;
  // Who maps a file and is not watched any more: nobody sees what they write.
  absl::flat_hash_map<uint64_t, std::vector<Unwatched>> unwatched_;  // by file
  std::vector<std::weak_ptr<ImageWriter>> exports_;                  // some may have ended
  absl::flat_hash_map<uint64_t, Losing> losing_;                     // by source
  absl::flat_hash_map<uint64_t, std::deque<std::function<void()>>> requests_;  // by source
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOTS_H_
