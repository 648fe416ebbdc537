#include "runtime/frame_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <vector>

#include "runtime/huge_tmpfs.h"
#include "runtime/mapping.h"
#include "tests/testing/child.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"
#include "tests/testing/sysctl_guard.h"
#include "vmm/units.h"

namespace hostmm {
namespace {

using test::Child;
using test::Identity;
using test::ScopedMapping;

// Whether the first touch of a block of a fresh file maps it huge.
bool GivesHugeFrames(const FrameStore& store) {
  absl::StatusOr<UniqueFd> file = store.NewFile(2 * kBlockSize);
  if (!file.ok()) return false;
  const ScopedMapping mapping = ScopedMapping::SharedFile(file->get(), 2 * kBlockSize);
  if (!mapping.ok()) return false;
  test::WriteByte(mapping.data(), 1);
  return test::PmdMappedKib(mapping.data()) == static_cast<int64_t>(kBlockSize >> 10);
}

int MountsHere() {
  std::ifstream mounts("/proc/self/mountinfo");
  int count = 0;
  for (std::string line; std::getline(mounts, line);) ++count;
  return count;
}

TEST(FrameStoreTest, HugeFramesAsRootAndAsNobodyLeaveNoMount) {
  HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs());
  const int mounts = MountsHere();
  absl::StatusOr<FrameStore> store = FrameStore::Open(FrameKind::kHuge);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_TRUE(GivesHugeFrames(*store));
  HOSTMM_SKIP_IF(test::WhyNoRoot());
  Child nobody(Identity::kNobody, [](test::Channel&) {
    const absl::StatusOr<FrameStore> own = FrameStore::Open(FrameKind::kHuge);
    CHILD_CHECK(own.ok());
    CHILD_CHECK(GivesHugeFrames(*own));
    // We have not moved into the user namespace that made the mount.
    CHILD_CHECK(geteuid() == test::kNobody);
    return 0;
  });
  EXPECT_EQ(nobody.Wait(), 0);
  EXPECT_EQ(MountsHere(), mounts);
}

// The default limit of a tmpfs is half of memory; ours has none, and a file may be sparse.
TEST(FrameStoreTest, AFileMayBeLargerThanTheDefaultLimit) {
  HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs());
  const absl::StatusOr<FrameStore> store = FrameStore::Open(FrameKind::kHuge);
  ASSERT_TRUE(store.ok()) << store.status();
  const auto bytes = static_cast<uint64_t>(test::MeminfoKib("MemTotal")) << 10;
  const absl::StatusOr<UniqueFd> file = store->NewFile(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  struct stat info;
  ASSERT_EQ(fstat(file->get(), &info), 0);
  EXPECT_EQ(static_cast<uint64_t>(info.st_size), bytes);
  EXPECT_EQ(info.st_blocks, 0);
  EXPECT_EQ(info.st_nlink, 0u) << "it has a name";
}

TEST(FrameStoreTest, ALengthThatNoFileCanHaveIsAnError) {
  const absl::StatusOr<FrameStore> store = FrameStore::Open(FrameKind::kBase);
  ASSERT_TRUE(store.ok());
  EXPECT_FALSE(store->NewFile(~uint64_t{0} - 4095).ok());
}

TEST(FrameStoreTest, BaseGivesSmallFrames) {
  const absl::StatusOr<FrameStore> store = FrameStore::Open(FrameKind::kBase);
  ASSERT_TRUE(store.ok()) << store.status();
  absl::StatusOr<UniqueFd> file = store->NewFile(2 * kBlockSize);
  ASSERT_TRUE(file.ok());
  const ScopedMapping mapping = ScopedMapping::SharedFile(file->get(), 2 * kBlockSize);
  test::WriteByte(mapping.data(), 1);
  struct stat info;
  ASSERT_EQ(fstat(file->get(), &info), 0);
  std::ifstream enabled("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string modes;
  std::getline(enabled, modes);
  if (modes.find("[never]") == std::string::npos) {
    GTEST_SKIP() << "shmem_enabled is not 'never': memfds may be huge here";
  }
  EXPECT_EQ(static_cast<uint64_t>(info.st_blocks) * 512, kPageSize);
}

TEST(FrameStoreTest, AdoptedIsNoStore) {
  const absl::StatusOr<FrameStore> store = FrameStore::Open(FrameKind::kAdopted);
  ASSERT_TRUE(store.ok());
  EXPECT_FALSE(store->NewFile(kBlockSize).ok());
}

// Told at once, with the remedy, and not by SIGBUS at the first touch.
TEST(FrameStoreTest, HugetlbReservesOrSaysWhatToDo) {
  const test::SysctlGuard overcommit("/proc/sys/vm/nr_overcommit_hugepages", 16);
  if (!overcommit.ok()) GTEST_SKIP() << "needs root to raise vm.nr_overcommit_hugepages";
  const absl::StatusOr<FrameStore> store = FrameStore::Open(FrameKind::kHugetlb);
  if (!store.ok()) GTEST_SKIP() << "needs 2 MiB hugetlb pages: " << store.status();
  const int64_t free_pages = test::ReadSysctl("/proc/sys/vm/nr_overcommit_hugepages") +
                             test::ReadSysctl("/proc/sys/vm/nr_hugepages");
  const absl::StatusOr<UniqueFd> file = store->NewFile(4 * kBlockSize);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto too_much = static_cast<uint64_t>(free_pages + 1) * kBlockSize;
  const absl::StatusOr<UniqueFd> refused = store->NewFile(too_much);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(refused.status().message().find("nr_overcommit_hugepages"), std::string::npos);
}

TEST(HugeTmpfsTest, GivesADescriptorOfAMountThatIsNowhere) {
  HOSTMM_SKIP_IF(test::WhyNoHugeTmpfs());
  const absl::StatusOr<UniqueFd> mount = MountHugeTmpfs();
  ASSERT_TRUE(mount.ok()) << mount.status();
  // Needed by a program that is started meanwhile: not to get it.
  EXPECT_NE(fcntl(mount->get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(HugeTmpfsTest, WhereNamespacesAreForbiddenItSaysTheRemedy) {
  HOSTMM_SKIP_IF(test::WhyNoRoot());
  Child nobody(Identity::kSame, [](test::Channel&) {
    // As in a container: a namespace in which no other may be made.
    CHILD_CHECK(unshare(CLONE_NEWUSER) == 0);
    std::ofstream("/proc/sys/user/max_user_namespaces") << 0;
    const absl::StatusOr<UniqueFd> mount = MountHugeTmpfs();
    CHILD_CHECK(!mount.ok());
    CHILD_CHECK(mount.status().message().find("remedy") != std::string::npos);
    return 0;
  });
  EXPECT_EQ(nobody.Wait(), 0);
}

}  // namespace
}  // namespace hostmm
