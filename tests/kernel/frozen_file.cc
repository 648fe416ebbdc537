#include "tests/kernel/frozen_file.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "tests/testing/frame_files.h"
#include "tests/testing/skip.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

// Linux 6.4; newer than the C library headers of Debian 12.
constexpr uint64_t kContinueModeWp = uint64_t{1} << 1;

// Every page differs from its neighbours; the top bit is free for what tests write.
std::string Pattern(size_t bytes) {
  std::string pattern(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) {
    pattern[i] = static_cast<char>((i + i / kPage * 13 + i / kBlock * 5) & 0x7f);
  }
  return pattern;
}

std::string FlagNames(uint64_t flags) {
  std::string names;
  if (flags & UFFD_PAGEFAULT_FLAG_MINOR) names += " MINOR";
  if (flags & UFFD_PAGEFAULT_FLAG_WP) names += " WP";
  if (flags & UFFD_PAGEFAULT_FLAG_WRITE) names += " WRITE";
  return names.empty() ? " none" : names;
}

}  // namespace

std::string NameOf(Store store) { return store == Store::kHugetlb ? "Hugetlb" : "HugeTmpfs"; }

std::string NameOf(Road road) {
  switch (road) {
    case Road::kZap:
      return "Zap";
    case Road::kMapped:
      return "Mapped";
    default:
      return "Protect";
  }
}

std::string WhyNoStore(Store store) {
  if (std::string why = WhyNoUserfaultfd(kNeededFeatures); !why.empty()) return why;
  if (store == Store::kHugeTmpfs) return WhyNoHugeTmpfs();
  return WhyNoRoot();  // vm.nr_overcommit_hugepages
}

int ContinueAs(const TestUffd& uffd, const void* at, size_t bytes, MapAs as) {
  uffdio_continue request = {};
  request.range = uffdio_range{reinterpret_cast<uint64_t>(at), bytes};
  request.mode = as == MapAs::kProtected ? kContinueModeWp : 0;
  return ioctl(uffd.fd(), UFFDIO_CONTINUE, &request) == 0 ? 0 : errno;
}

int CopyAs(const TestUffd& uffd, void* at, const void* source, size_t bytes, MapAs as) {
  uffdio_copy request = {};
  request.dst = reinterpret_cast<uint64_t>(at);
  request.src = reinterpret_cast<uint64_t>(source);
  request.len = bytes;
  request.mode = as == MapAs::kProtected ? UFFDIO_COPY_MODE_WP : 0;
  return ioctl(uffd.fd(), UFFDIO_COPY, &request) == 0 ? 0 : errno;
}

void FrozenFileTest::Open(Store store, size_t bytes) {
  HOSTMM_SKIP_IF(WhyNoStore(store));
  store_ = store;
  unit_ = store == Store::kHugetlb ? kBlock : kPage;
  if (store == Store::kHugetlb) {
    // Twice, for private copies, and 16 for whoever else uses the pool meanwhile.
    const int64_t pages = static_cast<int64_t>(2 * bytes / kBlock) + 16;
    overcommit_ = std::make_unique<SysctlGuard>("/proc/sys/vm/nr_overcommit_hugepages", pages);
    if (!overcommit_->ok()) GTEST_SKIP() << "cannot raise vm.nr_overcommit_hugepages";
    file_ = HugetlbFile(bytes);
  } else {
    file_ = HugeTmpfsFile(bytes);
  }
  ASSERT_TRUE(file_.valid()) << strerror(errno);
  pager_ = ScopedMapping::SharedFile(file_.get(), bytes);
  guest_ = ScopedMapping::SharedFile(file_.get(), bytes);
  ASSERT_TRUE(pager_.ok() && guest_.ok()) << strerror(errno);
  uffd_ = TestUffd::Open();
  ASSERT_EQ(uffd_.Register(guest_.data(), bytes, UFFDIO_REGISTER_MODE_MISSING), 0);
}

void FrozenFileTest::Fill() {
  if (madvise(pager_.data(), pager_.size(), MADV_POPULATE_WRITE) != 0) {
    GTEST_SKIP() << "not " << (pager_.size() >> 20) << " MiB of frames to be had";
  }
  original_ = Pattern(pager_.size());
  memcpy(pager_.data(), original_.data(), original_.size());
  ReadEvery(guest_.data(), guest_.size(), kPage);
}

void FrozenFileTest::Freeze(Road road) {
  ASSERT_EQ(uffd_.Register(guest_.data(), guest_.size(), kTracked), 0);
  if (road == Road::kProtect) {
    ASSERT_EQ(uffd_.WriteProtect(guest_.data(), guest_.size(), UFFDIO_WRITEPROTECT_MODE_WP), 0);
    return;
  }
  ASSERT_EQ(madvise(guest_.data(), guest_.size(), MADV_DONTNEED), 0) << strerror(errno);
  if (road == Road::kMapped) {
    ASSERT_EQ(ContinueAs(uffd_, guest_.data(), guest_.size(), MapAs::kProtected), 0);
  }
}

void FrozenFileTest::Thaw() {
  ASSERT_EQ(uffd_.Unregister(guest_.data(), guest_.size()), 0);
  ASSERT_EQ(uffd_.Register(guest_.data(), guest_.size(), UFFDIO_REGISTER_MODE_MISSING), 0);
  ASSERT_EQ(madvise(guest_.data(), guest_.size(), MADV_DONTNEED), 0) << strerror(errno);
}

::testing::AssertionResult FrozenFileTest::Raised(size_t index, uint64_t flags) const {
  return RaisedAt(guest(index), flags);
}

::testing::AssertionResult FrozenFileTest::RaisedAt(const char* at, uint64_t flags) const {
  const auto fault = uffd_.WaitFault();
  if (!fault) return ::testing::AssertionFailure() << "no event";
  if (fault->address != reinterpret_cast<uint64_t>(at)) {
    return ::testing::AssertionFailure()
           << "an event " << static_cast<int64_t>(fault->address - reinterpret_cast<uint64_t>(at))
           << " bytes away";
  }
  constexpr uint64_t kAll =
      UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE;
  if ((fault->flags & kAll) == flags) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "an event with" << FlagNames(fault->flags);
}

::testing::AssertionResult FrozenFileTest::IsSilent(char* at, Touch::Kind kind) {
  Touch touch(&uffd_, at, kind);
  if (const auto fault = uffd_.WaitFault(Deadline(kQuietTime))) {
    return ::testing::AssertionFailure() << "an event with" << FlagNames(fault->flags);
  }
  if (touch.Finished()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "no event, and the thread still waits";
}

::testing::AssertionResult FrozenFileTest::IsMappedHuge() const {
  const auto vma = ReadVma(0, guest_.data());
  if (!vma) return ::testing::AssertionFailure() << "no mapping";
  const int64_t huge_kib = store_ == Store::kHugetlb
                               ? vma->shared_hugetlb_kib + vma->private_hugetlb_kib
                               : vma->shmem_pmd_mapped_kib;
  if (huge_kib == static_cast<int64_t>(guest_.size() >> 10)) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << huge_kib << " KiB are mapped huge";
}

bool FrozenFileTest::GuestIsRegistered(const char* two_letters) const {
  const auto vma = ReadVma(0, guest_.data());
  return vma.has_value() && vma->HasFlag(two_letters);
}

}  // namespace hostmm::test
