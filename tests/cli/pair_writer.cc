// A guest for the tests: writes to the named region "pairs" for ever, in an order that shows in
// each moment of it. Write N of all goes to pair N % kPairs, first to its one page, then to its
// other. So what the region holds says after which write it was: see MomentOf in
// snapshot_live_test.cc.

#include <fcntl.h>
#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "runtime/hostmm_c.h"
#include "tests/cli/pairs.h"

using hostmm::test::kPairs;
using hostmm::test::kPairsBytes;
using hostmm::test::kPairsPage;

int main() {
  const int fd = hostmm_shm_open("pairs", O_RDWR | O_CREAT, 0600, kPairsBytes);
  void* mapped = fd < 0 ? MAP_FAILED
                        : hostmm_mmap(nullptr, kPairsBytes, PROT_READ | PROT_WRITE,
                                      MAP_SHARED | MAP_SHARED_PT, fd, 0);
  if (mapped == MAP_FAILED) {
    std::fprintf(stderr, "%s\n", hostmm_error());
    return 1;
  }
  auto* memory = static_cast<unsigned char*>(mapped);
  for (uint64_t n = 1;; ++n) {
    const size_t pair = n % kPairs;
    auto* one = reinterpret_cast<volatile uint64_t*>(memory + pair * kPairsPage);
    auto* other = reinterpret_cast<volatile uint64_t*>(memory + (kPairs + pair) * kPairsPage);
    __atomic_store_n(one, n, __ATOMIC_SEQ_CST);
    __atomic_store_n(other, n, __ATOMIC_SEQ_CST);
    if (n == 2 * kPairs) {
      std::puts("up");
      std::fflush(stdout);
    }
  }
}
