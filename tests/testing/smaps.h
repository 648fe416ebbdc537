// tests/testing/smaps.h
//
// What the kernel says about page tables, huge mappings and faults: /proc/PID/smaps, status, stat,
// /proc/meminfo.
//
// Units:    KiB as in /proc, unless a name says otherwise; counts for faults.
// Threads:  any. The files are snapshots: other processes move on while we read.
// Errors:   std::nullopt or -1 when the process, the VMA or the key does not exist.

#ifndef HOSTMM_TESTS_TESTING_SMAPS_H_
#define HOSTMM_TESTS_TESTING_SMAPS_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace hostmm::test {

struct VmaStats {
  uint64_t begin = 0;  // address
  uint64_t end = 0;    // address
  int64_t rss_kib = -1;
  int64_t shmem_pmd_mapped_kib = -1;
  int64_t shared_hugetlb_kib = -1;
  int64_t private_hugetlb_kib = -1;
  std::string
      flags;  // VmFlags, two letters each: "um" = registered MISSING, "uw" = WP, "ui" = MINOR

  bool HasFlag(std::string_view two_letters) const;
};

// The VMA of `pid` that holds `address`. pid 0 is the caller.
std::optional<VmaStats> ReadVma(pid_t pid, const void* address);

// Shorthands for the caller's own VMA; -1 if there is none.
int64_t RssKib(const void* address);
int64_t PmdMappedKib(const void* address);

// A "Key:  123 kB" line of /proc/PID/status, for example VmPTE. pid 0 is the caller.
int64_t StatusKib(pid_t pid, std::string_view key);

// A line of /proc/meminfo, for example ShmemHugePages. Machine-wide: others move it too.
int64_t MeminfoKib(std::string_view key);

// Minor faults of the calling thread so far.
int64_t MinorFaultsOfThisThread();

// Those that a thread takes at most for its own code and stack, which the kernel may have taken
// away. Only for tests whose wrong answers are hundreds.
inline constexpr int64_t kStrayFaults = 16;

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_SMAPS_H_
