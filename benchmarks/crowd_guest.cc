// benchmarks/crowd_guest.cc
//
// A parent populates a shared region and forks a crowd of children; each reads one byte of every
// block of 2 MiB, which is what it takes to have page tables for all of it where frames are large,
// compares it, and then waits. The driver samples page tables while all of them wait.
//
//   --bytes=N     0: the same processes without a region (what to subtract)
//   --children=N
//
// Steps: "crowded" (all children have touched and wait).

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdint>
#include <string>

#include "benchmarks/driver_steps.h"

#ifndef MAP_SHARED_PT
#define MAP_SHARED_PT 0x200000
#endif

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kBlockBytes = 2 << 20;

struct Control {
  std::atomic<uint64_t> arrived;
  std::atomic<uint64_t> wrong;
};

void* Map(uint64_t bytes, int flags) {
  void* mapped =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | flags, -1, 0);
  if (mapped == MAP_FAILED) Fail("mmap");
  return mapped;
}

// A page says where in the region it is.
void Populate(volatile uint8_t* region, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at += kPageBytes) {
    *reinterpret_cast<volatile uint64_t*>(region + at) = at;
  }
}

[[noreturn]] void RunChild(const volatile uint8_t* region, uint64_t bytes, uint64_t index,
                           pid_t parent, int turn, int next, Control* control) {
  // A driver that is killed must not leave a crowd.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  // Not all the same page of a block; arbitrary.
  const uint64_t page = index % (kBlockBytes / kPageBytes) * kPageBytes;
  for (uint64_t at = page; at < bytes; at += kBlockBytes) {
    if (*reinterpret_cast<const volatile uint64_t*>(region + at) != at) ++control->wrong;
  }
  ++control->arrived;
  char c = 'n';
  if (write(next, &c, 1) != 1) _exit(1);
  // Nobody writes there: it ends when the parent closes its end.
  (void)!read(turn, &c, 1);
  _exit(0);
}

int Main(int argc, char** argv) {
  const uint64_t bytes = NumberOption(argc, argv, "bytes", uint64_t{8} << 30);
  const uint64_t children = NumberOption(argc, argv, "children", 1500);
  auto* control = static_cast<Control*>(Map(sizeof(Control), 0));
  volatile uint8_t* region = nullptr;
  if (bytes != 0) {
    region = static_cast<volatile uint8_t*>(Map(bytes, MAP_SHARED_PT));
    Populate(region, bytes);
  }
  int arrived[2];
  int hold[2];
  if (pipe2(arrived, O_CLOEXEC) != 0 || pipe2(hold, O_CLOEXEC) != 0) Fail("pipe2");
  std::string pids;
  const pid_t parent = getpid();
  for (uint64_t index = 0; index < children; ++index) {
    const pid_t pid = fork();
    if (pid < 0) Fail("fork");
    if (pid == 0) {
      close(hold[1]);
      RunChild(region, bytes, index, parent, hold[0], arrived[1], control);
    }
    pids += (pids.empty() ? "" : ",") + std::to_string(pid);
    // One after another: what is measured is how many there can be, not a stampede.
    char c;
    if (read(arrived[0], &c, 1) != 1) Fail("a child");
  }
  ReportAndWait("{\"step\":\"crowded\",\"pids\":[" + pids + "]}");

  close(hold[1]);
  while (wait(nullptr) > 0) {
  }
  const bool good = control->wrong == 0 && control->arrived == children;
  Report(good ? "{\"step\":\"verified\",\"good\":1}" : "{\"step\":\"verified\",\"good\":0}");
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
