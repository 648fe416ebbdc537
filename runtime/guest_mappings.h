// What guests map: the files that they make or hand in, and where they map, move and unmap them.
//
//   anonymous memory    Create: a file, pinned until the guest has mapped it; Map: a region of it
//   a mapped file       Adopt: found by device and inode, or made known; a region of it
//   each region         what stood there is released; it is entered into the tables, and where it
//                       is opt-in told the others; the range goes to the guest's userfaultfd
//
// Checks:   all that it uses of a message: it is a guest's word. A wrong one is answered kRefused.
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_GUEST_MAPPINGS_H_
#define HOSTMM_RUNTIME_GUEST_MAPPINGS_H_

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "runtime/adopter.h"
#include "runtime/file_table.h"
#include "runtime/frame_maker.h"
#include "runtime/guest.h"
#include "runtime/opt_in.h"
#include "runtime/protocol.h"
#include "runtime/snapshot/snapshots.h"
#include "runtime/unique_fd.h"
#include "vmm/host_tables.h"

namespace hostmm {

// What one guest may take of the regions that all share (vmm/segment.h): a sixteenth. Arbitrary;
// far above what honest programs have, and enough is left for the others.
inline constexpr uint32_t kRegionsPerGuest = SegmentConfig{}.max_regions / 16;

class GuestMappings {
 public:
  // Constant while the pager lives.
  struct Terms {
    uint32_t region_flags = 0;    // RegionFlags of what we serve
    uint64_t max_file_bytes = 0;  // of one file; what is larger can never be filled
  };
  // What has been mapped since the start.
  struct Ledger {
    uint64_t regions = 0;
    uint64_t adopted = 0;
    uint64_t region_bytes = 0;
  };
  // What it works on; all of it outlives it.
  struct Parts {
    HostTables* tables;
    FileTable* files;
    FrameMaker* frames;
    Adopter* adopter;
    OptIn* opt_in;
    Snapshots* snapshots;
  };

  GuestMappings(const Terms& terms, const Parts& parts)
      : terms_(terms),
        tables_(parts.tables),
        files_(parts.files),
        frames_(parts.frames),
        adopter_(parts.adopter),
        opt_in_(parts.opt_in),
        snapshots_(parts.snapshots) {}

  // Answers to kCreate, kMap, kAdopt and kMove.

  // `file` becomes the descriptor that goes with the answer.
  protocol::Message Create(Guest& guest, const protocol::Message& ask, UniqueFd* file);
  protocol::Message Map(Guest& guest, const protocol::Message& ask);
  // `file` is what came with the question.
  protocol::Message Adopt(Guest& guest, const protocol::Message& ask, const UniqueFd& file);
  protocol::Message Move(Guest& guest, const protocol::Message& ask);

  // Takes them out of the tables, with the files that nobody needs any more.
  void Release(Guest& guest, GuestAddr va, PageCount length);
  // The guest leaves the tables, with what it maps and the file that it has made and not mapped.
  void Forget(Guest& guest);

  // Parts of the guest's regions in [va, va + length).
  std::vector<Region> PartsIn(const Guest& guest, uint64_t va, uint64_t length) const;

  // Whether this guest may have one more region.
  bool HasRoomForRegion(const Guest& guest) const;

  const Ledger& ledger() const { return ledger_; }

 private:
  // A file that a guest has mapped and hands in.
  struct HandedIn {
    AdoptedKey key;
    uint64_t bytes = 0;                      // of the file, or what is mapped of it
    FrameKind frames = FrameKind::kAdopted;  // if it is not ours
    enum class Collapse : uint8_t { kNo, kYes } collapse = Collapse::kNo;
    uint32_t flags = 0;  // RegionFlags that the descriptor brings
  };

  protocol::Message MapAgain(Guest& guest, const protocol::Message& ask, MmId mm);
  static bool HandIn(const protocol::Message& ask, int file, HandedIn* handed);
  // The mm of the file: found, or made. Pinned.
  TableStatus MmOf(const Guest& guest, const HandedIn& handed, MmId* mm);
  void DropCreated(Guest& guest);
  // Enters the region into the tables; whatever stood there is gone.
  protocol::Message Place(Guest& guest, const RegionSpec& spec);
  void Register(Guest& guest, MmId mm, GuestAddr va, PageCount length) const;
  uint64_t IsFrozen(Guest& guest, MmId mm) const;

  const Terms terms_;
  HostTables* const tables_;
  FileTable* const files_;
  FrameMaker* const frames_;
  Adopter* const adopter_;
  OptIn* const opt_in_;
  Snapshots* const snapshots_;
  Ledger ledger_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_GUEST_MAPPINGS_H_
