// TableModel: what HostTables should do, said with std::map and no cleverness: a map of pages per
// guest, a map of pages per mm.
//
// Units:   raw page numbers; guests and mms are named by their order of appearance.
// Threads: none.
// Errors:  the model is asked only for what succeeded in the tables; it says whether that was
// right.

#ifndef HOSTMM_VMM_TABLE_MODEL_H_
#define HOSTMM_VMM_TABLE_MODEL_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "vmm/fault_policy.h"
#include "vmm/host_tables.h"

namespace hostmm {

struct ModelMapping {
  size_t mm = 0;
  uint64_t file_page = 0;
  AccessSet access;
  AccessSet mapped_access;
  uint32_t flags = 0;
};

struct ModelGuest {
  GuestId id{};
  bool alive = true;
  std::map<uint64_t, ModelMapping> pages{};  // by page number of the address
};

struct ModelEntry {
  PageState state = PageState::kEmpty;
  bool was_present = false;  // in flight: what to go back to
  bool huge = false;         // in flight: as one leaf of the block
};

struct ModelMm {
  MmId id{};
  bool alive = true;
  uint64_t length = 0;
  MmSpec spec{};
  uint32_t pins = 0;
  std::map<uint64_t, ModelEntry> entries{};  // by file page; absent = empty

  ModelEntry At(uint64_t page) const {
    const auto it = entries.find(page);
    return it == entries.end() ? ModelEntry{} : it->second;
  }
  bool AnyInFlight(uint64_t first, uint64_t end) const;
};

class TableModel {
 public:
  std::vector<ModelGuest> guests;
  std::vector<ModelMm> mms;

  bool IsFree(size_t guest, uint64_t va, uint64_t pages) const;
  // An opt-in mapping gets the access that a protect for all has given to the page.
  void Map(size_t guest, uint64_t va, uint64_t pages, const ModelMapping& first);
  void Unmap(size_t guest, uint64_t va, uint64_t pages);
  void Protect(size_t guest, uint64_t va, uint64_t pages, AccessSet access);
  void Flag(size_t guest, uint64_t va, uint64_t pages, uint32_t set, uint32_t clear);
  // What mremap may do, judged by the model; nullopt if it is not allowed.
  bool CanMove(size_t guest, uint64_t from, uint64_t old_pages, uint64_t to,
               uint64_t new_pages) const;
  void Move(size_t guest, uint64_t from, uint64_t old_pages, uint64_t to, uint64_t new_pages);
  void Fork(size_t parent, GuestId child);
  void Punch(size_t mm, uint64_t first, uint64_t pages);
  void Collapse(size_t mm, uint64_t block);

  // Judges a decision and takes over what it marked.
  std::optional<std::string> Decided(size_t guest, const FaultEvent& event,
                                     const FaultDecision& decision, const HostTables& tables);
  void Committed(const FaultDecision& decision, Outcome outcome, Grain actual,
                 const HostTables& tables);

  // The mms that must be gone now; marks them dead. `candidates` may have lost a region or a pin.
  std::vector<MmId> CollectUnused(const std::vector<bool>& had_user);
  std::vector<bool> UsedMms() const;

  // Compares everything that both sides know.
  std::optional<std::string> Compare(const HostTables& tables) const;

 private:
  // Pages of files: for each mm, by file page.
  using Places = std::map<size_t, std::vector<bool>>;
  // What the guest has mapped opt-in in the range.
  Places OptInPlaces(size_t guest, uint64_t va, uint64_t pages) const;
  // Every opt-in mapping of those pages, of all guests.
  template <class Fn>
  void ForEachOptIn(const Places& places, Fn fn);
  void MergeSettled();
  std::vector<Region> RegionsOf(const ModelGuest& guest) const;
  std::optional<std::string> CompareMm(const HostTables& tables, const ModelMm& mm) const;
  std::optional<std::string> DecidedMissing(ModelMm& mm, uint64_t page, const FaultEvent& event,
                                            const FaultDecision& decision);
  std::optional<std::string> DecidedMinor(ModelMm& mm, uint64_t page, const FaultDecision& decision,
                                          const HostTables& tables);
  std::optional<size_t> IndexOf(MmId id) const;
};

}  // namespace hostmm

#endif  // HOSTMM_VMM_TABLE_MODEL_H_
