// benchmarks/pt_budget_guest.cc
//
// A process with a page-table budget, at work. A parent writes a shared region; its child then
// reads pages in one of three patterns, checks each, and times them. Plain code: it knows nothing
// of hostmm, and runs the same under `hostmm run --frames=base`, with --pt-budget=SIZE or without.
//
// The last 16 KiB of each block are left alone, and the region is written from its end: a block
// that is full, or read ahead until it is, would be made huge where that can be had, and there
// would be no page tables to save.
//
//   --bytes=N           size of the region
//   --hot-blocks=N      pattern hot: so many blocks of 2 MiB, spread over the region, get 15 of 16
//                       reads, at random; the last goes to a scan through all of the region
//   --pattern=hot|random|scan
//   --warm=N --reads=N  reads before the timed ones, and timed
//
// Steps: "filled" (nothing read by the child yet), "timed" (with what was measured).

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "benchmarks/driver_steps.h"
#include "benchmarks/own_counters.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kPagesPerBlock = 512;
constexpr uint64_t kUsedPerBlock = kPagesPerBlock - 4;
// Reads between two looks at VmPTE, which are not timed. Arbitrary.
constexpr uint64_t kReadsPerLook = 4096;

uint64_t Stamp(uint64_t page) { return (page + 1) * 0x9e3779b97f4a7c15; }

// The offset of the `index`-th page that is used.
uint64_t OffsetOf(uint64_t index) {
  return (index / kUsedPerBlock * kPagesPerBlock + index % kUsedPerBlock) * kPageBytes;
}

// This process's own, in kB.
uint64_t VmPteKb() {
  FILE* status = fopen("/proc/self/status", "re");
  if (status == nullptr) Fail("/proc/self/status");
  char line[256];
  unsigned long value = 0;
  while (fgets(line, sizeof(line), status) != nullptr) {
    if (sscanf(line, "VmPTE: %lu", &value) == 1) break;
  }
  fclose(status);
  return value;
}

// Which of the pages that are used comes next.
class Pattern {
 public:
  enum class Kind { kHot, kRandom, kScan };
  Pattern(Kind kind, uint64_t pages, uint64_t hot_blocks)
      : kind_(kind), pages_(pages), hot_blocks_(hot_blocks) {}

  uint64_t Next() {
    ++count_;
    if (kind_ == Kind::kScan || (kind_ == Kind::kHot && count_ % 16 == 0)) return Scanned();
    if (kind_ == Kind::kRandom) return Random() % pages_;
    const uint64_t every = pages_ / kUsedPerBlock / hot_blocks_;
    return Random() % hot_blocks_ * every * kUsedPerBlock + Random() % kUsedPerBlock;
  }

 private:
  uint64_t Scanned() { return scan_++ % pages_; }
  // xorshift64*: the same reads on every side.
  uint64_t Random() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return (state_ * 0x2545f4914f6cdd1d) >> 16;
  }

  const Kind kind_;
  const uint64_t pages_;
  const uint64_t hot_blocks_;
  uint64_t count_ = 0;
  uint64_t scan_ = 0;
  uint64_t state_ = 88172645463325252;
};

struct Result {
  uint64_t ns = 0;
  uint64_t faults = 0;
  uint64_t peak_kb = 0;
  uint64_t bad = 0;
};

Result Read(const volatile uint8_t* region, uint64_t reads, Pattern* pattern) {
  Result result;
  for (uint64_t done = 0; done < reads; done += kReadsPerLook) {
    const uint64_t faults = MinorFaults();
    const uint64_t begin = NowNs();
    for (uint64_t i = 0; i < std::min(kReadsPerLook, reads - done); ++i) {
      const uint64_t page = pattern->Next();
      const auto* word = reinterpret_cast<const volatile uint64_t*>(region + OffsetOf(page));
      result.bad += *word != Stamp(page);
    }
    result.ns += NowNs() - begin;
    result.faults += MinorFaults() - faults;
    result.peak_kb = std::max(result.peak_kb, VmPteKb());
  }
  return result;
}

Pattern::Kind KindOf(std::string_view name) {
  if (name == "random") return Pattern::Kind::kRandom;
  return name == "scan" ? Pattern::Kind::kScan : Pattern::Kind::kHot;
}

int Main(int argc, char** argv) {
  const uint64_t bytes = NumberOption(argc, argv, "bytes", 1ull << 30);
  const uint64_t pages = bytes / (kPagesPerBlock * kPageBytes) * kUsedPerBlock;
  Pattern pattern(KindOf(TextOption(argc, argv, "pattern", "hot")), pages,
                  NumberOption(argc, argv, "hot-blocks", 32));
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  auto* region = static_cast<uint8_t*>(mapped);
  for (uint64_t page = pages; page-- > 0;) {
    const uint64_t stamp = Stamp(page);
    memcpy(region + OffsetOf(page), &stamp, sizeof(stamp));
  }

  const pid_t child = fork();
  if (child < 0) Fail("fork");
  if (child == 0) {
    ReportAndWait("{\"step\":\"filled\"}");
    const uint64_t before = VmPteKb();
    Read(region, NumberOption(argc, argv, "warm", 1 << 20), &pattern);
    const uint64_t reads = NumberOption(argc, argv, "reads", 1 << 20);
    const Result result = Read(region, reads, &pattern);
    Report("{\"step\":\"timed\",\"reads\":" + std::to_string(reads) +
           ",\"ns\":" + std::to_string(result.ns) + ",\"faults\":" + std::to_string(result.faults) +
           ",\"before_kb\":" + std::to_string(before) + ",\"peak_kb\":" +
           std::to_string(result.peak_kb) + ",\"good\":" + (result.bad == 0 ? "1" : "0") + "}");
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) Fail("waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
