// The long run: many random programs, plain and under hostmm, every observation compared.
//   transparent ORACLE_GUEST HOSTMM LIBRARY [--seeds=N] [--first-seed=N] [--operations=N]
//               [--seconds=N]
// Ends with 1 if there was a difference, 2 if nothing was managed.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "tests/oracle/campaign.h"
#include "tests/oracle/sides.h"

namespace hostmm::oracle {
namespace {

// RETURNS: whether `word` is `--name=NUMBER`; then the number is in `value`.
bool TakeNumber(std::string_view word, std::string_view name, uint64_t* value) {
  const std::string start = "--" + std::string(name) + "=";
  if (!word.starts_with(start)) return false;
  *value = strtoull(word.data() + start.size(), nullptr, 10);
  return true;
}

int Usage() {
  fprintf(stderr,
          "usage: transparent ORACLE_GUEST HOSTMM LIBRARY [--seeds=N] [--first-seed=N] "
          "[--operations=N] [--seconds=N]\n");
  return 64;
}

int Main(const std::vector<std::string>& words) {
  Campaign campaign = {.seeds = 100};
  std::vector<std::string> paths;
  uint64_t number = 0;
  for (const std::string& word : words) {
    if (!word.starts_with("--")) {
      paths.push_back(word);
    } else if (TakeNumber(word, "seeds", &number)) {
      campaign.seeds = number;
    } else if (TakeNumber(word, "first-seed", &number)) {
      campaign.first_seed = number;
    } else if (TakeNumber(word, "operations", &number)) {
      campaign.operations = number;
    } else if (TakeNumber(word, "seconds", &number)) {
      campaign.time = std::chrono::seconds(number);
    } else {
      return Usage();
    }
  }
  if (paths.size() != 3 || campaign.operations == 0) return Usage();

  Sides sides({paths[0], paths[1], paths[2]});
  const auto start = std::chrono::steady_clock::now();
  const Tally tally = RunCampaign(
      campaign, [&sides](const Program& program) { return sides.Plain(program); },
      [&sides](const Program& program) { return sides.Managed(program); },
      [](const std::string& text) {
        printf("%s\n", text.c_str());
        fflush(stdout);
      });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const int64_t faults = sides.FaultsServed();
  printf("%" PRIu64 " differences in %" PRIu64 " operations (%" PRIu64
         " had nothing to do) of %" PRIu64 " programs, %.0f s; the pager has answered %" PRId64
         " faults\n",
         tally.differences, tally.operations, tally.skipped, tally.programs, took.count(), faults);
  if (tally.differences != 0) return 1;
  return faults > 0 ? 0 : 2;
}

}  // namespace
}  // namespace hostmm::oracle

int main(int argc, char** argv) { return hostmm::oracle::Main({argv + 1, argv + argc}); }
