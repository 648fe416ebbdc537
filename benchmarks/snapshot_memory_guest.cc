// benchmarks/snapshot_memory_guest.cc
//
// A process with a region, all of it written, takes a snapshot and then writes to some of its
// pages, each once, in an order that jumps. What that costs in memory the driver asks the kernel.
//
//   --frames=base|huge   what the launcher was asked for. base: frames of 4 KiB (MADV_NOHUGEPAGE)
//   --bytes=N            a power of two of at least 2 MiB
//   --pages=N            how many are written
//
// Steps: "ready" (no snapshot yet), "frozen", "written", "dropped" (native again), "verified".

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/driver_steps.h"
#include "benchmarks/hostmm_calls.h"
#include "benchmarks/native_mapping.h"
#include "benchmarks/plain_frames.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kBlockBytes = uint64_t{2} << 20;
// Odd and arbitrary: multiplying by it modulo a power of two visits every page once.
constexpr uint64_t kScatter = 2'654'435'761;
constexpr uint64_t kNew = 1;

uint64_t PlaceOf(uint64_t number, uint64_t bytes) {
  return number * kScatter % (bytes / kPageBytes) * kPageBytes;
}

volatile uint64_t* Words(volatile uint8_t* region, uint64_t at) {
  return reinterpret_cast<volatile uint64_t*>(region + at);
}

void AwaitNative(volatile uint8_t* region, uint64_t bytes, Frames frames) {
  AwaitNativeMapping(region, bytes, frames, [&] {
    for (uint64_t at = 0; at < bytes; at += kPageBytes) Words(region, at)[2] = 1;
  });
}

// RETURNS in how many blocks of 2 MiB the first `pages` pages lie.
uint64_t CountBlocks(uint64_t bytes, uint64_t pages) {
  std::vector<bool> written(bytes / kBlockBytes);
  for (uint64_t i = 0; i < pages; ++i) written[PlaceOf(i, bytes) / kBlockBytes] = true;
  return static_cast<uint64_t>(std::count(written.begin(), written.end(), true));
}

// RETURNS pages that are not in the snapshot as they were, or not in the region as they are.
uint64_t CountWrong(volatile uint8_t* region, int snapshot, uint64_t bytes, uint64_t pages) {
  const auto* view = reinterpret_cast<const volatile uint8_t*>(MapView(snapshot, 0, bytes));
  uint64_t wrong = 0;
  for (uint64_t i = 0; i < bytes / kPageBytes; ++i) {
    const uint64_t at = PlaceOf(i, bytes);
    const auto* old = reinterpret_cast<const volatile uint64_t*>(view + at);
    const uint64_t now = Words(region, at)[1];
    wrong += old[0] == at && old[1] == 0 && now == (i < pages ? kNew : 0) ? 0 : 1;
  }
  munmap(const_cast<uint8_t*>(view), bytes);
  return wrong;
}

int Main(int argc, char** argv) {
  const Frames frames = FramesOption(TextOption(argc, argv, "frames", "base"));
  const uint64_t bytes = NumberOption(argc, argv, "bytes", uint64_t{1} << 30);
  const uint64_t pages = NumberOption(argc, argv, "pages", 1000);
  uint8_t* mapped = MapNewRegion("benchmark.memory", bytes);
  if (frames == Frames::kBase && madvise(mapped, bytes, MADV_NOHUGEPAGE) != 0) Fail("madvise");
  volatile uint8_t* region = mapped;
  for (uint64_t at = 0; at < bytes; at += kPageBytes) Words(region, at)[0] = at;
  AwaitNative(region, bytes, frames);
  ReportAndWait("{\"step\":\"ready\"}");

  const int snapshot = TakeSnapshot(region);
  ReportAndWait("{\"step\":\"frozen\"}");
  for (uint64_t i = 0; i < pages; ++i) Words(region, PlaceOf(i, bytes))[1] = kNew;
  ReportAndWait("{\"step\":\"written\",\"blocks\":" + std::to_string(CountBlocks(bytes, pages)) +
                "}");
  const uint64_t wrong = CountWrong(region, snapshot, bytes, pages);
  if (Hostmm().snapshot_info(snapshot, nullptr) != 0) FailHostmm("the snapshot is lost");
  close(snapshot);
  AwaitNative(region, bytes, frames);
  ReportAndWait("{\"step\":\"dropped\"}");
  Report("{\"step\":\"verified\",\"good\":" + std::to_string(wrong == 0 ? 1 : 0) + "}");
  return wrong == 0 ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
