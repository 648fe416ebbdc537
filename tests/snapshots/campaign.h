// tests/snapshots/campaign.h
//
// Processes write tickets (tickets.h) while one takes snapshots at random moments and judges what
// each shows: at once, and again when the processes have written more.
#ifndef HOSTMM_TESTS_SNAPSHOTS_CAMPAIGN_H_
#define HOSTMM_TESTS_SNAPSHOTS_CAMPAIGN_H_

#include <cstddef>
#include <cstdint>

namespace hostmm::test {

struct CampaignTerms {
  // Where in the transactions of the others a snapshot is taken.
  enum class Moment { kBetween, kAny } moment = Moment::kAny;
  // kComeAndGo: each forks again and again, and both sides write.
  enum class Writers { kStay, kComeAndGo } writers = Writers::kStay;
  // What is judged. kLive is wrong: the judge must find that.
  enum class Judged { kView, kLive } judged = Judged::kView;
  size_t processes = 8;
  size_t snapshots = 300;
  uint64_t seed = 1;
};

struct CampaignResult {
  size_t taken = 0;
  size_t violations = 0;
  // Before they were taken: a child was too slow. More than a tenth are a violation.
  size_t refused = 0;
  uint64_t tickets = 0;  // written meanwhile
};

// The number of snapshots that HOSTMM_SNAPSHOTS says, or `normally`.
size_t SnapshotsOr(size_t normally);
// Prints the first violations. The region has the kind that the environment says.
CampaignResult RunCampaign(const CampaignTerms& terms);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_SNAPSHOTS_CAMPAIGN_H_
