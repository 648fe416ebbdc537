// benchmarks/sparse_touch_guest.cc
//
// The program that huge frames hurt most: it writes one 4 KiB page in each 2 MiB block of a shared
// region. Plain code: it knows nothing of hostmm, and runs the same under it.
//
//   --bytes=N                     size of the region
//   --order=ascending|scattered   scattered: blocks in an order in which no two neighbours follow
//                                 each other
//
// Steps: "started" (nothing mapped), "touched" (one page per block written), "verified".

#include <sys/mman.h>

#include <cstdint>
#include <string>

#include "benchmarks/driver_steps.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kPagesPerBlock = 512;
// Odd and arbitrary: multiplying by it modulo a power of two visits every block once.
constexpr uint64_t kScatter = 1'103'515'245;
// Arbitrary. The same in every block: the distance between touches is then exactly one block, so
// that each falls into a block of its own wherever the region lies.
constexpr uint64_t kPageInBlock = 37;

// Returns the offset of the one page that block number `block` has touched.
uint64_t PageOffset(uint64_t block) { return (block * kPagesPerBlock + kPageInBlock) * kPageBytes; }

uint8_t Stamp(uint64_t block) { return static_cast<uint8_t>(block % 251 + 1); }

int Main(int argc, char** argv) {
  const uint64_t bytes = NumberOption(argc, argv, "bytes", 8ull << 30);
  const bool scattered = TextOption(argc, argv, "order", "ascending") == "scattered";
  const uint64_t blocks = bytes / (kPagesPerBlock * kPageBytes);
  ReportAndWait("{\"step\":\"started\"}");

  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  volatile uint8_t* region = static_cast<volatile uint8_t*>(mapped);
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t block = scattered ? i * kScatter % blocks : i;
    region[PageOffset(block)] = Stamp(block);
  }
  ReportAndWait("{\"step\":\"touched\",\"pages\":" + std::to_string(blocks) + "}");

  bool good = true;
  for (uint64_t block = 0; block < blocks; ++block) {
    good = good && region[PageOffset(block)] == Stamp(block);
  }
  Report(good ? "{\"step\":\"verified\",\"good\":1}" : "{\"step\":\"verified\",\"good\":0}");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
