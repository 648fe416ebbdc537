// Makes adopted files huge: memfds, files in /dev/shm and SysV segments that programs made
// themselves.
//
// Their frames cannot be exchanged under their other users, and a block with holes cannot be
// collapsed while somebody is registered MISSING there; so such files are not registered. Instead
// one guest that maps the file is asked, again and again, to collapse the blocks whose pages are
// all in memory: by its agent, in its own mapping, at its own expense.
//
// Pace:     a file that makes progress is looked at on every tick; one that does not, half as often
//           each time.
// Threads:  the loop thread.
#ifndef HOSTMM_RUNTIME_ADOPTER_H_
#define HOSTMM_RUNTIME_ADOPTER_H_

#include <cstdint>

#include "absl/container/flat_hash_map.h"
#include "runtime/guest.h"
#include "runtime/orders.h"
#include "vmm/host_tables.h"

namespace hostmm {

class Adopter {
 public:
  Adopter(HostTables* tables, GuestSet* guests, Orders* orders)
      : tables_(tables), guests_(guests), orders_(orders) {}

  // Starts to look after `mm`, which is adopted and has a mapper.
  void Add(MmId mm) { files_[mm.slot] = File{.mm = mm}; }

  // Sends the orders that are due.
  void Tick();

 private:
  struct File {
    MmId mm;
    uint64_t cursor = 0;    // next block to look at
    uint32_t wait = 0;      // ticks until then
    uint32_t backoff = 1;   // ticks to wait after a pass without progress
    bool progress = false;  // in this pass
    GuestId asked = {};     // who has not answered our order yet
    uint32_t patience = 0;  // ticks that we still wait for that
  };
  // Blocks of one order, all mapped by one region of one guest.
  struct Batch {
    GuestId guest;
    uint64_t va = 0;
    uint64_t first_block = 0;
    uint64_t mask = 0;
  };

  enum class Wait { kNo, kYes };
  Wait AwaitsAnswer(File* file) const;
  void Look(File* file);
  Batch NextBatch(File* file) const;
  void OnAnswer(MmId mm, const Batch& batch, const protocol::Message& answer);

  HostTables* const tables_;
  GuestSet* const guests_;
  Orders* const orders_;
  absl::flat_hash_map<uint32_t, File> files_;  // by slot of the mm
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_ADOPTER_H_
