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
inline constexpr uint32_t kVersion = 1;
inline constexpr int kMaxFds = 3;

// A managed region is at least this long: four page-table pages' worth (2 MiB each). Below it
// sharing page tables cost more than it saved in the measurements of the 2002 shared page table
// patch.
inline constexpr uint64_t kMinRegionBytes = 4 * (uint64_t{2} << 20);

// Fields that a kind does not name are 0. A "?" kind carries its reply socket as first descriptor.
// clang-format off
enum class Kind : uint32_t {
  // Guest to pager.
  kHello = 1,    // ? text = program name. Answer: mode, value[0] = userfaultfd features, value[1] =
                 //   register mode; fd: /dev/userfaultfd, or none (mode kUffd: userfaultfd(2) works)
  kAttach,       // credentials, value[0] = 1 if an agent reads orders; fds: userfaultfd, or none
  kCreate,       // ? length, offset, prot. Answer: mm, value[0] = unit of the mapping's length in
                 //   bytes; fd: file
  kMap,          // ? va, length, mm, offset, prot. Length 0: the file is not wanted after all
  kAdopt,        // ? va, length, offset, prot, value[0] = AdoptSource, value[1] = shmid; second fd:
                 //   the file, if AdoptSource is kFile. Answer: mm
  kUnmap,        // va, length
  kProtect,      // va, length, prot
  kPunch,        // va, length: MADV_REMOVE was done there
  kFlags,        // va, length, value[0] = flags to set, value[1] = flags to clear (region_flags.h)
  kMove,         // ? va, length, value[0] = new va, value[1] = new length: mremap was done
  kForkIntent,   // fds: the child's channel
  kChildAttach,  // as kAttach
  kAgent,        // value[0]: 1 an agent reads orders now; 0 the agent is to end: the pager sends it
                 //   a kQuit and then no more orders
  kOrderDone,    // answers an order: order, op, status, value[]
  // A tool asks for the segment.
  kInspect = 32,  // ? Answer: fd: the segment
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
};

// How a guest runs, in the answer to kHello.
enum class Mode : uint32_t {
  kUffd = 1,    // faults in holes come to the pager
  kNative = 2,  // no userfaultfd to be had: the kernel fills holes from the same frames
};

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
  uint32_t mode;   // Mode, in the answer to kHello
  uint32_t order;  // number of an order, echoed by its answer
  OrderOp op;
  uint64_t value[2];
  char text[64];  // NUL-terminated: the program's name, or why something was refused
};
static_assert(sizeof(Message) == 144);

}  // namespace hostmm::protocol

#endif  // HOSTMM_RUNTIME_PROTOCOL_H_
