#include "tests/oracle/campaign.h"

#include <algorithm>

#include "tests/oracle/program.h"

namespace hostmm::oracle {
namespace {

using Clock = std::chrono::steady_clock;

// After so many runs without it, a difference is called a race. Arbitrary.
constexpr int kAttempts = 4;

uint64_t CountSkipped(const Transcript& transcript) {
  return static_cast<uint64_t>(
      std::count_if(transcript.seen.begin(), transcript.seen.end(),
                    [](const Observation& seen) { return seen.outcome == Outcome::kSkipped; }));
}

}  // namespace

Tally RunCampaign(const Campaign& campaign, const Side& expected, const Side& actual,
                  const std::function<void(const std::string&)>& report) {
  Tally tally;
  const Clock::time_point start = Clock::now();
  for (uint64_t i = 0; i < campaign.seeds; ++i) {
    if (campaign.time.count() != 0 && Clock::now() - start > campaign.time) break;
    const uint64_t seed = campaign.first_seed + i;
    const Program program = GenerateProgram(seed, campaign.operations);
    const Transcript one = expected(program);
    const Transcript other = actual(program);
    ++tally.programs;
    tally.operations += std::min(one.seen.size(), other.seen.size());
    tally.skipped += CountSkipped(one);
    const auto difference = Compare(program, one, other);
    if (!difference.has_value()) continue;
    if (++tally.differences > campaign.most_reports) continue;
    report("seed " + std::to_string(seed) + ": " +
           Investigate(program, *difference, expected, actual, campaign.shrink));
  }
  return tally;
}

std::string Investigate(const Program& program, const Difference& difference, const Side& expected,
                        const Side& actual, std::chrono::seconds patience) {
  const std::string text = difference.text;
  const Transcript again = expected(program);
  if (const auto unstable = Compare(program, expected(program), again)) {
    return text + "The expected side does not agree with itself:\n" + unstable->text;
  }
  bool comes_again = false;
  for (int i = 0; i < kAttempts && !comes_again; ++i) {
    comes_again = Compare(program, again, actual(program)).has_value();
  }
  if (!comes_again) {
    Program used = program;
    used.operations.resize(std::min(difference.operation + 1, used.operations.size()));
    return text + "It did not come again: a race.\n" + ToCpp(used);
  }
  const Program shortest = Shrink(program, expected, actual, patience);
  return text + "Shortened:\n" + Explain(shortest, expected(shortest), actual(shortest));
}

}  // namespace hostmm::oracle
