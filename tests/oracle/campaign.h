// tests/oracle/campaign.h
//
// Many programs, seed after seed, each run on two sides and compared; what differs is run again,
// shortened and explained.
//
// Units:    operations that were carried out, on each side.
// Threads:  one.
// Errors:   none; differences are counted, and their reports handed out as text.
#ifndef HOSTMM_TESTS_ORACLE_CAMPAIGN_H_
#define HOSTMM_TESTS_ORACLE_CAMPAIGN_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "tests/oracle/compare.h"

namespace hostmm::oracle {

struct Campaign {
  uint64_t first_seed = 1;
  uint64_t seeds = 1;
  size_t operations = 10'000;       // of a program
  std::chrono::seconds time{0};     // no new program after it; 0: no limit
  uint64_t most_reports = 3;        // differences beyond these are counted only
  std::chrono::seconds shrink{60};  // for one of them
};

struct Tally {
  uint64_t programs = 0;
  uint64_t operations = 0;
  uint64_t skipped = 0;  // of these: there was nothing to do them to
  uint64_t differences = 0;
};

// `report` is called with the text of each difference that is reported.
Tally RunCampaign(const Campaign& campaign, const Side& expected, const Side& actual,
                  const std::function<void(const std::string&)>& report);

// What is known about a difference: whether it comes again, whether the expected side agrees with
// itself, the shortest program, and what the sides saw of it.
std::string Investigate(const Program& program, const Difference& difference, const Side& expected,
                        const Side& actual, std::chrono::seconds patience);

}  // namespace hostmm::oracle

#endif  // HOSTMM_TESTS_ORACLE_CAMPAIGN_H_
