// benchmarks/protect_guests.cc
//
// Processes that share a region, all of it resident in each, change its protection for all of them,
// read-only and writable by turns; timed until the last process has it. The parent is one of them
// and asks for it, in one of two ways:
//
//   --how=shared    one mprotect of memory that was mapped with MAP_SHARED_PT (under hostmm)
//   --how=signals   without hostmm: a signal to each of the others, whose handler calls mprotect;
//                   meanwhile the parent's own mprotect; the last one wakes the parent
//
//   --frames=base|huge|hugetlb   --how=signals: of what the file is made; --how=shared: of what the
//                                launcher was asked to make it
//   --send=each|both   --how=signals: one kill for each process; both: by turns also one kill for
//                      the whole process group
//   --bytes=N --guests=N --pairs=N
//   --idle=N           so many further processes, which are attached and do not map what changes:
//   --idle_maps=other|tail       they map another region, or the tail of the same one
//
// Before each call every process touches what it has mapped, after each call every process asks
// the kernel what it may write: read(2) into the memory succeeds or says EFAULT.
//
// Steps: "ready" (all processes are there), "timed".

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
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
constexpr int kWritable = PROT_READ | PROT_WRITE;
// Of the region that idle processes map: the least that hostmm manages for programs that did not
// ask, so that it is a region like others.
constexpr uint64_t kIdleBytes = 8 << 20;
// Where the kernel is asked whether a process may write. Arbitrary.
constexpr uint64_t kAskedPlaces = 32;

enum class How { kShared, kSignals };
enum class Send { kEach, kGroup };

// What all processes see; signal handlers use it, so everything in it is lock-free.
struct Control {
  std::atomic<int32_t> pending;
  std::atomic<int32_t> prot;
  std::atomic<uint64_t> wrong;  // protections and pages that were not what they must be
};

struct Region {
  volatile uint8_t* at;
  uint64_t bytes;
  uint64_t step;
};

Control* g_control;
Region g_region;
int g_zero;  // /dev/zero

long Futex(int op, int32_t value) {
  return syscall(SYS_futex, &g_control->pending, op, value, nullptr, nullptr, 0);
}

void CountOff() {
  if (g_control->pending.fetch_sub(1) == 1) Futex(FUTEX_WAKE, 1);
}

void WaitForAll() {
  for (int32_t left; (left = g_control->pending.load()) > 0;) Futex(FUTEX_WAIT, left);
}

void Apply() {
  const int prot = g_control->prot.load();
  if (mprotect(const_cast<uint8_t*>(g_region.at), g_region.bytes, prot) != 0) ++g_control->wrong;
}

volatile uint64_t* NumberOf(uint64_t at) {
  return reinterpret_cast<volatile uint64_t*>(g_region.at + at) + 1;
}

void AskKernel(int prot) {
  for (uint64_t i = 0; i < kAskedPlaces; ++i) {
    uint64_t at = g_region.bytes / kAskedPlaces * i;
    if (i == kAskedPlaces - 1) at = g_region.bytes - kPageBytes;
    const ssize_t got = read(g_zero, const_cast<uint8_t*>(g_region.at + at), 1);
    const bool writable = got == 1;
    if (got != 1 && errno != EFAULT) ++g_control->wrong;
    if (writable != (prot == kWritable)) ++g_control->wrong;
  }
}

// One byte of each `step`, as far as the protection allows.
void Touch(int prot, uint64_t step) {
  for (uint64_t at = 0; at < g_region.bytes; at += step) {
    if (*NumberOf(at) != at) ++g_control->wrong;
    if (prot == kWritable) g_region.at[at] = 1;
  }
}

void OnApply(int) {
  const int saved = errno;
  Apply();
  CountOff();
  errno = saved;
}

void OnTouch(int) {
  const int saved = errno;
  const int prot = g_control->prot.load();
  AskKernel(prot);
  Touch(prot, g_region.step);
  CountOff();
  errno = saved;
}

void Handle(int signal, void (*handler)(int)) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  if (sigaction(signal, &action, nullptr) != 0) Fail("sigaction");
}

[[noreturn]] void WaitForSignals() {
  for (;;) pause();
}

// The child counts off when it is as it must be for the first call.
pid_t Fork(void (*prepare)()) {
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) Fail("fork");
  if (pid != 0) return pid;
  // A driver that is killed must not leave children.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  prepare();
  CountOff();
  WaitForSignals();
}

// Every page, twice: the second time nothing may be missing.
void Populate() {
  Touch(kWritable, kPageBytes);
  const uint64_t before = MinorFaults();
  Touch(kWritable, kPageBytes);
  // A fault or two are of the process's own memory.
  if (MinorFaults() - before > 16) ++g_control->wrong;
}

// The parent unmaps it when all idle processes are there.
void Nothing() {}

void KeepTailOnly() {
  if (munmap(const_cast<uint8_t*>(g_region.at), g_region.bytes) != 0) Fail("munmap");
}

void* MapShared(uint64_t bytes, int flags, int file) {
  void* mapped = mmap(nullptr, bytes, kWritable, MAP_SHARED | flags, file, 0);
  if (mapped == MAP_FAILED) Fail("mmap of the region");
  return mapped;
}

