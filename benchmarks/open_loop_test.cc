#include "benchmarks/open_loop.h"

#include <gtest/gtest.h>

#include <memory>

namespace hostmm::benchmarks {
namespace {

TEST(OpenLoopTest, GapsHaveTheMeanThatWasAsked) {
  Arrivals arrivals(1, 1'000, 500.0);
  uint64_t last = 1'000;
  for (int i = 0; i < 100'000; ++i) {
    const uint64_t due = arrivals.Next();
    ASSERT_GE(due, last);
    last = due;
  }
  EXPECT_NEAR(static_cast<double>(last - 1'000) / 100'000, 500.0, 10.0);
}

TEST(OpenLoopTest, QuantilesOfTheWindowAlone) {
  const auto one = std::make_unique<Log>();
  const auto two = std::make_unique<Log>();
  // Latencies 1 .. 1,000 within the window, in two logs; huge ones outside of it.
  for (uint64_t i = 1; i <= 1000; ++i) {
    Log& log = i % 2 == 0 ? *one : *two;
    log.requests[log.count++] = {100 + i % 10, i};
  }
  one->requests[one->count++] = {99, 1'000'000};
  two->requests[two->count++] = {110, 1'000'000};
  Log* const logs[] = {one.get(), two.get()};
  const Latencies found = LatenciesOf(logs, 100, 110);
  EXPECT_EQ(found.count, 1000u);
  EXPECT_EQ(found.p50_ns, 501u);
  EXPECT_EQ(found.p99_ns, 991u);
  EXPECT_EQ(found.p999_ns, 1000u);
  EXPECT_EQ(found.max_ns, 1000u);
  EXPECT_EQ(LatenciesOf(logs, 200, 300).count, 0u);
}

}  // namespace
}  // namespace hostmm::benchmarks
