// clang-format off
// What a guest and the pager say to each other, over one SOCK_SEQPACKET unix socket per guest: the
// channel.
//
// Shape:    every packet is one fixed-size Message, plus up to kMaxFds descriptors (SCM_RIGHTS). A
//           packet of any other size, magic or version is refused; nothing in it is a length that
//           anybody multiplies.
// Order:    all packets of a guest travel on its one channel, so the pager sees its map, unmap and
//           fork in the order in which they happened. Questions ("?") carry the far end of a fresh
//           socketpair as their first descriptor; the answer comes there, and the end of file says
//           that there will be none. So the agent, which reads orders from the channel, never has
//           to tell them from answers.
// Flow:     guest                                    pager
//           connect
//           kHello?                             ->   a new guest
//                                               <-   kReply + /dev/userfaultfd; native mode: none
//           kAttach + userfaultfd, credentials  ->   reads its events
//           kCreate?                            ->   a file from a frame store
//                                               <-   kReply + file
//           mmap
//           kMap?                               ->   region; UFFDIO_REGISTER
//                                               <-   kReply
//           kUnmap, kProtect, ...               ->   (no answer)
//           kForkIntent + the child's channel   ->   child = copy of the parent, waiting
//           fork; the child, on its own channel, waiting for nothing:
//           kChildAttach + userfaultfd, creds   ->   reads the child's events
//           agent:                              <-   kOrder
//           kOrderDone                          ->
//           another user (credentials.cc):
//           kAgent 0                            ->   no further order but
//           agent ends                          <-   kOrder kQuit
//           kAgent 1: there is a new agent      ->   orders again
//           opt-in memory (MAP_SHARED_PT):
//           agent:                              <-   kOrder kWatch + the file's board (board.h)
//           kForAll?                            ->   board and bell, or kOrder kLook
//           agents: done, noted on the board;
//           the last one: kBoardDone            ->   all that map it have done it
//                                               <-   kReply
//           snapshots (docs/snapshots.md):
//           kTakeSnapshot?                      ->   freezes the file in all that map it
//           agents:                             <-   kOrder kFreeze + userfaultfd, life pipe
//           kFreezeDone                         ->   the last one: the snapshot is taken
//                                               <-   kReply + handle
//           kViewFile? + handle                 ->
//                                               <-   kReply + the file, read-only
//           mmap(MAP_PRIVATE)
//           kMapView? + handle                  ->   view; UFFDIO_REGISTER
//                                               <-   kReply
//           close(handle), the last one         ->   the snapshot goes when nothing is mapped of it
//           agents:                             <-   kOrder kThaw: nothing is frozen any more
//           On the handle, a socket of the same kind, "?" packets of whoever holds it: kSnapshotInfo,
//           kExport.
// Trust:    a guest is hostile input. The pager checks every field against that guest's own
//           regions.
// Used by:  both sides, and by code that may not use the C++ library: plain data only.
// clang-format on
#ifndef HOSTMM_RUNTIME_PROTOCOL_H_
#define HOSTMM_RUNTIME_PROTOCOL_H_

#include <cstdint>

