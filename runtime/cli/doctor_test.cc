#include "runtime/cli/doctor.h"

#include <linux/userfaultfd.h>

#include <cerrno>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/version.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;

// A host on which everything works, seen by root.
HostFeatures HealthyHost() {
  HostFeatures host;
  host.user = 0;
  host.group_name = "root";
  host.kernel = ParseKernelRelease("6.18.0");
  host.userfaultfd.device = Attempt::Works();
  host.userfaultfd.system_call = Attempt::Works();
  host.userfaultfd.passed_descriptor = Attempt::Works();
  host.userfaultfd.feature_bits =
      UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  host.huge.shmem_enabled = "never";
  host.huge.tmpfs = Attempt::Works();
  host.huge.huge_bytes = uint64_t{2} << 20;
  host.hugetlb.page_bytes = uint64_t{2} << 20;
  host.io_uring.setup = Attempt::Works();
  host.io_uring.disabled_sysctl = 0;
  host.limits = {1024, 1 << 20, 8 << 20, UINT64_MAX, 65530};
  host.available_bytes = uint64_t{8} << 30;
  return host;
}

OrFailure<PreloadLibrary> GoodLibrary() {
  return PreloadLibrary{"/opt/hostmm/lib.so", HOSTMM_VERSION, Reach::kEveryone};
}

Finding Find(const Diagnosis& diagnosis, const std::string& thing) {
  for (const Finding& finding : diagnosis.findings) {
    if (finding.thing == thing) return finding;
  }
  ADD_FAILURE() << "nothing about " << thing;
  return {};
}

TEST(DoctorTest, HealthyHost) {
  const Diagnosis diagnosis = Judge(HealthyHost(), GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kOk);
  EXPECT_EQ(diagnosis.summary(), "uffd mode on huge frames");
  for (const Finding& finding : diagnosis.findings) {
    EXPECT_EQ(finding.level, Level::kOk) << finding.thing;
  }
}

TEST(DoctorTest, HugetlbIsOptional) {
  const Finding finding = Find(Judge(HealthyHost(), GoodLibrary()), "hugetlb");
  EXPECT_EQ(finding.level, Level::kOk);
  EXPECT_EQ(finding.remedy, "sysctl -w vm.nr_overcommit_hugepages=2048");
}

TEST(DoctorTest, WithoutTheDeviceItIsNativeMode) {
  HostFeatures host = HealthyHost();
  host.user = 1000;
  host.group_name = "staff";
  host.userfaultfd.device = Attempt::Refused(EACCES);
  host.userfaultfd.system_call = Attempt::Refused(EPERM);
  host.userfaultfd.passed_descriptor = Attempt();
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kDegraded);
  EXPECT_EQ(diagnosis.mode, ExpectedMode::kNative);
  EXPECT_EQ(Find(diagnosis, "userfaultfd").remedy,
            "sudo chgrp staff /dev/userfaultfd && sudo chmod 0660 /dev/userfaultfd");
}

TEST(DoctorTest, SystemCallIsEnoughWhereEverybodyMayMakeIt) {
  HostFeatures host = HealthyHost();
  host.userfaultfd.device = Attempt::Refused(ENOENT);
  host.userfaultfd.passed_descriptor = Attempt();
  EXPECT_EQ(Find(Judge(host, GoodLibrary()), "userfaultfd").level, Level::kWarn);
  host.userfaultfd.unprivileged_sysctl = 1;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(Find(diagnosis, "userfaultfd").level, Level::kOk);
  EXPECT_EQ(diagnosis.status(), ExitStatus::kOk);
}

TEST(DoctorTest, NativeModeHasNoSnapshotsAndTheRemedyIsThatOfUserfaultfd) {
  HostFeatures host = HealthyHost();
  host.userfaultfd.device = Attempt::Refused(EACCES);
  host.userfaultfd.system_call = Attempt::Refused(EPERM);
  host.userfaultfd.passed_descriptor = Attempt();
  host.userfaultfd.feature_bits = 0;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  const Finding snapshots = Find(diagnosis, "snapshots");
  EXPECT_EQ(snapshots.level, Level::kWarn);
  EXPECT_EQ(snapshots.fact, "not in native mode");
  EXPECT_EQ(snapshots.remedy, Find(diagnosis, "userfaultfd").remedy);
}

