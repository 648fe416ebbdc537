#include "benchmarks/native_mapping.h"

#include <errno.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <string_view>

#include "benchmarks/driver_steps.h"
#include "benchmarks/own_counters.h"

namespace hostmm::benchmarks {
namespace {

// Far more than the pager takes to make the last block huge; arbitrary.
constexpr uint64_t kPatienceNs = 20'000'000'000;
constexpr timespec kBetweenLooks = {0, 10'000'000};

bool Counts(std::string_view line, Frames frames) {
  switch (frames) {
    case Frames::kBase:
      return line.starts_with("Rss:");
    case Frames::kHuge:
      return line.starts_with("ShmemPmdMapped:");
    case Frames::kHugetlb:
      return line.starts_with("Shared_Hugetlb:") || line.starts_with("Private_Hugetlb:");
  }
  return false;
}

uint64_t NumberOf(const std::string& line) {
  return std::strtoull(line.c_str() + line.find(':') + 1, nullptr, 10);
}

}  // namespace

NativeMapping LookAtMapping(const volatile uint8_t* at, uint64_t bytes, Frames frames) {
  const auto wanted = reinterpret_cast<uint64_t>(at);
  NativeMapping look = {};
  bool inside = false;
  std::ifstream smaps("/proc/self/smaps");
  if (!smaps) Fail("/proc/self/smaps");
  for (std::string line; std::getline(smaps, line);) {
    unsigned long start = 0;
    unsigned long end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
      inside = start >= wanted && end <= wanted + bytes;
    } else if (inside && Counts(line, frames)) {
      look.mapped_kb += NumberOf(line);
    } else if (inside && line.starts_with("VmFlags:")) {
      look.tracked |=
          line.find(" ui") != std::string::npos || line.find(" uw") != std::string::npos;
    }
  }
  return look;
}

Looks::Looks() : deadline_ns_(NowNs() + kPatienceNs) {}

bool Looks::Enough(const NativeMapping& look, uint64_t bytes) {
  const bool native = !look.tracked && look.mapped_kb == bytes / 1024;
  in_a_row_ = native ? in_a_row_ + 1 : 0;
  if (in_a_row_ == 2) return true;
  if (NowNs() > deadline_ns_) {
    errno = ETIMEDOUT;
    Fail("the region does not return to native mappings: " + std::to_string(look.mapped_kb) +
         " kB of " + std::to_string(bytes / 1024) + (look.tracked ? ", tracked" : ""));
  }
  nanosleep(&kBetweenLooks, nullptr);
  return false;
}

}  // namespace hostmm::benchmarks
