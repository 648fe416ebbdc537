// Whether anybody could write what was forbidden, or could not what was allowed:
//   race_guest --peer violation [touches=N] [seconds=N] [source=memfd|named|anonymous]
//              [until=violation] [kill=probers] [wrong=own|early] [seed=N]
// Ends with 0 if nobody could and N touches were judged, with 1 if somebody could, with 2 if fewer
// were judged, with 3 if a call failed. until=violation: a second after somebody could.
#include <cstdlib>
#include <string>

#include "tests/process/guest_program.h"
#include "tests/races/storm.h"

namespace hostmm::test {
namespace {

bool Take(const std::string& word, const std::string& name, std::string* value) {
  if (!word.starts_with(name + "=")) return false;
  *value = word.substr(name.size() + 1);
  return true;
}

bool Set(const std::string& word, StormOptions* options) {
  std::string value;
  if (Take(word, "touches", &value)) {
    options->touches = strtoull(value.c_str(), nullptr, 10);
  } else if (Take(word, "seconds", &value)) {
    options->seconds = static_cast<uint32_t>(strtoul(value.c_str(), nullptr, 10));
  } else if (Take(word, "until", &value)) {
    options->until = StormOptions::Until::kViolation;
  } else if (Take(word, "seed", &value)) {
    options->seed = strtoull(value.c_str(), nullptr, 10);
  } else if (Take(word, "source", &value)) {
    options->source = value == "anonymous" ? Source::kAnonymous
                      : value == "named"   ? Source::kNamed
                                           : Source::kMemfd;
  } else if (Take(word, "kill", &value)) {
    options->kill = StormOptions::Kill::kProbers;
  } else if (Take(word, "wrong", &value)) {
    options->wrong = value == "own" ? Wrong::kOnlyOwn : Wrong::kBeforeTheCall;
  } else {
    return false;
  }
  return true;
}

HOSTMM_PEER(violation) {
  StormOptions options;
  for (const std::string& word : words) {
    if (!Set(word, &options)) {
      Say("what is %s?", word.c_str());
      return 64;
    }
  }
  const Scene* scene = RunStorm(options);
  Say("%s", ToText(*scene).c_str());
  if (scene->tally.violations != 0) return 1;
  if (scene->judged() < options.touches) return 2;
  return scene->tally.failed_calls == 0 ? 0 : 3;
}

}  // namespace
}  // namespace hostmm::test
