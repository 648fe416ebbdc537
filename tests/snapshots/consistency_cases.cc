// Every snapshot shows a state that existed.
#include <string>

#include "tests/process/guest_program.h"
#include "tests/snapshots/campaign.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

using Terms = CampaignTerms;

void WantNoViolation(const Terms& terms) {
  const CampaignResult result = RunCampaign(terms);
  Want(result.violations == 0 && result.taken == terms.snapshots,
       "%zu snapshots, %zu refused, %llu tickets, %zu violations", result.taken, result.refused,
       static_cast<unsigned long long>(result.tickets), result.violations);
}

HOSTMM_CASE(BetweenTransactions) {
  WantNoViolation({.moment = Terms::Moment::kBetween, .snapshots = SnapshotsOr(300)});
}

HOSTMM_CASE(InTheMiddleOfTransactions) {
  WantNoViolation({.moment = Terms::Moment::kAny, .snapshots = SnapshotsOr(300)});
}

HOSTMM_CASE(WhileWritersComeAndGo) {
  WantNoViolation({.moment = Terms::Moment::kAny,
                   .writers = Terms::Writers::kComeAndGo,
                   .processes = 4,
                   .snapshots = SnapshotsOr(200),
                   .seed = 2});
}

// The judge can find something.
HOSTMM_CASE(TheJudgeFindsWhatIsWrong) {
  for (const Terms::Moment moment : {Terms::Moment::kBetween, Terms::Moment::kAny}) {
    const CampaignResult result =
        RunCampaign({.moment = moment, .judged = Terms::Judged::kLive, .snapshots = 50});
    Want(result.violations > 0, "%zu violations in the live region", result.violations);
  }
}

// Of any length, by hand: campaign [between] [come-and-go] [live] [snapshots=N] [seed=N]
// [processes=N].
HOSTMM_PEER(campaign) {
  Terms terms = {.snapshots = SnapshotsOr(10'000)};
  for (const std::string& word : words) {
    const auto number = [&word] {
      return strtoull(word.c_str() + word.find('=') + 1, nullptr, 10);
    };
    if (word == "between") terms.moment = Terms::Moment::kBetween;
    if (word == "come-and-go") terms.writers = Terms::Writers::kComeAndGo;
    if (word == "live") terms.judged = Terms::Judged::kLive;
    if (word.starts_with("snapshots=")) terms.snapshots = number();
    if (word.starts_with("seed=")) terms.seed = number();
    if (word.starts_with("processes=")) terms.processes = number();
  }
  const CampaignResult result = RunCampaign(terms);
  Say("%zu snapshots, %llu tickets, %zu violations", result.taken,
      static_cast<unsigned long long>(result.tickets), result.violations);
  return result.violations == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::test
