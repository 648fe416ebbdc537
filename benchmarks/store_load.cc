// benchmarks/store_load.cc
//
// A store in memory under an open-loop load, saved once meanwhile:
//
//   --save=fork       the store is private memory of 4 KiB pages, the writers are threads; a thread
//                     more forks, and the child writes the memory to the file (as BGSAVE does)
//   --save=snapshot   under hostmm: the store is a region, the writers are processes; one process
//                     more takes a snapshot and exports it
//
//   --frames=base|huge|hugetlb   --save=snapshot: what the launcher was asked for
//   --bytes=N --writers=N
//   --rate=N          writes per second, of all writers together
//   --lead-ms=N       how long the load runs before the save; reported beside it
//   --image=FILE      made, and removed at the end
//
// A write is one record of 64 bytes (store_records.h), anywhere, uniformly: the hardest load for
// copy-on-write. The image is read again and checked record by record, in both cases. Inside the
// time of a save: all from the first call to the last byte handed to the kernel; no fsync. The fork
// side computes no checksums.
//
// Step: "saved".

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "benchmarks/driver_steps.h"
#include "benchmarks/hostmm_calls.h"
#include "benchmarks/native_mapping.h"
#include "benchmarks/open_loop.h"
#include "benchmarks/own_counters.h"
#include "benchmarks/plain_frames.h"
#include "benchmarks/store_records.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kChunk = 1 << 20;
// The load goes on after the save for as long, so that what was due at its end is done. Arbitrary.
constexpr uint64_t kTailNs = 200'000'000;

struct Control {
  std::atomic<uint64_t> start_ns;  // 0: not yet
  std::atomic<uint64_t> ready;
  std::atomic<bool> stop;
};

struct Load {
  Store store;
  bool snapshot;
  Frames frames;
  uint64_t bytes;
  double gap_ns;  // of one writer
  Control* control;
  std::vector<Log*> logs;
};

struct Saved {
  uint64_t begin_ns;
  uint64_t call_ns;  // fork(), hostmm_snapshot()
  uint64_t end_ns;
};

template <class T>
T* MapForAll() {
  void* mapped = mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (mapped == MAP_FAILED) Fail("mmap");
  return static_cast<T*>(mapped);
}

volatile uint8_t* At(const Load& load) {
  return reinterpret_cast<volatile uint8_t*>(load.store.records);
}

// Touches all of it: a writer's first look at the store is not what is measured.
void Reach(const Load& load) {
  if (!load.snapshot) return;
  AwaitNativeMapping(At(load), load.bytes, load.frames, [&] {
    for (uint64_t at = 0; at < load.bytes; at += FrameBytes(load.frames)) {
      auto* word = reinterpret_cast<uint64_t*>(const_cast<uint8_t*>(At(load) + at));
      std::atomic_ref<uint64_t>(*word).fetch_add(0);
    }
  });
}

void RunWriter(const Load& load, uint64_t writer) {
  SleepExactly();
  Reach(load);
  Control& control = *load.control;
  control.ready.fetch_add(1);
  while (control.start_ns.load() == 0) SleepUntil(NowNs() + 100'000);
  Sequence sequence(load.store, writer);
  Arrivals arrivals(writer + 1, control.start_ns.load(), load.gap_ns);
  Log& log = *load.logs[writer];
  for (uint64_t n = 1; n <= Log::kRoom && !control.stop.load(std::memory_order_relaxed); ++n) {
    const uint64_t due = arrivals.Next();
    SleepUntil(due);
    WriteRecord(&load.store.records[sequence.Next()], n);
    log.requests[n - 1] = {due, NowNs() - due};
    log.count.store(n, std::memory_order_release);
  }
}

void WriteAll(int file, const void* from, uint64_t bytes) {
  const auto* at = static_cast<const uint8_t*>(from);
  for (uint64_t done = 0; done < bytes;) {
    const ssize_t n = write(file, at + done, std::min(kChunk, bytes - done));
    if (n <= 0) _exit(1);
    done += static_cast<uint64_t>(n);
  }
}

Saved SaveByFork(const Load& load, int file) {
  Saved saved = {};
  saved.begin_ns = NowNs();
  const pid_t pid = fork();
  if (pid == 0) {
    WriteAll(file, load.store.records, load.bytes);
    _exit(0);
  }
  saved.call_ns = NowNs() - saved.begin_ns;
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) Fail("save by fork");
  saved.end_ns = NowNs();
  return saved;
}

Saved SaveBySnapshot(const Load& load, int file) {
  Saved saved = {};
  saved.begin_ns = NowNs();
  const int snapshot = TakeSnapshot(At(load));
  saved.call_ns = NowNs() - saved.begin_ns;
  if (Hostmm().snapshot_export(snapshot, file, nullptr) != 0) FailHostmm("hostmm_snapshot_export");
  close(snapshot);
  saved.end_ns = NowNs();
  return saved;
}

