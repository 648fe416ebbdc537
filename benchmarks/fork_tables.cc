// benchmarks/fork_tables.cc
//
// Forks of a process whose private memory takes 1 .. 64 pages of last-level tables (2 MiB each),
// with the work that fork puts off: the parent's first write into every table, and the child's
// exit. Every page is written before each fork. The child only waits.
//
//   --memory=plain|cow   MAP_PRIVATE | MAP_ANONYMOUS alone, or with MAP_PRIVATE_COW
//   --repeat=N           forks of each size; medians are reported
//   --most=N             largest number of tables (default 64)
//
// Memory that hostmm does not manage is kept to 4 KiB pages (MADV_NOHUGEPAGE): with larger ones
// there would be no tables to copy. Where hostmm manages it, frames are as they come.
//
// Step: "timed"; "managed" says for each size whether hostmm did.

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
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
constexpr uint64_t kTableBytes = uint64_t{2} << 20;
// Close together where the threshold is.
constexpr uint64_t kSizes[] = {1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64};

struct Memory {
  volatile uint8_t* at;
  uint64_t bytes;
  bool managed;
};

struct Times {
  uint64_t fork_ns;
  uint64_t write_ns;
  uint64_t exit_ns;
};

// Somewhere at a multiple of 2 MiB, so that `bytes` take as many tables as they must.
void* FreePlace(uint64_t bytes) {
  void* found = mmap(nullptr, bytes + kTableBytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) Fail("mmap of a place");
  munmap(found, bytes + kTableBytes);
  const uint64_t at = (reinterpret_cast<uint64_t>(found) + kTableBytes - 1) / kTableBytes;
  return reinterpret_cast<void*>(at * kTableBytes);
}

Memory Make(uint64_t tables, bool cow) {
  const uint64_t bytes = tables * kTableBytes;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (cow ? MAP_PRIVATE_COW : 0);
  void* mapped = mmap(FreePlace(bytes), bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (mapped == MAP_FAILED || reinterpret_cast<uint64_t>(mapped) % kTableBytes != 0) Fail("mmap");
  const bool managed = HasHostmm() && Hostmm().is_shared(mapped) >= 0;
  if (!managed && madvise(mapped, bytes, MADV_NOHUGEPAGE) != 0) Fail("madvise");
  return {static_cast<volatile uint8_t*>(mapped), bytes, managed};
}

void WriteAll(const Memory& memory) {
  // Rss counts pages of all sizes.
  AwaitNativeMapping(memory.at, memory.bytes, Frames::kBase, [&] {
    for (uint64_t at = 0; at < memory.bytes; at += kPageBytes) memory.at[at] = 1;
  });
}

// RETURNS whether each table's first page is as the parent had it when it forked.
bool IsOld(const Memory& memory) {
  for (uint64_t at = 0; at < memory.bytes; at += kTableBytes) {
    if (memory.at[at] != 1) return false;
  }
  return true;
}

// `check`: the child looks at its memory after the parent has written, which takes time.
Times TimeFork(const Memory& memory, bool check, bool* good) {
  WriteAll(memory);
  int life[2];
  if (pipe(life) != 0) Fail("pipe");
  Times times = {};
  uint64_t start = NowNs();
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    close(life[1]);
    char c = 0;
    const bool ended = read(life[0], &c, 1) == 0;
    _exit(ended && (!check || IsOld(memory)) ? 0 : 1);
  }
  times.fork_ns = NowNs() - start;
  if (pid < 0) Fail("fork");
  start = NowNs();
  for (uint64_t at = 0; at < memory.bytes; at += kTableBytes) memory.at[at] = 2;
  times.write_ns = NowNs() - start;
  close(life[0]);
  start = NowNs();
  close(life[1]);
  int status = 0;
  if (waitpid(pid, &status, 0) != pid) Fail("waitpid");
  times.exit_ns = NowNs() - start;
  *good = *good && status == 0;
  return times;
}

template <class Field>
std::string MedianOf(std::vector<Times> all, Field field) {
  const auto middle = all.begin() + static_cast<ptrdiff_t>(all.size() / 2);
  std::nth_element(all.begin(), middle, all.end(),
                   [&](const Times& a, const Times& b) { return field(a) < field(b); });
  return std::to_string(field(*middle));
}

std::string TimeSize(uint64_t tables, bool cow, uint64_t repeat, bool* good) {
  const Memory memory = Make(tables, cow);
  TimeFork(memory, true, good);
  std::vector<Times> all;
  while (all.size() < repeat) all.push_back(TimeFork(memory, false, good));
  munmap(const_cast<uint8_t*>(memory.at), memory.bytes);
  const auto total = [](const Times& t) { return t.fork_ns + t.write_ns + t.exit_ns; };
  return "{\"tables\":" + std::to_string(tables) +
         ",\"managed\":" + std::to_string(memory.managed ? 1 : 0) +
         ",\"fork_ns\":" + MedianOf(all, [](const Times& t) { return t.fork_ns; }) +
         ",\"write_ns\":" + MedianOf(all, [](const Times& t) { return t.write_ns; }) +
         ",\"exit_ns\":" + MedianOf(all, [](const Times& t) { return t.exit_ns; }) +
         ",\"total_ns\":" + MedianOf(all, total) + "}";
}

int Main(int argc, char** argv) {
  const bool cow = TextOption(argc, argv, "memory", "plain") == "cow";
  const uint64_t repeat = NumberOption(argc, argv, "repeat", 20);
  const uint64_t most = NumberOption(argc, argv, "most", 64);
  bool good = true;
  std::string json;
  for (const uint64_t tables : kSizes) {
    if (tables > most) break;
    json += (json.empty() ? "" : ",") + TimeSize(tables, cow, repeat, &good);
  }
  Report("{\"step\":\"timed\",\"good\":" + std::to_string(good ? 1 : 0) + ",\"sizes\":[" + json +
         "]}");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
