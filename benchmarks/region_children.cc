// benchmarks/region_children.cc
//
// N children of one parent share a region; every child reads and writes every 4 KiB page of it. The
// driver samples page tables while all children still hold their mappings; each child reports its
// own minor faults and time. Plain code: it knows nothing of hostmm, and runs the same under it.
//
//   --bytes=N      size of the region
//   --children=N
//   --map=shared|hugetlb|none    none: the same processes without a region (what to subtract)
//   --order=together|one_by_one  one_by_one: a child starts when the one before it has touched
//                                every page, and holds the region: the case of a late comer
//
// Steps: "started" (nothing mapped), "touched" (children hold), "verified" (data compared).

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/driver_steps.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
// Byte 0 of a page is read by everybody; child c writes byte 1 + c.
constexpr uint64_t kMaxChildren = kPageBytes - 1;

struct Touched {
  int32_t pid;
  uint32_t failed;  // 1 when a page did not hold what this child wrote
  uint64_t faults_before;
  uint64_t faults_after;
  uint64_t nanoseconds;
};

struct Channel {
  int read_end;
  int write_end;
};

Channel MakeChannel() {
  int ends[2];
  if (pipe(ends) != 0) Fail("pipe");
  return {ends[0], ends[1]};
}

uint64_t MinorFaults() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_minflt);
}

uint64_t NowNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

uint8_t Stamp(uint64_t child) { return static_cast<uint8_t>(child % 255 + 1); }

// Reads and writes every page; returns whether each page then holds what was written.
bool TouchAll(volatile uint8_t* region, uint64_t bytes, uint64_t child) {
  bool good = true;
  for (uint64_t at = 0; at < bytes; at += kPageBytes) {
    const uint8_t first = region[at];
    region[at + 1 + child] = Stamp(child);
    good = good && first == 0 && region[at + 1 + child] == Stamp(child);
  }
  return good;
}

// A pipe that is never written to: the parent closes its end, and all children see end of file.
void WaitForEnd(int fd) {
  char c;
  while (read(fd, &c, 1) < 0 && errno == EINTR) {
  }
}

[[noreturn]] void RunChild(volatile uint8_t* region, uint64_t bytes, uint64_t index, int begin,
                           int result, int end) {
  // A driver that is killed must not leave children that hold the region.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char c;
  if (read(begin, &c, 1) != 1) _exit(1);
  Touched touched = {};
  touched.pid = getpid();
  touched.faults_before = MinorFaults();
  const uint64_t start = NowNs();
  if (region != nullptr) touched.failed = TouchAll(region, bytes, index) ? 0 : 1;
  touched.nanoseconds = NowNs() - start;
  touched.faults_after = MinorFaults();
  if (write(result, &touched, sizeof(touched)) != sizeof(touched)) _exit(1);
  WaitForEnd(end);
  _exit(0);
}

// The parent's own look at what all children wrote.
bool Verify(const volatile uint8_t* region, uint64_t bytes, uint64_t children) {
  for (uint64_t at = 0; at < bytes; at += kPageBytes) {
    for (uint64_t child = 0; child < children; ++child) {
      if (region[at + 1 + child] != Stamp(child)) return false;
    }
  }
  return true;
}

volatile uint8_t* MapRegion(std::string_view how, uint64_t bytes) {
  if (how == "none") return nullptr;
  const int flags = MAP_SHARED | MAP_ANONYMOUS | (how == "hugetlb" ? MAP_HUGETLB : 0);
  void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (region == MAP_FAILED) Fail("mmap of the region");
  return static_cast<volatile uint8_t*>(region);
}

std::string ToJson(const std::vector<Touched>& all) {
  std::string json = "{\"step\":\"touched\",\"children\":[";
  for (const Touched& each : all) {
    if (&each != &all.front()) json += ',';
    json += "{\"pid\":" + std::to_string(each.pid) +
            ",\"faults\":" + std::to_string(each.faults_after - each.faults_before) +
            ",\"faults_before\":" + std::to_string(each.faults_before) +
            ",\"failed\":" + std::to_string(each.failed) +
            ",\"ns\":" + std::to_string(each.nanoseconds) + "}";
  }
  return json + "]}";
}

Touched ReadResult(int fd) {
  Touched touched;
  if (read(fd, &touched, sizeof(touched)) != sizeof(touched)) Fail("result of a child");
  return touched;
}

void LetBegin(int fd) {
  if (write(fd, "b", 1) != 1) Fail("start of a child");
}

int Main(int argc, char** argv) {
  const uint64_t bytes = NumberOption(argc, argv, "bytes", 1ull << 30);
  const uint64_t children = NumberOption(argc, argv, "children", 50);
  const bool one_by_one = TextOption(argc, argv, "order", "together") == "one_by_one";
  if (children == 0 || children > kMaxChildren || bytes % kPageBytes != 0) {
    errno = EINVAL;
    Fail("--children or --bytes");
  }
  const Channel begin = MakeChannel();
  const Channel result = MakeChannel();
  const Channel end = MakeChannel();
  ReportAndWait("{\"step\":\"started\"}");

  volatile uint8_t* region = MapRegion(TextOption(argc, argv, "map", "shared"), bytes);
  std::vector<Touched> all;
  for (uint64_t index = 0; index < children; ++index) {
    const pid_t pid = fork();
    if (pid < 0) Fail("fork");
    if (pid == 0) {
      close(end.write_end);
      RunChild(region, bytes, index, begin.read_end, result.write_end, end.read_end);
    }
    if (one_by_one) {
      LetBegin(begin.write_end);
      all.push_back(ReadResult(result.read_end));
    }
  }
  if (!one_by_one) {
    for (uint64_t index = 0; index < children; ++index) LetBegin(begin.write_end);
    while (all.size() < children) all.push_back(ReadResult(result.read_end));
  }
  ReportAndWait(ToJson(all));

  const bool good = region == nullptr || Verify(region, bytes, children);
  close(end.write_end);
  while (wait(nullptr) > 0) {
  }
  Report(good ? "{\"step\":\"verified\",\"good\":1}" : "{\"step\":\"verified\",\"good\":0}");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
