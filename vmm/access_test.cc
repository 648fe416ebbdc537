#include "vmm/access.h"

#include <gtest/gtest.h>

namespace hostmm {
namespace {

TEST(AccessTest, SetOperations) {
  constexpr AccessSet read_write = AccessSet::ReadWrite();
  EXPECT_TRUE(read_write.Contains(Access::kRead));
  EXPECT_TRUE(read_write.Contains(Access::kWrite));
  EXPECT_FALSE(read_write.Contains(Access::kExec));
  EXPECT_EQ(read_write & Access::kRead, AccessSet(Access::kRead));
  EXPECT_EQ(AccessSet(Access::kRead) | Access::kWrite, read_write);
}

TEST(AccessTest, Subsets) {
  EXPECT_TRUE(AccessSet().IsSubsetOf(Access::kRead));
  EXPECT_TRUE(AccessSet(Access::kRead).IsSubsetOf(AccessSet::ReadWrite()));
  EXPECT_FALSE(AccessSet::ReadWrite().IsSubsetOf(Access::kRead));
}

TEST(AccessTest, NoneIsAlwaysContained) {
  EXPECT_TRUE(AccessSet().Contains(Access::kNone));
  EXPECT_TRUE(AccessSet().empty());
  EXPECT_FALSE(AccessSet(Access::kExec).empty());
}

TEST(AccessTest, UnknownBitsAreDropped) {
  EXPECT_EQ(AccessSet::FromBits(0xff), AccessSet::All());
  EXPECT_EQ(AccessSet::FromBits(0xf8), AccessSet());
}

}  // namespace
}  // namespace hostmm
