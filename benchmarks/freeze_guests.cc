// benchmarks/freeze_guests.cc
//
// Processes that have all of a region mapped, natively and writable; one of them takes snapshots of
// it. Timed is hostmm_snapshot() alone: the call of the caller, which is one of the writers.
//
//   --frames=base|huge|hugetlb   what the launcher was asked for. base: frames of 4 KiB for good
//                                (MADV_NOHUGEPAGE), so that every writer has 4 KiB entries
//   --bytes=N --writers=N --snapshots=N
//
// Before each snapshot every writer writes to each frame until the kernel says that all of the
// region is mapped natively in it (native_mapping.h). After it the caller writes a page and reads
// it in the snapshot, where it must be as it was. The others wait meanwhile: how long a freeze
// takes, not how long a processor is busy with something else, is what is asked.
//
// Step: "timed".

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <string>
#include <vector>

#include "benchmarks/driver_steps.h"
#include "benchmarks/hostmm_calls.h"
#include "benchmarks/native_mapping.h"
#include "benchmarks/own_counters.h"
#include "benchmarks/plain_frames.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
// Odd and arbitrary: successive snapshots are checked in blocks that are far apart.
constexpr uint64_t kScatter = 1'103'515'245;

struct Task {
  Frames frames;
  uint64_t bytes;
  uint64_t snapshots;
  volatile uint8_t* region;
};

// Words of a page: where it is; how often the caller has written it; and one that the others write.
volatile uint64_t* Words(const Task& task, uint64_t at) {
  return reinterpret_cast<volatile uint64_t*>(task.region + at);
}
enum Word { kPlace, kVersion, kOthers };

void PrepareWriter(const Task& task) {
  AwaitNativeMapping(task.region, task.bytes, task.frames, [&] {
    for (uint64_t at = 0; at < task.bytes; at += FrameBytes(task.frames)) {
      Words(task, at)[kOthers] = 1;
    }
  });
}

struct Writer {
  pid_t pid;
  int orders;
};

[[noreturn]] void RunWriter(const Task& task, int orders) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char order = 0;
  while (read(orders, &order, 1) == 1) {
    PrepareWriter(task);
    if (write(orders, "r", 1) != 1) _exit(1);
  }
  _exit(0);
}

Writer StartWriter(const Task& task) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) Fail("socketpair");
  const pid_t pid = fork();
  if (pid < 0) Fail("fork");
  if (pid == 0) {
    close(ends[0]);
    RunWriter(task, ends[1]);
  }
  close(ends[1]);
  return {pid, ends[0]};
}

void PrepareAll(const Task& task, const std::vector<Writer>& writers) {
  char ready = 0;
  for (const Writer& writer : writers) {
    if (write(writer.orders, "p", 1) != 1) Fail("order to a writer");
  }
  for (const Writer& writer : writers) {
    if (read(writer.orders, &ready, 1) != 1) Fail("a writer has ended");
  }
  // Last, so that what the others' faults did to this process is undone.
  PrepareWriter(task);
}

// RETURNS whether a page that is written now stays in the snapshot as it was.
bool IsHeld(const Task& task, int snapshot, uint64_t number) {
  const uint64_t unit = UnitOf(snapshot);
  const uint64_t at = number * kScatter % (task.bytes / unit) * unit;
  const uint64_t before = Words(task, at)[kVersion];
  Words(task, at)[kVersion] = before + 1;
  const uint8_t* view = MapView(snapshot, at, unit);
  const auto* words = reinterpret_cast<const volatile uint64_t*>(view);
  const bool held = words[kPlace] == at && words[kVersion] == before;
  munmap(const_cast<uint8_t*>(view), unit);
  return held && Words(task, at)[kVersion] == before + 1;
}

void End(const std::vector<Writer>& writers) {
  for (const Writer& writer : writers) close(writer.orders);
  for (const Writer& writer : writers) waitpid(writer.pid, nullptr, 0);
}

int Main(int argc, char** argv) {
  Task task = {};
  task.frames = FramesOption(TextOption(argc, argv, "frames", "huge"));
  task.bytes = NumberOption(argc, argv, "bytes", uint64_t{1} << 30);
  task.snapshots = NumberOption(argc, argv, "snapshots", 10);
  const uint64_t count = NumberOption(argc, argv, "writers", 1);
  task.region = MapNewRegion("benchmark.freeze", task.bytes);
  if (task.frames == Frames::kBase &&
      madvise(const_cast<uint8_t*>(task.region), task.bytes, MADV_NOHUGEPAGE) != 0) {
    Fail("madvise");
  }
  for (uint64_t at = 0; at < task.bytes; at += kPageBytes) Words(task, at)[kPlace] = at;

  std::vector<Writer> writers;
  while (writers.size() + 1 < count) writers.push_back(StartWriter(task));
  bool good = true;
  std::string times;
  for (uint64_t i = 0; i < task.snapshots; ++i) {
    PrepareAll(task, writers);
    const uint64_t start = NowNs();
    const int snapshot = TakeSnapshot(task.region);
    const uint64_t ns = NowNs() - start;
    good = good && IsHeld(task, snapshot, i);
    close(snapshot);
    times += (i == 0 ? "" : ",") + std::to_string(ns);
  }
  End(writers);
  Report("{\"step\":\"timed\",\"good\":" + std::to_string(good ? 1 : 0) + ",\"ns\":[" + times +
         "]}");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
