#include "runtime/rung.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/testing/child.h"
#include "tests/testing/skip.h"
#include "tests/testing/sysctl_guard.h"

namespace hostmm {
namespace {

using test::Child;
using test::Identity;

PagerOptions Asking(FramesChoice frames, bool strict = false) {
  PagerOptions options;
  options.frames = frames;
  options.strict = strict;
  return options;
}

bool HasNoHugetlbPages() {
  return test::ReadSysctl("/proc/sys/vm/nr_hugepages") == 0 &&
         test::ReadSysctl("/proc/sys/vm/nr_overcommit_hugepages") == 0;
}

TEST(RungTest, WhatIsAskedForAndCanBeHadNeedsNoExcuse) {
  HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs());
  HOSTMM_SKIP_IF(test::WhyNoUserfaultfd());
  for (const FramesChoice choice : {FramesChoice::kAuto, FramesChoice::kHuge}) {
    const absl::StatusOr<Rung> rung = ChooseRung(Asking(choice, /*strict=*/true));
    ASSERT_TRUE(rung.ok()) << rung.status();
    EXPECT_EQ(rung->store.kind(), FrameKind::kHuge);
    EXPECT_EQ(rung->why, "");
    EXPECT_FALSE(rung->second.has_value());
  }
  const absl::StatusOr<Rung> base = ChooseRung(Asking(FramesChoice::kBase));
  ASSERT_TRUE(base.ok());
  EXPECT_EQ(base->store.kind(), FrameKind::kBase);
}

TEST(RungTest, WithoutHugetlbPagesItFallsAndSaysWhyOrRefuses) {
  HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs());
  if (!HasNoHugetlbPages()) GTEST_SKIP() << "needs a machine without hugetlb pages";
  const absl::StatusOr<Rung> rung = ChooseRung(Asking(FramesChoice::kHugetlb));
  ASSERT_TRUE(rung.ok());
  EXPECT_EQ(rung->store.kind(), FrameKind::kHuge);
  EXPECT_NE(rung->why.find("vm.nr_overcommit_hugepages"), std::string::npos) << rung->why;
  const absl::StatusOr<Rung> strict = ChooseRung(Asking(FramesChoice::kHugetlb, /*strict=*/true));
  ASSERT_FALSE(strict.ok());
  EXPECT_EQ(strict.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(RungTest, HugetlbHasHugeBehindIt) {
  HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs());
  const test::SysctlGuard overcommit("/proc/sys/vm/nr_overcommit_hugepages", 4);
  if (!overcommit.ok()) GTEST_SKIP() << "needs root to raise vm.nr_overcommit_hugepages";
  const absl::StatusOr<Rung> rung = ChooseRung(Asking(FramesChoice::kHugetlb));
  ASSERT_TRUE(rung.ok());
  if (rung->store.kind() != FrameKind::kHugetlb) GTEST_SKIP() << rung->why;
  ASSERT_TRUE(rung->second.has_value());
  EXPECT_EQ(rung->second->kind(), FrameKind::kHuge);
}

TEST(RungTest, NobodyIsNativeAndSaysHowNotToBe) {
  HOSTMM_SKIP_IF(test::WhyNoRoot());
  Child nobody(Identity::kNobody, [](test::Channel&) {
    const absl::StatusOr<Rung> rung = ChooseRung(Asking(FramesChoice::kBase));
    CHILD_CHECK(rung.ok());
    if (rung->uffd.source != UffdAccess::Source::kNone) return 77;
    CHILD_CHECK(rung->why.find("remedy") != std::string::npos);
    CHILD_CHECK(!ChooseRung(Asking(FramesChoice::kBase, /*strict=*/true)).ok());
    return 0;
  });
  const int status = nobody.Wait();
  if (status == 77) GTEST_SKIP() << "everybody may use userfaultfd here";
  EXPECT_EQ(status, 0);
}

TEST(RungTest, EveryKindHasAName) {
  EXPECT_STREQ(Name(FrameKind::kHuge), "huge");
  EXPECT_STREQ(Name(FrameKind::kHugetlb), "hugetlb");
  EXPECT_STREQ(Name(FrameKind::kBase), "base");
  EXPECT_STREQ(Name(FrameKind::kAdopted), "adopted");
}

}  // namespace
}  // namespace hostmm
