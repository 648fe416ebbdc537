// What this host offers to hostmm: facts, found by trying, without a judgement (doctor.h has that).
//
// Method:    every probe makes the real thing as small as it can be and undoes it: a userfaultfd, a
//            tmpfs that is never attached, 2 MiB of frames. Probes that change credentials or
//            namespaces run in a forked child.
// Units:     bytes, or what a name says. Errors are errno values.
// Processes: single-threaded callers only (fork).
#ifndef HOSTMM_RUNTIME_CLI_HOST_FEATURES_H_
#define HOSTMM_RUNTIME_CLI_HOST_FEATURES_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace hostmm {

// One thing that was tried.
struct Attempt {
  enum class State { kNotTried, kWorks, kRefused };
  State state = State::kNotTried;
  int error = 0;  // of a refusal

  static Attempt Works() { return {State::kWorks, 0}; }
  static Attempt Refused(int error) { return {State::kRefused, error}; }
  bool works() const { return state == State::kWorks; }
};

struct KernelRelease {
  int major = 0;
  int minor = 0;
  std::string text;
};

struct UserfaultfdFeatures {
  Attempt device;             // open /dev/userfaultfd, which a pager passes on to its guests
  Attempt system_call;        // userfaultfd(2) that sees system calls' accesses too
  Attempt passed_descriptor;  // a process without privilege makes one from the passed descriptor
  uint64_t feature_bits = 0;  // UFFD_FEATURE_*, from UFFDIO_API
  std::optional<int64_t> unprivileged_sysctl;  // vm.unprivileged_userfaultfd
};

struct HugeFrameFeatures {
  std::optional<std::string>
      shmem_enabled;       // the active word; nullopt: a kernel without huge pages for shmem
  Attempt user_namespace;  // tried when not root
  std::optional<int64_t> user_namespaces_sysctl;  // user.max_user_namespaces
  Attempt tmpfs;                                  // a tmpfs with huge=within_size, and a file in it
  uint64_t huge_bytes = 0;  // mapped huge after touching one 2 MiB block of it
};

struct HugetlbFeatures {
  uint64_t page_bytes = 0;
  uint64_t free_pages = 0;
  int64_t overcommit_pages = 0;
};

struct IoUringFeatures {
  Attempt setup;
  std::optional<int64_t> disabled_sysctl;  // kernel.io_uring_disabled
};

struct HostLimits {
  // RLIM_INFINITY as UINT64_MAX.
  uint64_t open_files_soft = 0;
  uint64_t open_files_hard = 0;
  uint64_t locked_bytes = 0;
  uint64_t processes = 0;
  std::optional<int64_t> max_map_count;
};

struct HostFeatures {
  uid_t user = 0;
  std::string group_name;  // of the primary group, or its number
  KernelRelease kernel;
  UserfaultfdFeatures userfaultfd;
  HugeFrameFeatures huge;
  HugetlbFeatures hugetlb;
  IoUringFeatures io_uring;
  HostLimits limits;
  uint64_t available_bytes = 0;  // MemAvailable
};

HostFeatures ProbeHost();

// "6.18.44-x" -> 6, 18. Zeros if it does not begin so.
KernelRelease ParseKernelRelease(const std::string& text);

// "always within_size [never] deny" -> "never". "" if no word is in brackets.
std::string ActiveWord(const std::string& choices);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_HOST_FEATURES_H_
