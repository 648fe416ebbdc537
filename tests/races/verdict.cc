#include "tests/races/verdict.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

// More lines say no more. Arbitrary.
constexpr uint64_t kMostLines = 10;

Rule RuleOf(uint64_t word) { return static_cast<Rule>(word & 3); }

bool Allows(Rule rule, Touch touch) {
  if (rule == Rule::kReadWrite) return true;
  return rule == Rule::kReadOnly && touch == Touch::kLoad;
}

int Protect(const Scene& scene, char* at, size_t bytes, int prot) {
  if (scene.wrong != Wrong::kOnlyOwn) return mprotect(at, bytes, prot);
  return static_cast<int>(syscall(SYS_mprotect, at, bytes, prot));
}

const char* NameOf(Rule rule) {
  static constexpr const char* kNames[] = {"nobody knows", "all may", "nobody may write",
                                           "nobody may read or write"};
  return kNames[static_cast<uint64_t>(rule)];
}

}  // namespace

int ProtOf(Rule rule) {
  if (rule == Rule::kNothing) return PROT_NONE;
  return rule == Rule::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE;
}

Scene* MakeScene(Wrong wrong) {
  void* at =
      mmap(nullptr, sizeof(Scene), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(at != MAP_FAILED);
  auto* scene = static_cast<Scene*>(at);
  scene->wrong = wrong;
  // As the file is mapped.
  for (auto& rule : scene->rules) rule = static_cast<uint64_t>(Rule::kReadWrite);
  return scene;
}

int Change(Scene* scene, size_t part, Rule rule, char* base) {
  std::atomic<uint64_t>& word = scene->rules[part];
  const uint64_t number = (word.load() >> 2) + 1;
  const uint64_t settled = (number << 2) | static_cast<uint64_t>(rule);
  word.store(scene->wrong == Wrong::kBeforeTheCall ? settled : number << 2);
  const int result = Protect(*scene, base + kParts[part].offset, kParts[part].bytes, ProtOf(rule));
  ++scene->tally.calls;
  if (result != 0) {
    ++scene->tally.failed_calls;
    return errno;
  }
  word.store(settled);
  return 0;
}

Verdict Judge(Scene* scene, size_t part, Touch touch, char* at) {
  const uint64_t before = scene->rules[part].load();
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const Touched touched = TryTouch(touch, at);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const uint64_t after = scene->rules[part].load();
  const Rule rule = RuleOf(before);
  if (before != after || rule == Rule::kChanging) {
    scene->tally.undecided.fetch_add(1, std::memory_order_relaxed);
    return Verdict::kUndecided;
  }
  const Touched wanted = Allows(rule, touch) ? Touched::kDone : Touched::kRefused;
  auto& count = touched == Touched::kRefused ? scene->tally.refused : scene->tally.allowed;
  count.fetch_add(1, std::memory_order_relaxed);
  if (touched == wanted) return Verdict::kRight;
  if (scene->tally.violations.fetch_add(1) < kMostLines) {
    Say("violation: pid %d, part %zu, change %llu (%s): a %s was %s", getpid(), part,
        static_cast<unsigned long long>(before >> 2), NameOf(rule), NameOf(touch),
        touched == Touched::kDone      ? "done"
        : touched == Touched::kRefused ? "refused"
                                       : "answered otherwise");
  }
  return Verdict::kWrong;
}

uint32_t Roll(uint64_t* state, uint32_t below) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return static_cast<uint32_t>(*state >> 32) % below;
}

}  // namespace hostmm::test