void ForkIdle(uint64_t count, void (*prepare)()) {
  g_control->pending = static_cast<int32_t>(count);
  for (uint64_t i = 0; i < count; ++i) Fork(prepare);
  WaitForAll();
}

class Guests {
 public:
  explicit Guests(How how) : how_(how) {}

  void Start(uint64_t count) {
    g_control->prot = kWritable;
    Populate();
    g_control->pending = static_cast<int32_t>(count - 1);
    for (uint64_t i = 1; i < count; ++i) children_.push_back(Fork(Populate));
    WaitForAll();
  }

  // RETURNS nanoseconds until the last process has it.
  uint64_t Protect(int prot, Send send) {
    TouchInAll();
    g_control->prot = prot;
    const uint64_t start = NowNs();
    if (how_ == How::kShared) {
      Apply();
    } else {
      Signal(send);
    }
    const uint64_t elapsed = NowNs() - start;
    TouchInAll();
    return elapsed;
  }

 private:
  void Signal(Send send) {
    g_control->pending = static_cast<int32_t>(children_.size() + 1);
    if (send == Send::kGroup) {
      // The parent is of the group: its handler has run when kill returns.
      kill(0, SIGUSR1);
    } else {
      for (const pid_t child : children_) kill(child, SIGUSR1);
      OnApply(SIGUSR1);
    }
    WaitForAll();
  }

  void TouchInAll() {
    g_control->pending = static_cast<int32_t>(children_.size() + 1);
    for (const pid_t child : children_) kill(child, SIGUSR2);
    OnTouch(SIGUSR2);
    WaitForAll();
  }

  How how_;
  std::vector<pid_t> children_;
};

std::string ToJson(const std::vector<uint64_t>& values) {
  std::string json = "[";
  for (const uint64_t value : values) {
    if (json.size() > 1) json += ',';
    json += std::to_string(value);
  }
  return json + "]";
}

struct Times {
  void Add(Guests* all, Send send) {
    read_only_ns.push_back(all->Protect(PROT_READ, send));
    writable_ns.push_back(all->Protect(kWritable, send));
  }

  std::string AsJson() const {
    return "{\"read_only_ns\":" + ToJson(read_only_ns) + ",\"writable_ns\":" + ToJson(writable_ns) +
           "}";
  }

  std::vector<uint64_t> read_only_ns;
  std::vector<uint64_t> writable_ns;
};

void MapRegion(How how, Frames frames, uint64_t bytes, uint64_t tail) {
  g_region.bytes = bytes;
  g_region.step = FrameBytes(frames);
  if (how == How::kShared) {
    g_region.at =
        static_cast<volatile uint8_t*>(MapShared(bytes + tail, MAP_SHARED_PT | MAP_ANONYMOUS, -1));
  } else {
    g_region.at = MapFile(MakeFile(frames, bytes + tail), bytes + tail);
  }
  for (uint64_t at = 0; at < bytes; at += kPageBytes) *NumberOf(at) = at;
}

int Main(int argc, char** argv) {
  const How how =
      TextOption(argc, argv, "how", "shared") == "signals" ? How::kSignals : How::kShared;
  const bool both = TextOption(argc, argv, "send", "each") == "both";
  const Frames frames = FramesOption(TextOption(argc, argv, "frames", "huge"));
  const uint64_t bytes = NumberOption(argc, argv, "bytes", uint64_t{1} << 30);
  const uint64_t guests = NumberOption(argc, argv, "guests", 64);
  const uint64_t idle = NumberOption(argc, argv, "idle", 0);
  const bool tail = TextOption(argc, argv, "idle_maps", "other") == "tail";
  const uint64_t pairs = NumberOption(argc, argv, "pairs", 10);

  // For the signals of a group. Fails for the leader of a session, which leads a group already.
  setpgid(0, 0);
  g_zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
  if (g_zero < 0) Fail("open(/dev/zero)");
  g_control = static_cast<Control*>(MapShared(sizeof(Control), MAP_ANONYMOUS, -1));
  Handle(SIGUSR1, OnApply);
  Handle(SIGUSR2, OnTouch);

  if (idle != 0 && !tail) {
    void* other = MapShared(kIdleBytes, MAP_SHARED_PT | MAP_ANONYMOUS, -1);
    ForkIdle(idle, Nothing);
    if (munmap(other, kIdleBytes) != 0) Fail("munmap");
  }
  MapRegion(how, frames, bytes, tail ? kIdleBytes : 0);
  if (idle != 0 && tail) ForkIdle(idle, KeepTailOnly);
  Guests all(how);
  all.Start(guests);
  ReportAndWait("{\"step\":\"ready\"}");

  Times each;
  Times group;
  for (uint64_t i = 0; i < pairs; ++i) {
    each.Add(&all, Send::kEach);
    if (both) group.Add(&all, Send::kGroup);
  }
  const bool good = g_control->wrong == 0;
  Report("{\"step\":\"timed\",\"good\":" + std::to_string(good ? 1 : 0) +
         ",\"each\":" + each.AsJson() + ",\"group\":" + group.AsJson() + "}");
  // Children end with their parent.
  return good ? 0 : 1;
}

}  // namespace
}  // namespace hostmm::benchmarks

int main(int argc, char** argv) { return hostmm::benchmarks::Main(argc, argv); }
