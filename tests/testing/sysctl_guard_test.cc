#include "tests/testing/sysctl_guard.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

constexpr char kPath[] = "/proc/sys/vm/nr_overcommit_hugepages";

class SysctlGuardTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoRoot());
    before_ = ReadSysctl(kPath);
    if (before_ < 0) GTEST_SKIP() << "no " << kPath << ": the kernel has no hugetlb pages";
  }

  int64_t before_ = -1;
};

TEST_F(SysctlGuardTest, RaisesAndRestores) {
  {
    const SysctlGuard guard(kPath, before_ + 3);
    ASSERT_TRUE(guard.ok());
    EXPECT_EQ(ReadSysctl(kPath), before_ + 3);
  }
  EXPECT_EQ(ReadSysctl(kPath), before_);
}

TEST_F(SysctlGuardTest, RestoresWhenTheScopeIsLeftByAnException) {
  try {
    const SysctlGuard guard(kPath, before_ + 3);
    throw std::runtime_error("a failure in the middle of a test");
  } catch (const std::runtime_error&) {
  }
  EXPECT_EQ(ReadSysctl(kPath), before_);
}

TEST_F(SysctlGuardTest, NeverLowers) {
  const SysctlGuard raised(kPath, before_ + 3);
  {
    const SysctlGuard guard(kPath, before_ + 1);
    EXPECT_TRUE(guard.ok());
    EXPECT_EQ(ReadSysctl(kPath), before_ + 3);
  }
  EXPECT_EQ(ReadSysctl(kPath), before_ + 3);
}

TEST(SysctlGuardErrorTest, UnknownPathIsNotOk) {
  EXPECT_FALSE(SysctlGuard("/proc/sys/vm/no_such_name", 1).ok());
}

}  // namespace
}  // namespace hostmm::test
