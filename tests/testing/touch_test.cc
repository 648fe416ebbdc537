// The helper that the kernel tests trust: it must see a missed wake, and end all the same.

#include "tests/testing/touch.h"

#include <gtest/gtest.h>

#include <chrono>

#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

using std::chrono::milliseconds;

// The test below waits for it to pass, twice.
constexpr milliseconds kShort(50);

class TouchTest : public ::testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    file_ = MemfdFile(kBlock);
    view_ = ScopedMapping::SharedFile(file_.get(), kBlock);
    ASSERT_TRUE(view_.ok());
    uffd_ = TestUffd::Open();
    ASSERT_EQ(uffd_.Register(view_.data(), kBlock, UFFDIO_REGISTER_MODE_MISSING), 0);
  }

  ScopedFd file_;
  ScopedMapping view_;
  TestUffd uffd_;
};

TEST_F(TouchTest, MissedWakeIsSeenAndTheThreadIsFreed) {
  {
    Touch touch(&uffd_, view_.data(), Touch::Kind::kRead, kShort);
    ASSERT_TRUE(uffd_.WaitFault().has_value());
    EXPECT_FALSE(touch.Finished(kShort));
    EXPECT_TRUE(touch.StillWaiting());
  }
  EXPECT_FALSE(uffd_.valid()) << "freed by closing the userfaultfd";
}

TEST_F(TouchTest, AnsweredTouchFinishesAndLeavesTheUserfaultfdOpen) {
  {
    Touch touch(&uffd_, view_.data(), Touch::Kind::kWrite);
    ASSERT_TRUE(uffd_.WaitFault().has_value());
    ASSERT_EQ(uffd_.Unregister(view_.data(), kBlock), 0);
    EXPECT_TRUE(touch.Finished());
    EXPECT_GE(touch.minor_faults(), 1);
  }
  EXPECT_TRUE(uffd_.valid());
  EXPECT_EQ(ReadByte(view_.data()), 1);
}

TEST_F(TouchTest, NoFaultIsNoEvent) { EXPECT_TRUE(uffd_.Quiet()); }

}  // namespace
}  // namespace hostmm::test
