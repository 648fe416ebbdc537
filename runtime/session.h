// What the pager does for one guest's packets. One function per kind of message, each checking what
// it uses: a packet is a guest's word, and a wrong one ends or refuses that guest's request alone.
// What maps memory is done by GuestMappings.
//
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_SESSION_H_
#define HOSTMM_RUNTIME_SESSION_H_

#include <cstdint>
#include <string>

#include "runtime/adopter.h"
#include "runtime/file_table.h"
#include "runtime/filler.h"
#include "runtime/frame_maker.h"
#include "runtime/guest.h"
#include "runtime/guest_mappings.h"
#include "runtime/names.h"
#include "runtime/opt_in.h"
#include "runtime/orders.h"
#include "runtime/packet.h"
#include "runtime/snapshot/snapshots.h"
#include "runtime/userfaultfd.h"
#include "vmm/host_tables.h"

namespace hostmm {

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
  struct Ledger : GuestMappings::Ledger {
    uint64_t refused = 0;  // questions
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
        orders_(parts.orders),
        opt_in_(parts.opt_in),
        filler_(parts.filler),
        snapshots_(parts.snapshots),
        uffd_(parts.uffd),
        host_(parts.host),
        frames_(parts.store, parts.second),
        mappings_({.region_flags = terms.region_flags, .max_file_bytes = terms.max_file_bytes},
                  {.tables = parts.tables,
                   .files = parts.files,
                   .frames = &frames_,
                   .adopter = parts.adopter,
                   .opt_in = parts.opt_in,
                   .snapshots = parts.snapshots}),
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

  Ledger ledger() const { return {mappings_.ledger(), refused_}; }
  // Why a region got a weaker rung than asked for; empty if none did.
  const std::string& why_weaker() const { return frames_.why_weaker(); }

 private:
  Verdict Dispatch(Guest& guest, Packet& packet);
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
  protocol::Message MayPunch(Guest& guest, const protocol::Message& ask) const;
  void Punch(Guest& guest, const protocol::Message& note);
  void SetFlags(Guest& guest, const protocol::Message& note);
  void Fill(Guest& guest, const protocol::Message& note);
  Verdict Fork(Guest& guest, Packet& packet);
  Verdict Attach(Guest& guest, Packet& packet);

  const Terms terms_;
  HostTables* const tables_;
  Orders* const orders_;
  OptIn* const opt_in_;
  Filler* const filler_;
  Snapshots* const snapshots_;
  const UffdAccess* const uffd_;
  SessionHost* const host_;
  FrameMaker frames_;
  GuestMappings mappings_;
  Names names_;
  uint64_t refused_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SESSION_H_