TEST(DoctorTest, ADescriptorThatCannotBePassedOnMeansNoSnapshots) {
  HostFeatures host = HealthyHost();
  host.userfaultfd.passed_descriptor = Attempt::Refused(EPERM);
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(Find(diagnosis, "snapshots").level, Level::kWarn);
  EXPECT_EQ(Find(diagnosis, "snapshots").remedy, Find(diagnosis, "passing").remedy);
}

TEST(DoctorTest, SnapshotsNeedLinux6Dot4) {
  HostFeatures host = HealthyHost();
  host.kernel = ParseKernelRelease("6.3.9");
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(Find(diagnosis, "snapshots").level, Level::kWarn);
  EXPECT_THAT(Find(diagnosis, "snapshots").remedy, HasSubstr("6.4"));
  EXPECT_EQ(diagnosis.status(), ExitStatus::kOk) << "everything else runs";
  host.kernel = ParseKernelRelease("6.4.0");
  EXPECT_EQ(Find(Judge(host, GoodLibrary()), "snapshots").level, Level::kOk);
}

TEST(DoctorTest, SnapshotsNeedFirstWritesToBeSeen) {
  HostFeatures host = HealthyHost();
  host.userfaultfd.feature_bits &= ~uint64_t{UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
  const Finding snapshots = Find(Judge(host, GoodLibrary()), "snapshots");
  EXPECT_EQ(snapshots.level, Level::kWarn);
  EXPECT_THAT(snapshots.fact, HasSubstr("without WP_HUGETLBFS_SHMEM"));
  EXPECT_THAT(snapshots.remedy, HasSubstr("CONFIG_HAVE_ARCH_USERFAULTFD_WP=y"));
}

// Such a program gets native mode, and what it maps has no snapshots.
TEST(DoctorTest, WithTheSystemCallOfRootAloneSomeMemoryHasNoSnapshots) {
  HostFeatures host = HealthyHost();
  host.userfaultfd.device = Attempt::Refused(ENOENT);
  host.userfaultfd.passed_descriptor = Attempt();
  const Finding snapshots = Find(Judge(host, GoodLibrary()), "snapshots");
  EXPECT_EQ(snapshots.level, Level::kWarn);
  EXPECT_THAT(snapshots.fact, HasSubstr("from root to another user"));
  EXPECT_EQ(snapshots.remedy, "sysctl -w vm.unprivileged_userfaultfd=1");
  host.userfaultfd.unprivileged_sysctl = 1;
  EXPECT_EQ(Find(Judge(host, GoodLibrary()), "snapshots").level, Level::kOk);
}

TEST(DoctorTest, DeniedHugePagesMeanBaseFrames) {
  HostFeatures host = HealthyHost();
  host.huge.shmem_enabled = "deny";
  host.huge.huge_bytes = 0;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kDegraded);
  EXPECT_EQ(diagnosis.frames, ExpectedFrames::kBase);
  EXPECT_EQ(Find(diagnosis, "huge-frames").remedy,
            "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled");
}

TEST(DoctorTest, SmallPagesOnlyMeanFragmentedMemory) {
  HostFeatures host = HealthyHost();
  host.huge.huge_bytes = 0;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kDegraded);
  EXPECT_EQ(Find(diagnosis, "huge-frames").remedy, "sysctl -w vm.compact_memory=1");
}

TEST(DoctorTest, RefusedUserNamespaceMeansBaseFrames) {
  HostFeatures host = HealthyHost();
  host.user = 1000;
  host.huge.user_namespace = Attempt::Refused(EPERM);
  host.huge.tmpfs = Attempt();
  host.huge.huge_bytes = 0;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kDegraded);
  EXPECT_THAT(Find(diagnosis, "user-namespace").remedy, HasSubstr("unprivileged_userns_clone=1"));
}

TEST(DoctorTest, WithoutIoUringItCannotRun) {
  HostFeatures host = HealthyHost();
  host.io_uring.setup = Attempt::Refused(EPERM);
  host.io_uring.disabled_sysctl = 2;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kCannotRun);
  EXPECT_EQ(Find(diagnosis, "io_uring").level, Level::kFail);
  EXPECT_EQ(Find(diagnosis, "io_uring").remedy, "sysctl -w kernel.io_uring_disabled=0");
}

