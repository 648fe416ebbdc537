#include "tests/oracle/compare.h"

#include <algorithm>
#include <utility>

#include "tests/oracle/program.h"

namespace hostmm::oracle {
namespace {

using Clock = std::chrono::steady_clock;

// Longer transcripts say less than their first difference does.
constexpr size_t kShort = 60;

std::string SeenAt(const Transcript& transcript, size_t operation) {
  return operation < transcript.seen.size() ? ToText(transcript.seen[operation]) : "nothing";
}

std::string Both(const Transcript& expected, const Transcript& actual, size_t operation) {
  return "    expected: " + SeenAt(expected, operation) +
         "\n    actual:   " + SeenAt(actual, operation) + "\n";
}

class Shrinker {
 public:
  Shrinker(const Side& expected, const Side& actual, std::chrono::seconds patience)
      : expected_(expected), actual_(actual), until_(Clock::now() + patience) {}

  bool HasTime() const { return Clock::now() < until_; }

  // Takes `candidate` over if it differs too, without what follows its difference.
  bool Try(Program candidate, Program* program) const {
    if (!HasTime()) return false;
    const auto difference = Compare(candidate, expected_(candidate), actual_(candidate));
    if (!difference.has_value()) return false;
    const size_t needed = std::min(difference->operation + 1, candidate.operations.size());
    candidate.operations.resize(needed);
    *program = std::move(candidate);
    return true;
  }

 private:
  const Side& expected_;
  const Side& actual_;
  const Clock::time_point until_;
};

// Ever smaller chunks, each taken out if the rest still differs; from the end, because the end
// hangs on the beginning.
void ShrinkOperations(const Shrinker& shrinker, Program* program) {
  for (size_t chunk = program->operations.size() / 2; chunk != 0; chunk /= 2) {
    size_t end = program->operations.size();
    while (end >= chunk && shrinker.HasTime()) {
      Program shorter = *program;
      const auto first = shorter.operations.begin() + static_cast<ptrdiff_t>(end - chunk);
      shorter.operations.erase(first, first + static_cast<ptrdiff_t>(chunk));
      shrinker.Try(std::move(shorter), program);
      end = std::min(end - chunk, program->operations.size());
    }
  }
}

}  // namespace

std::optional<Difference> Compare(const Program& program, const Transcript& expected,
                                  const Transcript& actual) {
  const size_t common = std::min(expected.seen.size(), actual.seen.size());
  size_t at = 0;
  while (at < common && expected.seen[at] == actual.seen[at]) ++at;
  std::string troubles;
  if (!expected.trouble.empty()) troubles += "trouble when expecting: " + expected.trouble + "\n";
  if (!actual.trouble.empty()) troubles += "trouble: " + actual.trouble + "\n";
  if (at == common && expected.seen.size() == actual.seen.size()) {
    if (troubles.empty()) return std::nullopt;
    return Difference{program.operations.size(), troubles};
  }
  return Difference{at, "operation " + std::to_string(at) + ", " + ToCpp(program.operations[at]) +
                            "\n" + Both(expected, actual, at) + troubles};
}

Program Shrink(Program program, const Side& expected, const Side& actual,
               std::chrono::seconds patience) {
  const Shrinker shrinker(expected, actual, patience);
  shrinker.Try(program, &program);
  // A second round: what could not go before, may when others have gone.
  for (size_t before = program.operations.size() + 1;
       program.operations.size() < before && shrinker.HasTime();) {
    before = program.operations.size();
    ShrinkOperations(shrinker, &program);
  }
  while (program.actors > 1) {
    Program fewer = program;
    --fewer.actors;
    if (!shrinker.Try(std::move(fewer), &program)) break;
  }
  while (!program.objects.empty()) {
    Program fewer = program;
    fewer.objects.pop_back();
    if (!shrinker.Try(std::move(fewer), &program)) break;
  }
  return program;
}

std::string Explain(const Program& program, const Transcript& expected, const Transcript& actual) {
  std::string text = ToCpp(program);
  if (program.operations.size() > kShort) return text;
  for (size_t i = 0; i < program.operations.size(); ++i) {
    text +=
        std::to_string(i) + " " + ToCpp(program.operations[i]) + "\n" + Both(expected, actual, i);
  }
  return text;
}

}  // namespace hostmm::oracle
