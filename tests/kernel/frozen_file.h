// tests/kernel/frozen_file.h
//
// A file, the pager's view of it and a guest's, and the kernel calls that freeze and thaw the
// guest's: what the tests of the facts behind snapshots have in common.
//
// Flow:     Open, Fill (every byte is then known, the guest has all of it mapped and is registered
//           MISSING, as in the steady state), Freeze by one of three roads, touches, Thaw.
// Units:    bytes; "unit" is what one event is about: 4 KiB, on hugetlb 2 MiB.
// Threads:  the test's own. A touch that may wait runs in a Touch (tests/testing/touch.h).
// Errors:   Open skips with a reason or fails the test; the calls return 0 or errno.

#ifndef HOSTMM_TESTS_KERNEL_FROZEN_FILE_H_
#define HOSTMM_TESTS_KERNEL_FROZEN_FILE_H_

#include <gtest/gtest.h>
#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/sysctl_guard.h"
#include "tests/testing/test_uffd.h"
#include "tests/testing/touch.h"

namespace hostmm::test {

enum class Store { kHugeTmpfs, kHugetlb };

// How a guest's mapping becomes frozen. All begin with a registration for kTracked.
enum class Road {
  kZap,      // the guest zaps it: nothing is mapped, every first access is an event
  kMapped,   // the same, and then all is continued write-protected: only writes are events
  kProtect,  // write-protected from outside, without a zap
};

enum class MapAs { kWritable, kProtected };

inline constexpr uint64_t kTracked =
    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;

// What the userfaultfd of these tests must be able to do. None of it need be asked for: the tests
// open theirs without any feature.
inline constexpr uint64_t kNeededFeatures =
    UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS |
    UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;

// The three events of a frozen mapping.
inline constexpr uint64_t kReadEvent = UFFD_PAGEFAULT_FLAG_MINOR;
inline constexpr uint64_t kWriteEvent = UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WRITE;
inline constexpr uint64_t kProtectedEvent = UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE;

std::string NameOf(Store store);
std::string NameOf(Road road);
std::string WhyNoStore(Store store);

// UFFDIO_CONTINUE and UFFDIO_COPY, the first with the mode that older headers lack.
int ContinueAs(const TestUffd& uffd, const void* at, size_t bytes, MapAs as);
int CopyAs(const TestUffd& uffd, void* at, const void* source, size_t bytes, MapAs as);

class FrozenFileTest : public ::testing::Test {
 protected:
  static constexpr size_t kBytes = 8 * kBlock;

  // Members only; nothing is in the file yet, the guest is registered MISSING.
  void Open(Store store, size_t bytes = kBytes);
  // Puts original() into the file through the pager's view; the guest then maps all of it.
  void Fill();

  void Freeze(Road road);
  // Back to the steady state, but for the touches that map it all again.
  void Thaw();

  size_t unit() const { return unit_; }
  char* guest(size_t index) const { return guest_.data() + index * unit_; }
  char* pager(size_t index) const { return pager_.data() + index * unit_; }
  const std::string& original() const { return original_; }
  char OriginalByte(size_t index) const { return original_[index * unit_]; }

  // The next event is about guest unit `index` and has, of MINOR, WP and WRITE, exactly `flags`.
  ::testing::AssertionResult Raised(size_t index, uint64_t flags) const;
  ::testing::AssertionResult RaisedAt(const char* at, uint64_t flags) const;
  // An access ends by itself, and raises nothing.
  ::testing::AssertionResult IsSilent(char* at, Touch::Kind kind);
  // Kernel page tables map the whole guest view in 2 MiB entries (VmFlags and all of it mapped).
  ::testing::AssertionResult IsMappedHuge() const;
  bool GuestIsRegistered(const char* two_letters) const;

  // In this order: the pages go back before the limit does.
  std::unique_ptr<SysctlGuard> overcommit_;
  ScopedFd file_;
  ScopedMapping pager_;
  ScopedMapping guest_;
  TestUffd uffd_;

 private:
  Store store_ = Store::kHugeTmpfs;
  size_t unit_ = kPage;
  std::string original_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_KERNEL_FROZEN_FILE_H_
