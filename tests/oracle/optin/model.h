// tests/oracle/optin/model.h
//
// What docs/semantics.md says of opt-in memory, page by page, in the simplest form that there is: a
// protection for each page of a file, from the first mprotect for all for as long as somebody maps
// it opt-in, and what each actor has at each page of its slots.
//
// Threads:  none. Errors: none.
#ifndef HOSTMM_TESTS_ORACLE_OPTIN_MODEL_H_
#define HOSTMM_TESTS_ORACLE_OPTIN_MODEL_H_

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "tests/oracle/optin/program.h"

namespace hostmm::oracle {

// Mistakes of the model, by which a test shows that a difference is found.
enum class Mistake { kNone, kProtectIsTheCallersOwn, kVotesLoseData, kNewcomersBringTheirOwn };

class Model {
 public:
  explicit Model(Mistake mistake);

  Seen Take(const Step& step);

 private:
  enum Share : uint8_t { kPlain = 1, kOptIn = 2, kDedicated = 4, kNeverWrite = 8 };
  // One page of a slot.
  struct Place {
    bool mapped = false;
    uint8_t share = 0;
    uint32_t file = 0;
    uint32_t page = 0;
    int own_prot = 0;
  };
  struct Actor {
    bool alive = false;
    std::array<std::vector<Place>, kSlots> slots;
  };
  struct FilePageState {
    uint8_t byte = 0;
    uint32_t mappers = 0;  // opt-in places
    // While there are some, and one of them has set it; until then each has its own.
    bool settled = false;
    int prot = 0;
  };

  Seen Map(Actor& actor, const Step& step);
  Seen Unmap(Actor& actor, const Step& step);
  enum class Caller { kPlain, kForAll };
  Seen Protect(Actor& actor, const Step& step, Caller caller);
  Seen Advise(Actor& actor, const Step& step);
  Seen Move(Actor& actor, const Step& step);
  Seen Fork(Actor& actor);
  void End(Actor& actor);

  void Drop(Place& place);
  void SetProt(Place& place, int prot);
  int ProtOf(const Place& place) const;
  FilePageState& StateOf(const Place& place) { return files_[place.file][place.page]; }

  const Mistake mistake_;
  std::array<Actor, kActors> actors_;
  std::array<std::vector<FilePageState>, kFiles> files_;
};

// REQUIRES: only asked of actors that are alive. The actor that a raw number means.
std::optional<uint32_t> Choose(const std::array<bool, kActors>& alive, uint32_t number);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_OPTIN_MODEL_H_
