// benchmarks/minor_fault_guest.cc
//
// A parent writes every page of a shared region; its child then touches each page for the first
// time, and times it. The pages exist in the file but are not mapped in the child: on plain Linux
// the kernel maps them, under `hostmm run --frames=base --pt-budget=...` the pager does, one page
// per fault. Plain code: it knows nothing of hostmm.
//
//   --pages=N
//   --cpu=N     the processor that the touching process runs on

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>

#include "benchmarks/driver_steps.h"
#include "benchmarks/touch_timer.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;

int Main(int argc, char** argv) {
  const uint64_t pages = NumberOption(argc, argv, "pages", 16384);
  const uint64_t cpu = NumberOption(argc, argv, "cpu", 0);
  void* mapped =
      mmap(nullptr, pages * kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  // One page per fault also where the pager would map those around it.
  if (madvise(mapped, pages * kPageBytes, MADV_NOHUGEPAGE) != 0) Fail("madvise");
  volatile uint8_t* region = static_cast<volatile uint8_t*>(mapped);
  for (uint64_t i = 0; i < pages; ++i) region[i * kPageBytes] = 2;

  const pid_t child = fork();
  if (child < 0) Fail("fork");
  if (child == 0) {
    if (!PinToProcessor(cpu)) Fail("sched_setaffinity");
    Report(ToJson(TimeTouches(region, pages)));
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) Fail("waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
