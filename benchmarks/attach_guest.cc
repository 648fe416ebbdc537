// benchmarks/attach_guest.cc
//
// A process populates a region; then others come, one after another, map all of it and reach every
// page of it. They have been started before, and know nothing of the region until they are told to
// begin: what is timed is all that it takes to share it, without the start of a process.
//
//   --how=shared   under hostmm: a named region, opened, and mapped with MAP_SHARED_PT. The process
//                  attaches to the pager within that
//   --how=plain    a memfd of 4 KiB pages that the process has open already, mapped
//   --frames=base|huge|hugetlb   --how=shared: what the launcher was asked for
//   --access=read|write          what a touch is
//   --bytes=N --late=N
//
// Half of them touch a byte of each 4 KiB page, the others (turn about) of each frame only: what is
// left untimed, the rest of the pages, must then take no fault. With 4 KiB frames it is the same.
//
// Steps: "populated", "timed".

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "benchmarks/driver_steps.h"
#include "benchmarks/own_counters.h"
#include "benchmarks/plain_frames.h"

#ifndef MAP_SHARED_PT
#define MAP_SHARED_PT 0x200000
#endif

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr char kName[] = "benchmark.attach";

enum class How { kShared, kPlain };
enum class Access { kRead, kWrite };

struct Task {
  How how;
  Access access;
  uint64_t bytes;
  int file;
};

struct Result {
  uint64_t map_ns;    // until it was mapped
  uint64_t reach_ns;  // until all of it had been reached, map_ns included
  uint64_t faults;    // meanwhile
  uint64_t later;     // faults of a touch of each page afterwards
  uint64_t wrong;     // pages that did not hold what was written
};

// The library's, found as a program does that also runs without it.
int OpenNamed(int flags, uint64_t bytes) {
  using Open = int (*)(const char*, int, mode_t, size_t);
  const auto open = reinterpret_cast<Open>(dlsym(RTLD_DEFAULT, "hostmm_shm_open"));
  if (open == nullptr) {
    errno = ENOSYS;
    Fail("hostmm_shm_open: not under hostmm");
  }
  const int file = open(kName, O_RDWR | flags, 0600, bytes);
  if (file < 0) Fail("hostmm_shm_open");
  return file;
}

volatile uint8_t* Map(const Task& task, int flags) {
  const int file = task.how == How::kShared ? OpenNamed(flags, task.bytes) : task.file;
  const int share = task.how == How::kShared ? MAP_SHARED_PT : 0;
  void* mapped = mmap(nullptr, task.bytes, PROT_READ | PROT_WRITE, MAP_SHARED | share, file, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  return static_cast<volatile uint8_t*>(mapped);
}

uint32_t StampOf(uint64_t at) { return static_cast<uint32_t>(at / kPageBytes + 1); }

// RETURNS pages that are wrong. A written page is read in the same cache line.
uint64_t Touch(volatile uint8_t* region, const Task& task, uint64_t step) {
  uint64_t wrong = 0;
  for (uint64_t at = 0; at < task.bytes; at += step) {
    if (task.access == Access::kWrite) region[at + sizeof(uint32_t)] = 1;
    wrong += *reinterpret_cast<volatile uint32_t*>(region + at) == StampOf(at) ? 0 : 1;
  }
  return wrong;
}

[[noreturn]] void RunLate(const Task& task, uint64_t step, int begin, int result_end) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char c;
  if (read(begin, &c, 1) != 1) _exit(1);
  Result result = {};
  const uint64_t before = MinorFaults();
  const uint64_t start = NowNs();
  volatile uint8_t* region = Map(task, 0);
  result.map_ns = NowNs() - start;
  result.wrong = Touch(region, task, step);
  result.reach_ns = NowNs() - start;
  result.faults = MinorFaults() - before;
  result.wrong += Touch(region, task, kPageBytes);
  result.later = MinorFaults() - before - result.faults;
  if (write(result_end, &result, sizeof(result)) != sizeof(result)) _exit(1);
  _exit(0);
}

struct Late {
  pid_t pid;
  int begin;
  int result;
};

Late StartLate(const Task& task, uint64_t step) {
  int begin[2];
  int result[2];
  if (pipe2(begin, O_CLOEXEC) != 0 || pipe2(result, O_CLOEXEC) != 0) Fail("pipe2");
  const pid_t pid = fork();
  if (pid < 0) Fail("fork");
  if (pid == 0) {
    close(begin[1]);
    RunLate(task, step, begin[0], result[1]);
  }
  close(begin[0]);
  close(result[1]);
  return {pid, begin[1], result[0]};
}

Result RunOne(const Late& late) {
  Result result;
  if (write(late.begin, "b", 1) != 1) Fail("start of a process");
  if (read(late.result, &result, sizeof(result)) != sizeof(result)) Fail("result of a process");
  if (waitpid(late.pid, nullptr, 0) != late.pid) Fail("waitpid");
  return result;
}

std::string ToJson(const std::vector<Result>& all) {
  std::string json = "[";
  for (const Result& each : all) {
    if (json.size() > 1) json += ',';
    json += "{\"map_ns\":" + std::to_string(each.map_ns) +
            ",\"reach_ns\":" + std::to_string(each.reach_ns) +
            ",\"faults\":" + std::to_string(each.faults) +
            ",\"later\":" + std::to_string(each.later) + "}";
  }
  return json + "]";
}

int Main(int argc, char** argv) {
  Task task = {};
  task.how = TextOption(argc, argv, "how", "shared") == "plain" ? How::kPlain : How::kShared;
  task.access =
      TextOption(argc, argv, "access", "read") == "write" ? Access::kWrite : Access::kRead;
  task.bytes = NumberOption(argc, argv, "bytes", uint64_t{1} << 30);
  const uint64_t late = NumberOption(argc, argv, "late", 10);
  const Frames frames = FramesOption(TextOption(argc, argv, "frames", "huge"));
  task.file = task.how == How::kPlain ? MakeFile(frames, task.bytes) : -1;

  // Before this process maps anything: they are not attached, and inherit nothing of it.
  std::vector<Late> by_frame;
  std::vector<Late> by_page;
  for (uint64_t i = 0; i < late; ++i) {
    if (i % 2 == 0) {
      by_frame.push_back(StartLate(task, FrameBytes(frames)));
    } else {
      by_page.push_back(StartLate(task, kPageBytes));
    }
  }
  volatile uint8_t* region = Map(task, O_CREAT | O_EXCL);
  for (uint64_t at = 0; at < task.bytes; at += kPageBytes) {
    *reinterpret_cast<volatile uint32_t*>(region + at) = StampOf(at);
  }
  ReportAndWait("{\"step\":\"populated\"}");

  std::vector<Result> frame_results;
  std::vector<Result> page_results;
  bool good = true;
  for (uint64_t i = 0; i < late; ++i) {
    std::vector<Result>& results = i % 2 == 0 ? frame_results : page_results;
    results.push_back(RunOne(i % 2 == 0 ? by_frame[i / 2] : by_page[i / 2]));
    good = good && results.back().wrong == 0;
  }
  Report("{\"step\":\"timed\",\"good\":" + std::to_string(good ? 1 : 0) +
         ",\"by_frame\":" + ToJson(frame_results) + ",\"by_page\":" + ToJson(page_results) + "}");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
