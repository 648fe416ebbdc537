// What the pager does for one guest's packets. One function per kind of message, each checking what
// it uses: a packet is a guest's word, and a wrong one ends or refuses that guest's request alone.
//
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_SESSION_H_
#define HOSTMM_RUNTIME_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/adopter.h"
#include "runtime/file_table.h"
#include "runtime/filler.h"
#include "runtime/frame_maker.h"
#include "runtime/guest.h"
#include "runtime/names.h"
#include "runtime/opt_in.h"
#include "runtime/orders.h"
#include "runtime/packet.h"
#include "runtime/snapshot/snapshots.h"
#include "runtime/userfaultfd.h"
#include "vmm/host_tables.h"

namespace hostmm {

// What one guest may take of the regions that all share (vmm/segment.h): a sixteenth. Arbitrary;
// far above what honest programs have, and enough is left for the others.
inline constexpr uint32_t kRegionsPerGuest = SegmentConfig{}.max_regions / 16;

// What sessions need of the pager besides the tables.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  enum class Room { kFree, kFull };
  // Whether this user may have one more guest.
  virtual Room RoomForGuest(uid_t uid) const = 0;
  // A child that `parent` is about to fork, on its own channel.
  virtual Guest& AddChild(Guest& parent, GuestId child, UniqueFd channel) = 0;
  // The guest's userfaultfd and process are known: watch them.
  virtual void WatchGuest(Guest& guest, UniqueFd uffd, pid_t pid) = 0;
};

class Session {
 public:
  // How guests run: constant while the pager lives.
  struct Terms {
    protocol::Mode mode = protocol::Mode::kNative;
    uint64_t features = 0;
    uint64_t register_modes = 0;
    uint32_t region_flags = 0;
    uint64_t max_file_bytes = 0;
  };
  // What is counted for the line at the end.
  struct Ledger {
    uint64_t regions = 0;
    uint64_t adopted = 0;
    uint64_t region_bytes = 0;
    uint64_t refused = 0;
  };

  // What it works on; all of it outlives the Session. `store` gives the frames; `second` (may be
  // null) those that are taken when it has none left.
  struct Parts {
    HostTables* tables;
    FileTable* files;
    Adopter* adopter;
    Orders* orders;
    OptIn* opt_in;
    Filler* filler;
    Snapshots* snapshots;
    const UffdAccess* uffd;
    const FrameStore* store;
    const FrameStore* second;
    SessionHost* host;
  };

  Session(const Terms& terms, const Parts& parts)
      : terms_(terms),
        tables_(parts.tables),
        files_(parts.files),
        adopter_(parts.adopter),
        orders_(parts.orders),
        opt_in_(parts.opt_in),
        filler_(parts.filler),
        snapshots_(parts.snapshots),
        uffd_(parts.uffd),
        host_(parts.host),
        frames_(parts.store, parts.second),
        names_(parts.tables, parts.files, &frames_, terms.max_file_bytes) {}
  // Its parts name each other.
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  enum class Verdict { kKeep, kEndGuest };
  // REQUIRES: the packet came on the guest's channel, after its kHello.
  Verdict OnPacket(Guest& guest, Packet packet);

  // Answers a kHello of a new guest on its reply socket.
  void Welcome(const Packet& hello) const;

  // The region of that name, if `peer` may read it. RETURNS an errno, or 0.
  int FindName(const Peer& peer, const std::string& name, MmId* mm) const;

  // Gives back what the guest has asked for and not finished, and everything that it maps.
  void Forget(Guest& guest);

  const Ledger& ledger() const { return ledger_; }
  // Why a region got a weaker rung than asked for; empty if none did.
  const std::string& why_weaker() const { return frames_.why_weaker(); }

 private:
  // A file that a guest has mapped and hands in.
  struct HandedIn {
    AdoptedKey key;
    uint64_t bytes = 0;                      // of the file, or what is mapped of it
    FrameKind frames = FrameKind::kAdopted;  // if it is not ours
    enum class Collapse : uint8_t { kNo, kYes } collapse = Collapse::kNo;
    uint32_t flags = 0;  // RegionFlags that the descriptor brings
  };

  Verdict Dispatch(Guest& guest, Packet& packet);
  protocol::Message Create(Guest& guest, const protocol::Message& ask, UniqueFd* file);
  protocol::Message Map(Guest& guest, const protocol::Message& ask);
  protocol::Message MapAgain(Guest& guest, const protocol::Message& ask, MmId mm);
  protocol::Message Adopt(Guest& guest, const protocol::Message& ask, const UniqueFd& file);
  protocol::Message Move(Guest& guest, const protocol::Message& ask);
  protocol::Message Access(const Guest& guest, const protocol::Message& ask) const;
  protocol::Message IsShared(const Guest& guest, const protocol::Message& ask) const;
  protocol::Message OpenName(const Guest& guest, const protocol::Message& ask, UniqueFd* file);
  protocol::Message UnlinkName(const Guest& guest, const protocol::Message& ask);
  void OnSnapshotQuestion(Guest& guest, Packet& packet);
  // Notes: what the guest has done already.
  Verdict OnNote(Guest& guest, const protocol::Message& note);
  void SetAgent(Guest& guest, const protocol::Message& note);
  void Unmap(Guest& guest, const protocol::Message& note);
  void Protect(Guest& guest, const protocol::Message& note);
  void Punch(Guest& guest, const protocol::Message& note);
  void SetFlags(Guest& guest, const protocol::Message& note);
  void Fill(Guest& guest, const protocol::Message& note);
  Verdict Fork(Guest& guest, Packet& packet);
  Verdict Attach(Guest& guest, Packet& packet);

  static bool HandIn(const protocol::Message& ask, int file, HandedIn* handed);
  // The mm of the file: found, or made. Pinned.
  TableStatus MmOf(const Guest& guest, const HandedIn& handed, MmId* mm);
  // Enters the region into the tables; whatever stood there is gone.
  protocol::Message Place(Guest& guest, const RegionSpec& spec);
  bool HasRoomForFile(uid_t uid) const;
  bool HasRoomForRegion(const Guest& guest) const;
  // Parts of the guest's regions in [va, va + length).
  std::vector<Region> PartsIn(const Guest& guest, uint64_t va, uint64_t length) const;
  // Takes them out of the tables, with the files that nobody needs any more.
  void Release(Guest& guest, GuestAddr va, PageCount length);
  void Register(Guest& guest, MmId mm, GuestAddr va, PageCount length) const;
  uint64_t IsFrozen(Guest& guest, MmId mm) const;
  void DropCreated(Guest& guest);

  const Terms terms_;
  HostTables* const tables_;
  FileTable* const files_;
  Adopter* const adopter_;
  Orders* const orders_;
  OptIn* const opt_in_;
  Filler* const filler_;
  Snapshots* const snapshots_;
  const UffdAccess* const uffd_;
  SessionHost* const host_;
  FrameMaker frames_;
  Names names_;
  Ledger ledger_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SESSION_H_
