#include "vmm/fault_stats.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace hostmm {
namespace {

TEST(FaultStatsTest, EveryCounterHasItsOwnNameAndPlace) {
  std::set<std::string_view> names;
  std::set<size_t> places;
  for (size_t i = 0; i < kFaultCauses; ++i) {
    names.insert(Name(static_cast<FaultCause>(i)));
    places.insert(StatIndex(static_cast<FaultCause>(i)));
  }
  for (size_t i = 0; i < kFaultCounters; ++i) {
    names.insert(Name(static_cast<FaultCounter>(i)));
    places.insert(StatIndex(static_cast<FaultCounter>(i)));
  }
  EXPECT_EQ(names.size(), kStatCount);
  EXPECT_EQ(places.size(), kStatCount);
  EXPECT_EQ(*places.rbegin(), kStatCount - 1);
  EXPECT_FALSE(names.contains("?"));
}

TEST(FaultStatsTest, UnaccountedIsWhatTheCausesMiss) {
  FaultStats stats;
  stats.values[StatIndex(FaultCounter::kEvents)] = 5;
  stats.values[StatIndex(FaultCause::kRefill)] = 2;
  stats.values[StatIndex(FaultCause::kNoRegion)] = 2;
  EXPECT_EQ(stats.Unaccounted(), 1);
  stats.values[StatIndex(FaultCause::kInFlight)] = 2;
  EXPECT_EQ(stats.Unaccounted(), -1);
}

TEST(FaultStatsTest, DeniedSumsTheDenyingCauses) {
  FaultStats stats;
  for (size_t i = 0; i < kFaultCauses; ++i) stats.values[i] = 1;
  EXPECT_EQ(stats.Denied(), 6u);
}

}  // namespace
}  // namespace hostmm
