#include "runtime/memory_climate.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "gtest/gtest.h"

namespace hostmm {
namespace {

class ClimateWatchTest : public testing::Test {
 protected:
  void SetUp() override {
    Write("meminfo", "MemTotal: 1600 kB\nMemFree: 10 kB\nMemAvailable: 800 kB\n");
    Write("self", "");
  }
  void Write(const std::string& name, const std::string& text) {
    const std::filesystem::path path = root_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::trunc) << text;
  }
  ClimateWatch Watch() const {
    return ClimateWatch({root_ / "meminfo", root_ / "self", root_ / "cgroup"});
  }

  const std::filesystem::path root_ = std::filesystem::path(testing::TempDir()) /
                                      testing::UnitTest::GetInstance()->current_test_info()->name();
};

TEST_F(ClimateWatchTest, TheMachine) {
  const ClimateWatch watch = Watch();
  EXPECT_EQ(watch.Now(), MemoryClimate::kAmple);
  Write("meminfo", "MemTotal: 1600 kB\nMemFree: 10 kB\nMemAvailable: 99 kB\n");
  EXPECT_EQ(watch.Now(), MemoryClimate::kTight);
}

TEST_F(ClimateWatchTest, AGroupOfVersionTwo) {
  Write("self", "0::/a/b\n");
  Write("cgroup/a/b/memory.max", "1600\n");
  Write("cgroup/a/b/memory.current", "1490\n");
  Write("cgroup/a/b/memory.stat", "anon 5\ninactive_file 0\n");
  const ClimateWatch watch = Watch();
  EXPECT_EQ(watch.Now(), MemoryClimate::kAmple);
  Write("cgroup/a/b/memory.current", "1590\n");
  EXPECT_EQ(watch.Now(), MemoryClimate::kTight);
  Write("cgroup/a/b/memory.stat", "anon 5\ninactive_file 500\n");
  EXPECT_EQ(watch.Now(), MemoryClimate::kAmple) << "file cache is not in the way";
  Write("cgroup/a/b/memory.stat", "anon 5\ninactive_file 0\n");
  Write("cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(watch.Now(), MemoryClimate::kAmple);
}

TEST_F(ClimateWatchTest, AGroupOfVersionOneBesideAnEmptyVersionTwo) {
  Write("self", "5:cpu:/x\n4:memory:/m\n0::/\n");
  Write("cgroup/memory/m/memory.limit_in_bytes", "1600\n");
  Write("cgroup/memory/m/memory.usage_in_bytes", "1590\n");
  Write("cgroup/memory/m/memory.stat", "inactive_file 0\ntotal_inactive_file 100\n");
  const ClimateWatch watch = Watch();
  EXPECT_EQ(watch.Now(), MemoryClimate::kAmple);
  Write("cgroup/memory/m/memory.stat", "inactive_file 0\ntotal_inactive_file 0\n");
  EXPECT_EQ(watch.Now(), MemoryClimate::kTight);
}

TEST_F(ClimateWatchTest, WhatCannotBeReadLimitsNothing) {
  EXPECT_EQ(ClimateWatch({"/nonexistent", "/nonexistent", "/nonexistent"}).Now(),
            MemoryClimate::kAmple);
}

}  // namespace
}  // namespace hostmm