Load Make(int argc, char** argv) {
  Load load = {};
  load.snapshot = TextOption(argc, argv, "save", "fork") == "snapshot";
  load.frames = FramesOption(TextOption(argc, argv, "frames", load.snapshot ? "huge" : "base"));
  load.bytes = NumberOption(argc, argv, "bytes", uint64_t{1} << 30);
  const uint64_t writers = NumberOption(argc, argv, "writers", 8);
  load.gap_ns = 1e9 / static_cast<double>(NumberOption(argc, argv, "rate", 20'000)) *
                static_cast<double>(writers);
  void* memory = nullptr;
  if (load.snapshot) {
    memory = MapNewRegion("benchmark.store", load.bytes);
  } else {
    memory = mmap(nullptr, load.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) Fail("mmap of the store");
  }
  if (load.frames == Frames::kBase && madvise(memory, load.bytes, MADV_NOHUGEPAGE) != 0) {
    Fail("madvise");
  }
  load.store = {static_cast<Record*>(memory), load.bytes / sizeof(Record), writers};
  Fill(load.store);
  load.control = MapForAll<Control>();
  while (load.logs.size() < writers) load.logs.push_back(MapForAll<Log>());
  return load;
}

// The writers, as threads or processes; ended by Join.
struct Writers {
  std::vector<std::thread> threads;
  std::vector<pid_t> processes;
};

Writers Start(const Load& load) {
  Writers writers;
  for (uint64_t i = 0; i < load.store.writers; ++i) {
    if (!load.snapshot) {
      writers.threads.emplace_back([&load, i] { RunWriter(load, i); });
      continue;
    }
    const pid_t pid = fork();
    if (pid < 0) Fail("fork");
    if (pid == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      RunWriter(load, i);
      _exit(0);
    }
    writers.processes.push_back(pid);
  }
  while (load.control->ready.load() != load.store.writers) SleepUntil(NowNs() + 1'000'000);
  return writers;
}

void Join(const Load& load, Writers* writers) {
  load.control->stop = true;
  for (std::thread& thread : writers->threads) thread.join();
  for (const pid_t pid : writers->processes) {
    int status = 0;
    if (waitpid(pid, &status, 0) != pid || status != 0) Fail("a writer");
  }
  for (const Log* log : load.logs) {
    if (log->count == Log::kRoom) {
      errno = ENOSPC;
      Fail("log of requests: too long a save for this rate");
    }
  }
}

std::string WhyImageIsWrong(const Load& load, int file) {
  const int flags = load.snapshot ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
  void* memory =
      mmap(nullptr, load.bytes, PROT_READ | PROT_WRITE, flags, load.snapshot ? -1 : file, 0);
  if (memory == MAP_FAILED) Fail("mmap for the image");
  if (load.snapshot &&
      (lseek(file, 0, SEEK_SET) != 0 || Hostmm().image_load(file, memory, load.bytes) != 0)) {
    FailHostmm("hostmm_image_load");
  }
  return WhyWrong({static_cast<Record*>(memory), load.store.count, load.store.writers});
}

int Main(int argc, char** argv) {
  const uint64_t lead_ns = NumberOption(argc, argv, "lead-ms", 1000) * 1'000'000;
  const std::string image(TextOption(argc, argv, "image", ""));
  const int file = open(image.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) Fail("--image=" + image);
  // Gone whatever becomes of this process.
  unlink(image.c_str());
  const Load load = Make(argc, argv);
  Writers writers = Start(load);
  SleepExactly();
  const uint64_t start = NowNs() + 1'000'000;
  load.control->start_ns = start;
  SleepUntil(start + lead_ns);
  const Saved saved = load.snapshot ? SaveBySnapshot(load, file) : SaveByFork(load, file);
  SleepUntil(saved.end_ns + kTailNs);
  Join(load, &writers);

  const std::string wrong = WhyImageIsWrong(load, file);
  if (!wrong.empty()) std::fprintf(stderr, "the image: %s\n", wrong.c_str());
  const Latencies before = LatenciesOf(load.logs, start, saved.begin_ns);
  const Latencies during = LatenciesOf(load.logs, saved.begin_ns, saved.end_ns);
  Report("{\"step\":\"saved\",\"good\":" + std::to_string(wrong.empty() ? 1 : 0) +
         ",\"save_ns\":" + std::to_string(saved.end_ns - saved.begin_ns) +
         ",\"call_ns\":" + std::to_string(saved.call_ns) + "," + ToJson("before_", before) + "," +
         ToJson("during_", during) + "}");
  return wrong.empty() ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
