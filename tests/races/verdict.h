// tests/races/verdict.h
//
// What must be true of protection at every moment: a controller writes down what it has forbidden,
// after the call that forbids it has returned, and takes it back before the call that allows it
// again starts. A touch between two equal readings of that word lies wholly inside one such window,
// and has one right answer.
//
// Memory:   Scene is one shared mapping, far below the length that hostmm manages: the judge does
//           not stand on what it judges.
// Flow:     controller: BeginChange, mprotect, EndChange. Anybody: Judge.
// Units:    bytes of the file that is protected.
// Threads:  one controller for each range; any number of others. Processes: by fork.
#ifndef HOSTMM_TESTS_RACES_VERDICT_H_
#define HOSTMM_TESTS_RACES_VERDICT_H_

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "tests/races/guarded_touch.h"

namespace hostmm::test {

inline constexpr size_t kPageBytes = 4096;
inline constexpr size_t kBlockBytes = size_t{2} << 20;
inline constexpr size_t kFileBytes = 6 * kBlockBytes;

// A part of the file whose protection is changed as one.
struct Part {
  size_t offset;
  size_t bytes;
};
// A page and a few inside a block, a block, parts of three blocks, the last page of the file.
inline constexpr Part kParts[] = {
    {7 * kPageBytes, kPageBytes},
    {100 * kPageBytes, 16 * kPageBytes},
    {kBlockBytes, kBlockBytes},
    {2 * kBlockBytes + kBlockBytes / 2, 2 * kBlockBytes},
    {kFileBytes - kPageBytes, kPageBytes},
};
inline constexpr size_t kPartCount = sizeof(kParts) / sizeof(kParts[0]);

enum class Rule : uint64_t { kChanging, kReadWrite, kReadOnly, kNothing };
int ProtOf(Rule rule);

// Wrong on purpose, to see that Judge sees it.
enum class Wrong : uint32_t { kNothing, kOnlyOwn, kBeforeTheCall };

struct Tally {
  std::atomic<uint64_t> allowed;
  std::atomic<uint64_t> refused;
  std::atomic<uint64_t> undecided;  // something changed meanwhile
  std::atomic<uint64_t> violations;
  std::atomic<uint64_t> calls;
  std::atomic<uint64_t> failed_calls;
  std::atomic<uint64_t> maps;
  std::atomic<uint64_t> forks;
  std::atomic<uint64_t> kills;
};

struct Scene {
  // Number of the change << 2 | Rule, for each part.
  std::atomic<uint64_t> rules[kPartCount];
  std::atomic<uint32_t> stop;
  Wrong wrong;
  Tally tally;
  uint64_t judged() const { return tally.allowed + tally.refused; }
};

Scene* MakeScene(Wrong wrong);

// Changes a part for all to another rule, with the caller's mapping of the whole file at `base`.
// RETURNS: 0, or the errno of mprotect; then the part stays undecided until the next change.
int Change(Scene* scene, size_t part, Rule rule, char* base);

enum class Verdict { kRight, kUndecided, kWrong };
// Touches `at`, a byte of `part`, and counts. Says the first wrong ones on standard output.
Verdict Judge(Scene* scene, size_t part, Touch touch, char* at);

// Of this thread: xorshift, because a random engine's state is more than a page to fork.
uint32_t Roll(uint64_t* state, uint32_t below);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_RACES_VERDICT_H_
