// tests/shared_pt/world.h
//
// What a case of shared page tables has: an object, this process, partners; and the cases
// themselves, each for the kinds of memory that it names.
//
//   OPT_IN_CASE(Name, kEvery) { char* at = world.Map(); ... }    // runs as Name_anonymous,
//   Name_memfd, ...
//
// Output:   Want prints '#ok' or '#BAD' with the line; the test wants at least one and no '#BAD'.
// Owner:    the destructor ends the partners and removes the object.
// Threads:  one.
#ifndef HOSTMM_TESTS_SHARED_PT_WORLD_H_
#define HOSTMM_TESTS_SHARED_PT_WORLD_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <source_location>
#include <string>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/shared_pt/calls.h"
#include "tests/shared_pt/guest.h"
#include "tests/shared_pt/object.h"
#include "tests/shared_pt/view.h"

namespace hostmm::test {

inline constexpr size_t kBlock = 2 * kMib;  // the granule
inline constexpr size_t kObjectBytes = 4 * kBlock;

using Where = std::source_location;

void Want(const std::string& got, const std::string& wanted, Where where = Where::current());
void Want(uint64_t got, uint64_t wanted, Where where = Where::current());
void WantTrue(bool condition, const char* what, Where where = Where::current());

struct Sharer {
  Guest* guest;
  char* at;
};

class World {
 public:
  explicit World(MemoryKind kind, size_t bytes = kObjectBytes);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  const Object& object() const { return object_; }
  size_t bytes() const { return object_.bytes(); }
  bool IsAnonymous() const { return object_.kind() == MemoryKind::kAnonymous; }
  // Frames of hugetlbfs: whole 2 MiB only, whatever is asked.
  bool IsHugetlb() const;
  // What hostmm_is_shared says of an aligned mapping: of a file on a disk the kernel has the
  // tables.
  std::string shared() const { return object_.kind() == MemoryKind::kDisk ? "0" : "1"; }
  // The smallest range that can be protected or unmapped.
  size_t unit() const { return IsHugetlb() ? kBlock : kPage; }

  // This process.
  Guest& self() { return guests_.front(); }
  // A child with all that is mapped here.
  Guest& Fork();
  // Another program, which maps nothing yet. REQUIRES: not anonymous memory.
  Guest& Start();

  // Maps all of the object here, opt-in.
  char* Map();
  // Somebody new who maps all of the object, opt-in: another program; of anonymous memory a child.
  Sharer Newcomer(const Window& window = {});
  // All that Map and Newcomer have made.
  const std::vector<Sharer>& sharers() const { return sharers_; }

  // Every sharer, one after the other, at that offset.
  void WantReads(size_t offset, const std::string& wanted, Where where = Where::current());
  void WantWrites(size_t offset, const std::string& wanted, Where where = Where::current());
  void WantHolds(Where where = Where::current());
  // That range is in memory, as somebody sees it who has not touched it.
  void WantFilledFor(Guest& guest, char* at, size_t size, Where where = Where::current());
  // When a full block is made huge the kernel empties the page tables of all its mappers. Between
  // these two all pages get into all tables, and nothing but the case takes them away then. Files
  // of a tmpfs stay small, because the pager looks at them now and then only. REQUIRES: everybody
  // has mapped; nothing has been touched.
  void KeepSmall();
  // REQUIRES: all of it is in memory.
  void Settle();
  // Every sharer reads every page.
  void TouchAll();
  size_t pages() const { return bytes() / kPage; }

 private:
  Guest& AddPartner(pid_t pid, int socket);

  Object object_;
  std::deque<Guest> guests_;
  std::vector<Sharer> sharers_;
};

constexpr unsigned Bit(MemoryKind kind) { return 1u << static_cast<unsigned>(kind); }
inline constexpr unsigned kAnonymousOnly = Bit(MemoryKind::kAnonymous);
inline constexpr unsigned kNamedOnly = Bit(MemoryKind::kNamed);
inline constexpr unsigned kDiskOnly = Bit(MemoryKind::kDisk);
inline constexpr unsigned kOwn = kAnonymousOnly | kNamedOnly;
inline constexpr unsigned kTmpfs = Bit(MemoryKind::kMemfd) | Bit(MemoryKind::kDevShm);
inline constexpr unsigned kFiles = kTmpfs | kNamedOnly | kDiskOnly;
inline constexpr unsigned kEvery = kFiles | kAnonymousOnly;

template <void (*kBody)(World&), MemoryKind kKind>
void RunIn() {
  World world(kKind);
  kBody(world);
}

// Registers a case once for each kind in `kinds`.
template <void (*kBody)(World&)>
class OptInCase {
 public:
  OptInCase(const char* name, unsigned kinds) {
    Register<MemoryKind::kAnonymous>(name, kinds);
    Register<MemoryKind::kMemfd>(name, kinds);
    Register<MemoryKind::kDevShm>(name, kinds);
    Register<MemoryKind::kNamed>(name, kinds);
    Register<MemoryKind::kDisk>(name, kinds);
  }

 private:
  template <MemoryKind kKind>
  void Register(const char* name, unsigned kinds) {
    if ((kinds & Bit(kKind)) == 0) return;
    // Cases keep the pointer to their name for the life of the program.
    const auto* full = new std::string(std::string(name) + "_" + NameOf(kKind));
    GuestCase(full->c_str(), RunIn<kBody, kKind>);
  }
};

#define OPT_IN_CASE(name, kinds)                                                \
  void name##Body(World& world);                                                \
  const ::hostmm::test::OptInCase<name##Body> name##Registration(#name, kinds); \
  void name##Body([[maybe_unused]] World& world)

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SHARED_PT_WORLD_H_
