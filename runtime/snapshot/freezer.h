// Freezing and thawing a live file in all guests that map it: after a freeze no write to it goes
// unseen.
//
// Freeze:   faults of the file wait -> for each guest that maps it: everything is registered with
//           its userfaultfd, from outside; its agent is told (kFreeze) to zap its mappings and to
//           mark them, so that a child that is forked later registers itself -> it says so
//           (kFreezeDone) -> when the last one has, the moment of the snapshot is now, and the
//           faults go on. Since whoever has been frozen waits with its next write until all are,
//           what the file holds at that moment is a state that existed.
// hugetlb:  is write-protected from outside at PMD level instead of zapped; reads go on natively.
// Forks:    a kForkIntent that comes before its guest's kFreezeDone announces a child that does not
//           know: it is a member from then on, and is frozen when it attaches. (The agent says
//           kFreezeDone under the lock that fork takes, so the order of the two is that of what was
//           done.)
// Late:     an agent that has not answered within kPatienceTicks, or cannot zap (locked memory):
//           its mappings are write-protected from outside, which takes milliseconds per GiB. Such a
//           guest does not know that it is frozen, though it has been told so (unless its channel
//           is full: it has been stopped for long): if it forks, nobody watches the child
//           (Forked::kUnseen). A child that has been announced and does not come ends the freeze;
//           so does a guest that is still in the kernel's MADV_REMOVE (Guest::punches).
// Numbers:  each kFreeze has one of its own. An answer counts if it is to the last one that the
//           guest was sent, and no kThaw was sent after that.
// Again:    a guest on hugetlb that knows already is write-protected, told and not waited for; but
//           one that asks for a fork of its own memory is, until its kForkIntent.
// Holding:  with kFreeze each agent gets a duplicate of its userfaultfd and the read end of the
//           life pipe.
// Threads:  the loop thread.
// Errors:   an errno to the callback; then nothing is frozen that was not before.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_FREEZER_H_
#define HOSTMM_RUNTIME_SNAPSHOT_FREEZER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "runtime/guest.h"
#include "runtime/protocol.h"
#include "runtime/snapshot/live_files.h"
#include "vmm/host_tables.h"

namespace hostmm {

class Freezer {
 public:
  // EAGAIN: a guest left meanwhile, or is removing memory; ETIMEDOUT: a child does not come;
  // ENOTSUP: one cannot be frozen.
  using Done = std::function<void(int error)>;
  // A freeze is over, and the faults that waited for it have been served.
  using Ended = std::function<void(MmId)>;
  // Faults that waited for the end of a freeze.
  using Resume = std::function<void(const FaultEvent&)>;

  // Calls back in a later turn of the loop.
  using Soon = std::function<void(std::function<void()>)>;

  // All outlive it. `normal_modes`: UFFDIO_REGISTER_MODE_* of memory that is not frozen.
  Freezer(HostTables* tables, GuestSet* guests, LiveFiles* files, uint64_t normal_modes)
      : tables_(tables), guests_(guests), files_(files), normal_modes_(normal_modes) {}

  void SetResume(Resume resume) { resume_ = std::move(resume); }
  void SetEnded(Ended ended) { ended_ = std::move(ended); }
  void SetSoon(Soon soon) { soon_ = std::move(soon); }

  // Why not everybody who maps the file can be frozen; empty: they can.
  std::string WhyNot(MmId mm) const;

  // REQUIRES: no freeze of the file is open. `done` is called, once, maybe before this returns.
  void Freeze(LiveFile* file, Done done);
  // Its guests follow one by one, in later turns of the loop. REQUIRES: it is not kFreezing.
  void Thaw(LiveFile* file);

  // Whether the fault has been kept until the end of a freeze.
  enum class Park : uint8_t { kNo, kYes };
  Park ParkFault(MmId mm, const FaultEvent& event);

  // A packet of the guest's agent.
  void OnFreezeDone(Guest& guest, const protocol::Message& message);
  // The guest says otherwise that its mappings of the file are zapped, for that freeze.
  void OnZapped(Guest& guest, MmId mm, uint32_t freeze);
  // `child` has just been copied from `parent` in the tables. kUnseen: of one of the files in
  // `unseen` the child may write what nobody sees.
  enum class Forked : uint8_t { kWatched, kUnseen };
  Forked OnFork(const Guest& parent, Guest& child, std::vector<MmId>* unseen);
  // It has a userfaultfd and perhaps an agent now, or a new agent.
  void OnAttach(Guest& guest);
  // The file has just been mapped in the guest, and registered with ModesFor(file).
  void OnMapped(Guest& guest, MmId mm);
  // The guest maps nothing of the file any more.
  void OnUnmapped(Guest& guest, MmId mm);
  // A child that registered itself for everything: what is not frozen any more is registered anew.
  void OnTrackedChild(Guest& guest);
  void OnGuestGone(GuestId guest);
  // A guest that maps the file lives on without us: a freeze that is open fails with EAGAIN.
  void OnLeft(MmId mm);
  // Four times a second.
  void Tick();

  // Or about to be.
  bool IsFrozen(MmId mm) const;
  uint64_t ModesFor(MmId mm) const;

 private:
  enum class Told : uint8_t { kYes, kNo };

  bool IsGone(const Guest& guest, const Region& region) const;
  // Whether the guest is just removing memory of the file.
  bool Punches(const Guest& guest, MmId mm) const;
  // The guest's regions of the file that can be written.
  std::vector<Region> RegionsOf(GuestId guest, MmId mm) const;
  std::vector<GuestId> MappersOf(MmId mm) const;
  static ToldFrozen* RecordOf(Guest& guest, MmId mm);
  static ToldFrozen& RecordFor(Guest& guest, MmId mm);
  static bool Knows(const Guest& guest, MmId mm);
  static void SetKnows(Guest& guest, MmId mm);
  static void Forget(Guest& guest, MmId mm);
  // RETURNS an errno, or 0.
  int Register(const Guest& guest, MmId mm) const;
  Told Tell(Guest& guest, const LiveFile& file);
  int WriteProtect(const Guest& guest, MmId mm) const;
  int FreezeGuest(Guest& guest, LiveFile* file);
  void ThawGuest(Guest& guest, MmId mm) const;
  void ThawNext();
  void Release(LiveFile* file, GuestId guest);
  void EndIfLast(LiveFile* file);
  void EndForTheLate(LiveFile* file);
  int FreezeLate(Guest& guest, const LiveFile& file);
  void End(LiveFile* file, int error);

  HostTables* const tables_;
  GuestSet* const guests_;
  LiveFiles* const files_;
  const uint64_t normal_modes_;
  uint32_t next_ = 1;  // number of the next freeze of whatever file, or of the next kFreeze
  Resume resume_ = [](const FaultEvent&) {};
  Ended ended_ = [](MmId) {};
  Soon soon_;
  struct Thawing {
    GuestId guest;
    MmId mm;
  };
  std::deque<Thawing> thawing_;  // who still has the registration of a file that is not frozen
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_FREEZER_H_
