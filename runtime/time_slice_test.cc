#include "runtime/time_slice.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <thread>

namespace hostmm {
namespace {

// Of the calling thread, in ns; its place in struct sched_attr is the kernel's ABI. 0: of a kernel
// that gives all threads the same one.
uint64_t OwnSlice() {
  uint64_t attr[6] = {};
  EXPECT_EQ(syscall(SYS_sched_getattr, 0, attr, sizeof(attr), 0), 0);
  return attr[3];
}

TEST(TimeSliceTest, IsThatOfTheThreadAndOfThoseThatItStarts) {
  const uint64_t before = OwnSlice();
  if (before == 0) GTEST_SKIP() << "needs Linux 6.12";
  uint64_t own = 0;
  uint64_t started = 0;
  std::thread([&] {
    TakeTimeSlice(kShortTimeSlice);
    own = OwnSlice();
    std::thread([&] { started = OwnSlice(); }).join();
  }).join();
  EXPECT_EQ(own, static_cast<uint64_t>(kShortTimeSlice.count()));
  EXPECT_EQ(started, own);
  EXPECT_EQ(OwnSlice(), before);
  EXPECT_LT(own, before);
}

TEST(TimeSliceTest, APolicyThatSomebodyChoseStays) {
  std::thread([] {
    const sched_param param = {};
    ASSERT_EQ(sched_setscheduler(0, SCHED_IDLE, &param), 0);
    TakeTimeSlice(kShortTimeSlice);
    EXPECT_EQ(sched_getscheduler(0), SCHED_IDLE);
    EXPECT_NE(OwnSlice(), static_cast<uint64_t>(kShortTimeSlice.count()));
  }).join();
}

TEST(TimeSliceTest, PolicyAndNiceAreAsBefore) {
  std::thread([] {
    ASSERT_EQ(nice(5), 5);
    TakeTimeSlice(kShortTimeSlice);
    EXPECT_EQ(nice(0), 5);
    EXPECT_EQ(sched_getscheduler(0), SCHED_OTHER);
  }).join();
}

}  // namespace
}  // namespace hostmm
