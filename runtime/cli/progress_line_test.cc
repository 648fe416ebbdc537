#include "runtime/cli/progress_line.h"

#include "gtest/gtest.h"

namespace hostmm {
namespace {

using Seconds = std::chrono::duration<double>;

TEST(ProgressLineTest, Texts) {
  EXPECT_EQ(ProgressText(uint64_t{512} << 20, uint64_t{1} << 30, Seconds(2)),
            "512.0 of 1024.0 MiB, 50 %, 256 MiB/s");
  EXPECT_EQ(ProgressText(0, uint64_t{1} << 30, Seconds(0)), "0.0 of 1024.0 MiB, 0 %");
  EXPECT_EQ(ProgressText(0, 0, Seconds(0)), "0.0 of 0.0 MiB, 100 %");
  EXPECT_EQ(SizeText(8192), "8 KiB");
  EXPECT_EQ(SizeText(uint64_t{3} << 19), "1.5 MiB");
  EXPECT_EQ(SizeText(uint64_t{5} << 29), "2.5 GiB");
}

TEST(ProgressLineTest, WritesNothingWhereNobodySeesIt) {
  testing::internal::CaptureStderr();
  {
    ProgressLine line(ProgressLine::On::kNo);
    line.Show(1, 2);
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  testing::internal::CaptureStderr();
  {
    ProgressLine line(ProgressLine::On::kYes);
    line.Show(1 << 20, 2 << 20);
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "\r\x1b[Khostmm: 1.0 of 2.0 MiB, 50 %\r\x1b[K");
}

}  // namespace
}  // namespace hostmm
