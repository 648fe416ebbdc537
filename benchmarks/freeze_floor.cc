// benchmarks/freeze_floor.cc
//
// What a freeze is compared with, in one process and without hostmm:
//
//   --how=fork   fork() of this process, which has --bytes of private memory in 4 KiB pages, all
//                written since the last fork: what a program does today that wants a snapshot
//   --how=bare   what the kernel takes at least to stop all writes to a mapping of --frames: its
//                registration with a userfaultfd for all modes, and MADV_DONTNEED (hugetlb:
//                UFFDIO_WRITEPROTECT). Nobody is told, no snapshot is made
//
//   --frames=base|huge|hugetlb --bytes=N --times=N
//
// Step: "timed".

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <string>

#include "benchmarks/driver_steps.h"
#include "benchmarks/native_mapping.h"
#include "benchmarks/own_counters.h"
#include "benchmarks/plain_frames.h"

namespace hostmm::benchmarks {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kNormalModes = UFFDIO_REGISTER_MODE_MISSING;
constexpr uint64_t kAllModes =
    UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP;

struct Memory {
  uint8_t* at;
  uint64_t bytes;
};

void Write(const Memory& memory, uint64_t step) {
  volatile uint8_t* at = memory.at;
  for (uint64_t i = 0; i < memory.bytes; i += step) at[i] = 1;
}

uint64_t TimeFork(const Memory& memory) {
  Write(memory, kPageBytes);
  const uint64_t start = NowNs();
  const pid_t pid = fork();
  if (pid == 0) _exit(0);
  const uint64_t ns = NowNs() - start;
  if (pid < 0 || waitpid(pid, nullptr, 0) != pid) Fail("fork");
  return ns;
}

Memory MakePrivate(uint64_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) Fail("mmap");
  if (madvise(mapped, bytes, MADV_NOHUGEPAGE) != 0) Fail("madvise(MADV_NOHUGEPAGE)");
  return {static_cast<uint8_t*>(mapped), bytes};
}

int OpenUserfaultfd() {
  const long fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) Fail("userfaultfd");
  uffdio_api api = {};
  api.api = UFFD_API;
  if (ioctl(static_cast<int>(fd), UFFDIO_API, &api) != 0) Fail("UFFDIO_API");
  return static_cast<int>(fd);
}

void Register(int uffd, const Memory& memory, uint64_t modes) {
  uffdio_register ask = {};
  ask.range = {reinterpret_cast<uint64_t>(memory.at), memory.bytes};
  ask.mode = modes;
  if (ioctl(uffd, UFFDIO_REGISTER, &ask) != 0) Fail("UFFDIO_REGISTER");
}

void Zap(const Memory& memory) {
  if (madvise(memory.at, memory.bytes, MADV_DONTNEED) != 0) Fail("madvise(MADV_DONTNEED)");
}

void Freeze(int uffd, const Memory& memory, Frames frames) {
  Register(uffd, memory, kAllModes);
  if (frames != Frames::kHugetlb) return Zap(memory);
  uffdio_writeprotect ask = {};
  ask.range = {reinterpret_cast<uint64_t>(memory.at), memory.bytes};
  ask.mode = UFFDIO_WRITEPROTECT_MODE_WP;
  if (ioctl(uffd, UFFDIO_WRITEPROTECT, &ask) != 0) Fail("UFFDIO_WRITEPROTECT");
}

uint64_t TimeBare(int uffd, const Memory& memory, Frames frames) {
  AwaitNativeMapping(memory.at, memory.bytes, frames, [&] { Write(memory, FrameBytes(frames)); });
  const uint64_t start = NowNs();
  Freeze(uffd, memory, frames);
  const uint64_t ns = NowNs() - start;
  uffdio_range range = {reinterpret_cast<uint64_t>(memory.at), memory.bytes};
  if (ioctl(uffd, UFFDIO_UNREGISTER, &range) != 0) Fail("UFFDIO_UNREGISTER");
  Register(uffd, memory, kNormalModes);
  Zap(memory);
  return ns;
}

int Main(int argc, char** argv) {
  const bool is_fork = TextOption(argc, argv, "how", "bare") == "fork";
  const Frames frames = FramesOption(TextOption(argc, argv, "frames", "huge"));
  const uint64_t bytes = NumberOption(argc, argv, "bytes", uint64_t{1} << 30);
  const uint64_t times = NumberOption(argc, argv, "times", 10);
  const Memory memory =
      is_fork ? MakePrivate(bytes) : Memory{MapFile(MakeFile(frames, bytes), bytes), bytes};
  const int uffd = is_fork ? -1 : OpenUserfaultfd();
  Write(memory, kPageBytes);
  if (!is_fork) Register(uffd, memory, kNormalModes);
  std::string json;
  for (uint64_t i = 0; i < times; ++i) {
    const uint64_t ns = is_fork ? TimeFork(memory) : TimeBare(uffd, memory, frames);
    json += (i == 0 ? "" : ",") + std::to_string(ns);
  }
  Report("{\"step\":\"timed\",\"ns\":[" + json + "]}");
  return 0;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
