// tests/testing/skip.h
//
// Reasons why a kernel-tier test cannot run here, each with what would make it run. A skipped test
// prints its reason and is never counted as passed.
//
// Threads:  any; every call asks the kernel afresh.
// Errors:   an empty string means "nothing stands in the way".

#ifndef HOSTMM_TESTS_TESTING_SKIP_H_
#define HOSTMM_TESTS_TESTING_SKIP_H_

#include <cstddef>
#include <cstdint>
#include <string>

// For use in a test body or SetUp: skips when the reason is not empty.
#define HOSTMM_SKIP_IF(reason)                                              \
  do {                                                                      \
    if (const std::string hostmm_reason = (reason); !hostmm_reason.empty()) \
      GTEST_SKIP() << hostmm_reason;                                        \
  } while (false)

namespace hostmm::test {

std::string WhyNoRoot();
// `features`: UFFD_FEATURE_* that the test depends on.
std::string WhyNoUserfaultfd(uint64_t features = 0);
// `blocks`: huge frames that must be there at once. Tried out; memory is compacted first if need be
// and if the caller may. The default is arbitrary: more than any test takes.
std::string WhyNoHugeTmpfs(size_t blocks = 64);
std::string WhyNoCollapse();
// `gib`: memory that must be available, beyond what others use now.
std::string WhyNoMemory(int64_t gib);

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_SKIP_H_
