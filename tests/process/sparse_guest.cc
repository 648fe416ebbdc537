// A program that uses little of much: four pages in each block of 1 GiB, as a database does while
// it warms up by random reads. It says by how much the machine's Shmem grew; the test compares.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>

#include "tests/process/guest_program.h"

namespace hostmm::test {
namespace {

constexpr size_t kBlock = 2 * kMib;
constexpr size_t kBytes = 1024 * kMib;
constexpr size_t kBlocks = kBytes / kBlock;
constexpr size_t kTouches = 4;

int64_t ShmemKib() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (int64_t value = 0; file >> key >> value; file.ignore(256, '\n')) {
    if (key == "Shmem:") return value;
  }
  return -1;
}

// Pages that are far from each other and at no regular place of their block.
size_t Place(size_t block, size_t touch) {
  return block * kBlock + touch * kBlock / kTouches + (block * 37 + touch * 11) % 100 * 4096;
}

// The most that it is in the time in which frames that the touches earned are made: four of the
// pager's ticks. That nothing more comes has no condition to wait for.
int64_t PeakShmemKib() {
  int64_t peak = 0;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(1);
  while (std::chrono::steady_clock::now() < until) {
    peak = std::max(peak, ShmemKib());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return peak;
}

template <class Touch>
void Measure(Touch touch_all) {
  const int64_t before = ShmemKib();
  char* at = MustMapShared(kBytes);
  ExpectManaged(at);
  touch_all(at);
  Say("grown by KiB: %ld", static_cast<long>(PeakShmemKib() - before));
  bool holds = true;
  for (size_t block = 0; block < kBlocks; ++block) {
    for (size_t touch = 0; touch < kTouches; ++touch) {
      holds = holds && at[Place(block, touch)] == static_cast<char>(block + touch);
    }
  }
  Expect(holds, "what was written is there");
}

}  // namespace

HOSTMM_CASE(BlockByBlock) {
  Measure([](char* at) {
    for (size_t block = 0; block < kBlocks; ++block) {
      for (size_t touch = 0; touch < kTouches; ++touch) {
        at[Place(block, touch)] = static_cast<char>(block + touch);
      }
    }
  });
}

HOSTMM_CASE(OneTouchOfEachBlockAfterAnother) {
  Measure([](char* at) {
    for (size_t touch = 0; touch < kTouches; ++touch) {
      for (size_t i = 0; i < kBlocks; ++i) {
        // An odd factor visits every block once, neighbours far apart.
        const size_t block = i * 197 % kBlocks;
        at[Place(block, touch)] = static_cast<char>(block + touch);
      }
    }
  });
}

}  // namespace hostmm::test