namespace hostmm::protocol {

inline constexpr uint32_t kMagic = 0x31'4d'4d'48;  // "HMM1", little endian
// Raised whenever Message or the meaning of a field changes. Both sides must have the same: the
// preload library and the pager come from one build.
inline constexpr uint32_t kVersion = 4;
inline constexpr int kMaxFds = 4;
// kForkCow before one kForkIntent: of regions, of which one mapping becomes several by mprotect and
// munmap. Arbitrary.
inline constexpr int kMaxCowForks = 64;

// A managed region is at least this long: four page-table pages' worth (2 MiB each). Below it
// sharing page tables cost more than it saved in the measurements of the 2002 shared page table
// patch.
inline constexpr uint64_t kMinRegionBytes = 4 * (uint64_t{2} << 20);

// What opt-in memory is counted in: address, length and offset of such a mapping are multiples.
inline constexpr uint64_t kGranule = uint64_t{2} << 20;

// Fields that a kind does not name are 0. A "?" kind carries its reply socket as first descriptor.
// clang-format off
enum class Kind : uint32_t {
  // Guest to pager.
  kHello = 1,    // ? text = program name. Answer: mode, value[0] = userfaultfd features, value[1] =
                 //   register mode; fd: /dev/userfaultfd, or none (mode kUffd: userfaultfd(2) works)
  kAttach,       // credentials, value[0] = 1 if an agent reads orders; fds: userfaultfd, or none
  kCreate,       // ? length, offset, prot. Answer: mm, value[0] = unit of the mapping's length in
                 //   bytes; fd: file
  kMap,          // ? va, length, mm, offset, prot, mode = Share. Length 0: the file is not wanted
                 //   after all. mm: the file of kCreate, or one of which this guest has a region
                 //   with the same Share that holds `offset` (a second window). Answer: as kAccess,
                 //   and value[1] = 1 if the file is frozen (kFreeze follows)
  kAdopt,        // ? va, length, offset, prot, mode = Share, value[0] = AdoptSource, value[1] =
                 //   shmid; second fd: the file, if AdoptSource is kFile. Answer: mm, value[0] =
                 //   Adopted, and as kMap
  kUnmap,        // va, length
  kProtect,      // va, length, prot
  kPunch,        // va, length: MADV_REMOVE was done there. Length 0: kMayPunch allowed it, and the
                 //   kernel did not
  kFlags,        // va, length, value[0] = flags to set, value[1] = flags to clear (region_flags.h)
  kMove,         // ? va, length, value[0] = new va, value[1] = new length: mremap was done.
                 //   Answer: value[1] = 1 if frozen; then the guest zaps the range before it goes on
  kForkIntent,   // fds: the child's channel; none: somebody maps what the guest maps, and is not
                 //   watched
  kChildAttach,  // as kAttach; value[1] = 1: regions of it are registered with kTrackedModes
  kAgent,        // value[0]: 1 an agent reads orders now; 0 the agent is to end: the pager sends it
                 //   a kQuit and then no more orders
  kOrderDone,    // answers an order: order, op, status, value[]
  kBoardDone,    // mm: this agent was the last one to note on that file's board that it is done
  kForAll,       // ? va, length, prot, value[0] = advice, value[1] = BoardOp: what all opt-in mappers
                 //   of that memory are to do. Answer, when the last one has: kOk, or kFailed and
                 //   value[1] = errno of one that could not
  kAccess,       // ? va. Answer: prot = the protection that opt-in mappers have there, length = for
                 //   how many bytes from va on; length 0: nothing opt-in is mapped at va
  kFill,         // va, length: make what is missing there (MADV_WILLNEED on opt-in memory)
  kIsShared,     // ? va. Answer: value[0] = 1 if the page tables of va are shared, else 0
  kOpenName,     // ? text = name, length, value[0] = O_* flags, value[1] = mode bits. Answer: length,
                 //   value[0] = unit of length; fd: the file. Refused: value[1] = errno
  kUnlinkName,   // ? text = name. Refused: value[1] = errno
  kTakeSnapshot,  // ? va: of the file that is mapped there. Answer: length of the file, value[0] =
                  //   bytes that are copied at once (4 KiB or 2 MiB); fd: the handle, a socket.
                  //   Refused: value[1] = errno, text
  kFreezeDone,    // mm, order: that kFreeze has been carried out. Sent under the guest's lock
  kViewFile,      // ? second fd: the handle. Answer: length, value[0] as kTakeSnapshot; fd: the file of
                  //   which a view is a MAP_PRIVATE mapping, read-only
  kMapView,       // ? va, length, offset, prot (with PROT_WRITE: private-writable); second fd: the
                  //   handle. What is mapped there is a view now. Answer: mm. The agent has been sent
                  //   kHoldLife before that
  kSettleView,    // ? va, length: the guest is about to fork. What it touches of its views there is
                  //   copied from now on, never shared; the answer comes when nothing is on its way
  kForkCow,       // ? va: a kRegionCow region of a guest that is about to fork. The file is frozen but
                  //   for what the asker's own tables map, which it is to zap before it forks; its next
                  //   kForkIntent's child has a view there. Answer: mm; fd: the file, read-only
  kRemove,        // ? va, length: MADV_REMOVE of frozen memory, done by the pager
  kMayPunch,      // ? va, length: may the guest do MADV_REMOVE there, under its lock? kPunch follows if
                  //   it may. kFailed: it is frozen, the pager has to do it (kRemove)
  // On a snapshot's handle.
  kSnapshotInfo = 24,  // ? Answer: va = unit, length, offset = bytes of pre-images held, mm = id, value[0] =
                       //   pages copied, value[1] = views. A lost snapshot: kFailed, EIO, text = why
  kExport,             // ? offset = where in the file the image begins, or ~0: it is written as a
                       //   stream (a pipe, O_APPEND); value[0] = bytes of it that are there already
                       //   (resume). Second fd: the image; then, each if wanted, a progress pipe and
                       //   the handle of the earlier snapshot of an incremental image. Answer, when it
                       //   is written: length = bytes of the image, value[0] = data pages. kFailed:
                       //   value[1]
  kKeep,               // ? text = name: the snapshot lives on under that name. Refused: value[1] = errno
  // A tool connects, says one of these, and is answered.
  kSnapshotOf = 30,    // ? text = name of a region, or "#N" for the file N of `hostmm dump`, or "@NAME"
                       //   for a snapshot that is kept. Answer: as kTakeSnapshot
  kDropKept = 31,      // ? text = name. Refused: value[1] = errno
  // A tool asks for the segment.
  kInspect = 32,  // ? Answer: fd: the segment; of opt-in memory va = operations, length = members
                  //   woken for them, offset = operations that timed out, value[0] = votes
  // Pager to guest.
  kReply = 64,   // status, text if refused; what else depends on the question
  kOrder,        // order, op, va, length, value[0] = mask
};
// clang-format on

enum class Status : uint32_t {
  kOk = 0,
  kVersion,       // the two sides are of different builds
  kRefused,       // a field is wrong, or not yours
  kNoFrames,      // the frame store cannot hold that much
  kFull,          // a table of the pager is full
  kNotPermitted,  // the kernel refused
  kFailed,        // value[1] says why, as an errno
};

// How a mapping shares, in kMap and kAdopt: region flags of region_flags.h.
using Share = uint32_t;

// What an adopted file turned out to be.
enum class Adopted : uint64_t {
  kForeign = 0,  // somebody else's: the kernel serves its holes
  kOwn = 1,      // one of the pager's named files: registered, its holes come to the pager
  kOwnHugetlb = 2,
};

// What is asked of everybody who maps a part of a file opt-in.
enum class BoardOp : uint64_t {
  kNone = 0,
  kProtect,  // prot
  kZap,      // drop the page-table entries; data stays
  kVote,     // the asker no longer needs it (MADV_DONTNEED); zapped when all have said so
  kAdvise,   // value[0] = advice, one that is for the region (MADV_HUGEPAGE, MADV_NOHUGEPAGE)
};

enum class AdoptSource : uint64_t { kFile = 1, kSysV = 2 };

enum class OrderOp : uint32_t {
  kNone = 0,
  // End: the guest has changed its user or groups and starts another agent. Answers kAgent with
  // value[0] = 0, and is not answered itself.
  kQuit,
  // Drop the page-table entries of [va, va+length) in the guest (MADV_DONTNEED): its page-table
  // budget is used up.
  kZap,
  // For each set bit i of value[0]: if all pages of the 2 MiB block at va + i * 2 MiB are in
  // memory, collapse it. Answer: value[0] = the blocks that are huge now, value[1] = the blocks
  // whose collapse the kernel refused.
  kCollapse,
  // Watch the board of `mm`, anew if it does already: value[0] = this guest's slot on it; fds:
  // orders (read-only), acks, bell. Look at it at once. Not answered by kOrderDone; the slot on the
  // board says it.
  kWatch,
  // Forget the board of `mm`. Not answered.
  kUnwatch,
  // Look at the board of `mm` now. Not answered.
  kLook,
  // Under the guest's lock: mark all regions of `mm` as frozen (a forked child registers them with
  // kTrackedModes), zap them unless value[0] = 1, say kFreezeDone. fds: userfaultfd, read end of
  // the life pipe: kept until that pipe's last write end is closed, when the pager has gone, so
  // that nobody writes unseen; or until kThaw.
  kFreeze,
  // The regions of `mm` are frozen no more: zap them, so that they are mapped natively again. Not
  // answered.
  kThaw,
  // Zap the pages of the block at `va` whose bits are set in text[0..63] (512 bits, lowest first)
  // in a view of `mm`. Answered by kOrderDone.
  kZapPages,
  // The view at [va, va+length) is lost: every access to it is to be SIGBUS. Answered by
  // kOrderDone.
  kLoseView,
  // fd: a write end of the life pipe of `mm`, a snapshot. Kept until the guest has no view of it:
  // when the channel ends, views are lost first. Without a descriptor: let go of it. Not answered.
  kHoldLife,
};

// How a guest runs, in the answer to kHello.
enum class Mode : uint32_t {
  kUffd = 1,    // faults in holes come to the pager
  kNative = 2,  // no userfaultfd to be had: the kernel fills holes from the same frames
};

// UFFDIO_REGISTER_MODE_MISSING | _WP | _MINOR: everything of frozen memory and of views comes to
// the pager.
inline constexpr uint64_t kTrackedModes = 7;

struct MmHandle {
  uint32_t slot;
  uint32_t generation;
};

struct Message {
  uint32_t magic;
  uint32_t version;
  Kind kind;
  Status status;
  uint64_t va;
  uint64_t length;
  uint64_t offset;  // bytes in the file
  MmHandle mm;
  uint32_t prot;
  uint32_t mode;   // Mode, in the answer to kHello; Share, in kMap and kAdopt
  uint32_t order;  // number of an order, echoed by its answer
  OrderOp op;
  uint64_t value[2];
  char text[64];  // NUL-terminated: the program's name, or why something was refused
};
static_assert(sizeof(Message) == 144);

}  // namespace hostmm::protocol

#endif  // HOSTMM_RUNTIME_PROTOCOL_H_
