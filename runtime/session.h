// What the pager does for one guest's packets. One function per kind of message, each checking what
// it uses: a packet is a guest's word, and a wrong one ends or refuses that guest's request alone.
//
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_SESSION_H_
#define HOSTMM_RUNTIME_SESSION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/adopter.h"
#include "runtime/file_table.h"
#include "runtime/frame_store.h"
#include "runtime/guest.h"
#include "runtime/orders.h"
#include "runtime/packet.h"
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
  virtual void AddChild(Guest& parent, GuestId child, UniqueFd channel) = 0;
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
    std::string weaker_frames;  // why a region got a weaker rung than asked for
  };

  // All outlive the Session. `store` gives the frames; `second` (may be null) those that are taken
  // when it has none left.
  Session(const Terms& terms, HostTables* tables, FileTable* files, Adopter* adopter,
          Orders* orders, const UffdAccess* uffd, const FrameStore* store, const FrameStore* second,
          SessionHost* host)
      : terms_(terms),
        tables_(tables),
        files_(files),
        adopter_(adopter),
        orders_(orders),
        uffd_(uffd),
        store_(store),
        second_(second),
        host_(host) {}

  enum class Verdict { kKeep, kEndGuest };
  // REQUIRES: the packet came on the guest's channel, after its kHello.
  Verdict OnPacket(Guest& guest, Packet packet);

  // Answers a kHello of a new guest on its reply socket.
  void Welcome(const Packet& hello) const;

  // Gives back what the guest has asked for and not finished, and everything that it maps.
  void Forget(Guest& guest);

  const Ledger& ledger() const { return ledger_; }

 private:
  protocol::Message Create(Guest& guest, const protocol::Message& ask, UniqueFd* file);
  protocol::Message Map(Guest& guest, const protocol::Message& ask);
  protocol::Message Adopt(Guest& guest, const protocol::Message& ask, const UniqueFd& file);
  protocol::Message Move(Guest& guest, const protocol::Message& ask);
  // Notes: what the guest has done already.
  Verdict OnNote(Guest& guest, const protocol::Message& note);
  void SetAgent(Guest& guest, const protocol::Message& note);
  void Unmap(Guest& guest, const protocol::Message& note);
  void Protect(Guest& guest, const protocol::Message& note);
  void Punch(Guest& guest, const protocol::Message& note);
  void SetFlags(Guest& guest, const protocol::Message& note);
  Verdict Fork(Guest& guest, Packet& packet);
  Verdict Attach(Guest& guest, Packet& packet);

  bool HasRoomForFile(uid_t uid) const;
  bool HasRoomForRegion(const Guest& guest) const;
  absl::StatusOr<std::shared_ptr<const Backing>> NewBacking(uint64_t bytes);
  void Register(Guest& guest, GuestAddr va, PageCount length) const;
  void DropCreated(Guest& guest);

  const Terms terms_;
  HostTables* const tables_;
  FileTable* const files_;
  Adopter* const adopter_;
  Orders* const orders_;
  const UffdAccess* const uffd_;
  const FrameStore* const store_;
  const FrameStore* const second_;
  SessionHost* const host_;
  Ledger ledger_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SESSION_H_
