// The views of snapshots: what a touch of one is answered with, and how pages are taken away from
// them.
//
// A view is a MAP_PRIVATE mapping of the live file, registered for everything, so that nothing of
// it is mapped but by this class:
//
//   the page is as it was, and is read       the live frame itself, read-only (UFFDIO_CONTINUE)
//   somebody has written to it since         an anonymous copy of the pre-image (UFFDIO_COPY)
//   it is written (a private-writable view)  an anonymous copy; if the live frame was mapped,
//                                            its agent zaps that first
//   the live file has a hole                 the zero page
//
// Before a live page changes, Revoke has it zapped in all views that have it.
//
// Threads:  the loop thread; a copy of 2 MiB is a worker's.
// Errors:   what cannot be copied makes the snapshot lost (Lost).
#ifndef HOSTMM_RUNTIME_SNAPSHOT_VIEWS_H_
#define HOSTMM_RUNTIME_SNAPSHOT_VIEWS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/guest.h"
#include "runtime/snapshot/live_files.h"
#include "runtime/snapshot/view_orders.h"
#include "runtime/snapshot/view_pages.h"
#include "runtime/userfaultfd.h"
#include "runtime/worker_pool.h"
#include "vmm/cow_tables.h"
#include "vmm/fault.h"
#include "vmm/host_tables.h"

namespace hostmm {

class Views {
 public:
  using Revoked = ViewOrders::Done;
  // Has the pre-image of pages made, and then calls back.
  using Privatize =
      std::function<void(MmId source, FilePage first, PageCount count, std::function<void()> then)>;
  using Lost = std::function<void(MmId source, const std::string& why)>;

  Views(HostTables* tables, GuestSet* guests, LiveFiles* files, ViewOrders* orders,
        WorkerPool* pool)
      : tables_(tables),
        cow_(tables),
        guests_(guests),
        files_(files),
        orders_(orders),
        pool_(pool) {}

  void SetHooks(Privatize privatize, Lost lost) {
    privatize_ = std::move(privatize);
    lost_ = std::move(lost);
  }

  // REQUIRES: the event's address lies in a view of the guest.
  void OnTouch(Guest& guest, const FaultEvent& event);

  // Has the pages, of one block, zapped in all views of the snapshots that have them mapped.
  void Revoke(const std::vector<MmId>& snapshots, FilePage first, PageCount count, Revoked done);

  // Has all views of the snapshot replaced by memory that cannot be touched.
  void Lose(MmId snapshot, std::function<void()> done);

  void OnGuestGone(GuestId guest) { pages_.DropGuest(guest); }
  void OnReleased(MmId snapshot) { pages_.DropSnapshot(snapshot); }

 private:
  struct Touch {
    GuestId guest;
    FaultEvent event;
    Region region;
    FilePage first;
    PageCount count;
    uint64_t va;
    uint64_t bytes() const { return BytesOf(count); }
  };

  void Share(const Guest& guest, const Touch& touch);
  void Zero(const Guest& guest, const Touch& touch, const LiveFile& file);
  void CopyOver(Guest& guest, const Touch& touch);
  bool IsThere(const Touch& touch) const;
  void Copy(const Touch& touch);
  void CopyBlock(const Touch& touch, const LiveFile& file, CowTables::Page from);
  void Answer(int uffd, const Touch& touch, UffdResult result);
  std::vector<ViewOrders::Item> ZapsOf(GuestId holder, MmId snapshot, FilePage first,
                                       PageCount count) const;

  HostTables* const tables_;
  CowTables cow_;
  GuestSet* const guests_;
  LiveFiles* const files_;
  ViewOrders* const orders_;
  WorkerPool* const pool_;
  ViewPages pages_;
  Privatize privatize_;
  Lost lost_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_VIEWS_H_