TEST(DoctorTest, LibraryOfAnotherVersionCannotRun) {
  PreloadLibrary library{"/opt/hostmm/lib.so", "0.0.9", Reach::kEveryone};
  const Diagnosis diagnosis = Judge(HealthyHost(), library);
  EXPECT_EQ(diagnosis.status(), ExitStatus::kCannotRun);
  EXPECT_THAT(Find(diagnosis, "preload").fact, HasSubstr("0.0.9"));
}

TEST(DoctorTest, NothingLaterRepairsAHostThatCannotRun) {
  HostFeatures host = HealthyHost();
  host.userfaultfd.device = Attempt::Refused(ENOENT);
  host.userfaultfd.system_call = Attempt::Refused(ENOSYS);
  host.io_uring.setup = Attempt::Refused(ENOSYS);
  host.userfaultfd.feature_bits = 0;
  EXPECT_EQ(Judge(host, GoodLibrary()).status(), ExitStatus::kCannotRun);
}

TEST(DoctorTest, LowLimitsAreWarningsWithARemedy) {
  HostFeatures host = HealthyHost();
  host.user = 1000;
  host.huge.user_namespace = Attempt::Works();
  host.limits.open_files_hard = 256;
  host.limits.processes = 100;
  host.limits.max_map_count = 1000;
  const Diagnosis diagnosis = Judge(host, GoodLibrary());
  EXPECT_EQ(diagnosis.status(), ExitStatus::kOk) << "limits alone do not change the rung";
  EXPECT_THAT(Find(diagnosis, "open-files").fact, HasSubstr("room for 64 guests"));
  for (const char* thing : {"open-files", "processes", "max-map-count"}) {
    EXPECT_EQ(Find(diagnosis, thing).level, Level::kWarn) << thing;
    EXPECT_NE(Find(diagnosis, thing).remedy, "") << thing;
  }
}

TEST(DoctorTest, EveryWarningAndFailureHasARemedy) {
  HostFeatures host;  // nothing was found at all
  host.userfaultfd.device = Attempt::Refused(ENOENT);
  host.userfaultfd.system_call = Attempt::Refused(ENOSYS);
  host.io_uring.setup = Attempt::Refused(EPERM);
  host.huge.tmpfs = Attempt::Refused(EPERM);
  host.limits.max_map_count = 1;
  const Diagnosis diagnosis =
      Judge(host, MakeFailure(ExitStatus::kNoPreload, "lib.so", "not found", "build it"));
  int bad = 0;
  for (const Finding& finding : diagnosis.findings) {
    if (finding.level == Level::kOk) continue;
    ++bad;
    EXPECT_NE(finding.remedy, "") << finding.thing;
  }
  EXPECT_GE(bad, 5);
}

TEST(DoctorTest, TextHasOneLinePerFindingAndTheVerdict) {
  Diagnosis diagnosis;
  diagnosis.findings = {{Level::kOk, "kernel", "6.18", ""},
                        {Level::kWarn, "thing", "two\nlines", "do it"}};
  EXPECT_EQ(DiagnosisText(diagnosis),
            "ok    kernel          6.18\n"
            "warn  thing           two?lines  -> do it\n"
            "hostmm " HOSTMM_VERSION ": uffd mode on huge frames\n");
}

TEST(DoctorTest, Json) {
  Diagnosis diagnosis;
  diagnosis.findings = {{Level::kFail, "thing", "a \"quoted\" fact", "do\\it"}};
  diagnosis.mode = ExpectedMode::kNone;
  EXPECT_EQ(DiagnosisJson(diagnosis),
            "{\"version\":\"" HOSTMM_VERSION
            "\",\"status\":2,\"summary\":\"hostmm cannot run here\",\"granule_bytes\":2097152,"
            "\"findings\":[{\"level\":\"fail\",\"thing\":\"thing\","
            "\"fact\":\"a \\\"quoted\\\" fact\",\"remedy\":\"do\\\\it\"}]}\n");
}

}  // namespace
}  // namespace hostmm
