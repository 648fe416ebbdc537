// tests/races/storm.h
//
// Processes that map one file opt-in in every way, touch it all the time, come and go, while others
// change its protection for all; every touch is judged (verdict.h).
//
// Flow:     Storm starts probers and controllers as children of this process, kills and replaces
//           probers if asked to, ends when enough touches are judged (or a
//           violation was seen, if asked to) or the time is over.
// Owner:    RunStorm ends all its processes; the file has no name (a named region is unlinked).
// Units:    touches; seconds. Threads: one. Errors: MUST; what is wrong is counted in Scene::tally.
#ifndef HOSTMM_TESTS_RACES_STORM_H_
#define HOSTMM_TESTS_RACES_STORM_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "tests/races/verdict.h"

// As in hostmm_c.h, which a program that is not linked with the library need not have.
#ifndef MAP_SHARED_PT
#define MAP_SHARED_PT 0x200000
#endif

namespace hostmm::test {

enum class Source { kAnonymous, kMemfd, kNamed };

// What is mapped: the pager's own memory inherited by fork, a memfd, a named region.
class SharedFile {
 public:
  explicit SharedFile(Source source);
  ~SharedFile();
  SharedFile(const SharedFile&) = delete;
  SharedFile& operator=(const SharedFile&) = delete;

  // Maps [offset, offset + bytes) opt-in, readable and writable where nobody has said otherwise;
  // MUST succeed. Anonymous memory is there already, once, as a whole.
  char* Map(size_t offset, size_t bytes) const;
  bool IsAnonymous() const { return fd_ < 0; }
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
  char* inherited_ = nullptr;
  std::string name_;
};

struct StormOptions {
  Source source = Source::kMemfd;
  uint64_t touches = 200'000;
  uint32_t seconds = 60;  // at most; far more than the touches take
  // kViolation: a second after the first one, whatever the number of touches.
  enum class Until { kTouches, kViolation } until = Until::kTouches;
  uint32_t probers = 8;  // each with at most one forked child
  uint32_t calm = 50;    // touches of a prober between two changes of its own
  enum class Kill { kNobody, kProbers } kill = Kill::kNobody;
  Wrong wrong = Wrong::kNothing;
  uint64_t seed = 1;
};

// RETURNS the scene, with the tally of it all.
Scene* RunStorm(const StormOptions& options);

// One line of the tally.
std::string ToText(const Scene& scene);

// Ends when its parent does.
pid_t StartChild(const std::function<void()>& body);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_RACES_STORM_H_
