// tests/testing/collapse.h
//
// MADV_COLLAPSE, asked as often as the kernel says to ask again.
//
// Units:    one block of 2 MiB.
// Threads:  any.
// Errors:   0 or errno; EAGAIN only if the kernel said nothing else until kStepDeadline.

#ifndef HOSTMM_TESTS_TESTING_COLLAPSE_H_
#define HOSTMM_TESTS_TESTING_COLLAPSE_H_

#include <sys/mman.h>

#include <cerrno>

#include "tests/testing/deadline.h"
#include "tests/testing/scoped_mapping.h"

namespace hostmm::test {

// EAGAIN: somebody else has a page of the block in hand, such as compaction for another process.
inline int Collapse(char* block) {
  int error = 0;
  PollUntil(Deadline(kStepDeadline), [&] {
    error = madvise(block, kBlock, kMadvCollapse) == 0 ? 0 : errno;
    return error != EAGAIN;
  });
  return error;
}

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_TESTING_COLLAPSE_H_
