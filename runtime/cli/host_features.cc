#include "runtime/cli/host_features.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string_view>

#include "runtime/cli/proc_file.h"
#include "runtime/uapi_compat.h"
#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

constexpr size_t kBlockBytes = size_t{2} << 20;

// Debian's `nobody`. Any user without privilege would do.
constexpr uid_t kNobody = 65534;

Attempt FromResult(long result) { return result >= 0 ? Attempt::Works() : Attempt::Refused(errno); }

// Runs `probe` in a child, which may change its credentials and namespaces, and RETURNS what it
// returned. A child that dies reports ECHILD. Value is copied through a pipe: plain data.
template <class Value, class Fn>
Value InChild(Fn probe, Value if_it_dies) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return if_it_dies;
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) return if_it_dies;
  if (pid == 0) {
    const Value value = probe();
    const ssize_t written = write(write_end.get(), &value, sizeof(value));
    _exit(written == sizeof(value) ? 0 : 1);
  }
  write_end.reset();
  Value value = if_it_dies;
  if (read(read_end.get(), &value, sizeof(value)) != sizeof(value)) value = if_it_dies;
  while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return value;
}

// Enables the userfaultfd. RETURNS its feature bits in `bits`.
Attempt AskUserfaultfd(const UniqueFd& uffd, uint64_t* bits) {
  uffdio_api api = {};
  api.api = UFFD_API;
  const Attempt attempt = FromResult(ioctl(uffd.get(), UFFDIO_API, &api));
  if (attempt.works()) *bits = api.features;
  return attempt;
}

Attempt PassToUnprivileged(const UniqueFd& device, uid_t user) {
  const auto probe = [&]() -> Attempt {
    if (user == 0 &&
        (setresgid(kNobody, kNobody, kNobody) != 0 || setresuid(kNobody, kNobody, kNobody) != 0)) {
      return Attempt::Refused(errno);
    }
    const UniqueFd uffd(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
    if (!uffd.ok()) return Attempt::Refused(errno);
    uint64_t bits = 0;
    return AskUserfaultfd(uffd, &bits);
  };
  return InChild<Attempt>(probe, Attempt::Refused(ECHILD));
}

UserfaultfdFeatures ProbeUserfaultfd(uid_t user) {
  UserfaultfdFeatures features;
  features.unprivileged_sysctl = ReadProcNumber("/proc/sys/vm/unprivileged_userfaultfd");
  const UniqueFd direct(static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  features.system_call = FromResult(direct.get());
  if (direct.ok()) features.system_call = AskUserfaultfd(direct, &features.feature_bits);
  const UniqueFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  features.device = FromResult(device.get());
  if (!device.ok()) return features;
  const UniqueFd own(ioctl(device.get(), USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK));
  if (own.ok()) AskUserfaultfd(own, &features.feature_bits);
  features.passed_descriptor = PassToUnprivileged(device, user);
  return features;
}

bool WriteText(const char* path, std::string_view text) {
  const UniqueFd fd(open(path, O_WRONLY | O_CLOEXEC));
  return fd.ok() && write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

// Maps the caller to root of a new user namespace, where it may make a tmpfs.
Attempt EnterUserNamespace() {
  const uid_t user = geteuid();
  const gid_t group = getegid();
  // Without it /proc/self belongs to root after a set-uid start, and the maps cannot be written.
  prctl(PR_SET_DUMPABLE, 1);
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return Attempt::Refused(errno);
  char user_map[32];
  char group_map[32];
  std::snprintf(user_map, sizeof(user_map), "0 %u 1", user);
  std::snprintf(group_map, sizeof(group_map), "0 %u 1", group);
  const bool mapped = WriteText("/proc/self/setgroups", "deny") &&
                      WriteText("/proc/self/uid_map", user_map) &&
                      WriteText("/proc/self/gid_map", group_map);
  return mapped ? Attempt::Works() : Attempt::Refused(errno);
}

// An unnamed file in a tmpfs of its own, which is attached nowhere and goes with the file.
UniqueFd OpenHugeTmpfsFile() {
  const UniqueFd context(fsopen("tmpfs", FSOPEN_CLOEXEC));
  if (!context.ok()) return UniqueFd();
  if (fsconfig(context.get(), FSCONFIG_SET_STRING, "huge", "within_size", 0) != 0 ||
      fsconfig(context.get(), FSCONFIG_SET_STRING, "size", "8m", 0) != 0 ||
      fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return UniqueFd();
  }
  const UniqueFd mount(fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!mount.ok()) return UniqueFd();
  return UniqueFd(openat(mount.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
}

// Bytes of this process that are mapped with 2 MiB entries of shared memory. The file's mapping is
// the only one.
uint64_t HugeMappedBytes() {
  const std::optional<std::string> rollup = ReadProcFile("/proc/self/smaps_rollup");
  return rollup.has_value() ? KilobytesOf(*rollup, "ShmemPmdMapped").value_or(0) : 0;
}

struct HugeProbe {
  Attempt user_namespace;
  Attempt tmpfs;
  uint64_t huge_bytes = 0;
};

HugeProbe ProbeHugeTmpfs() {
  HugeProbe probe;
  if (geteuid() != 0) {
    probe.user_namespace = EnterUserNamespace();
    if (!probe.user_namespace.works()) return probe;
  }
  const UniqueFd file = OpenHugeTmpfsFile();
  if (!file.ok() || ftruncate(file.get(), kBlockBytes) != 0) {
    probe.tmpfs = Attempt::Refused(errno);
    return probe;
  }
  // Twice the length has an aligned block in it.
  void* room =
      mmap(nullptr, 2 * kBlockBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  const uintptr_t aligned =
      (reinterpret_cast<uintptr_t>(room) + kBlockBytes - 1) & ~(kBlockBytes - 1);
  void* block = mmap(reinterpret_cast<void*>(aligned), kBlockBytes, PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_FIXED, file.get(), 0);
  if (room == MAP_FAILED || block == MAP_FAILED) {
    probe.tmpfs = Attempt::Refused(errno);
    return probe;
  }
  // Reports a lack of memory as an error; a store would end in SIGBUS.
  if (madvise(block, kBlockBytes, MADV_POPULATE_WRITE) != 0) {
    probe.tmpfs = Attempt::Refused(errno);
    return probe;
  }
  probe.tmpfs = Attempt::Works();
  probe.huge_bytes = HugeMappedBytes();
  return probe;
}

HugeFrameFeatures ProbeHugeFrames() {
  HugeFrameFeatures features;
  const auto choices = ReadProcFile("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  if (choices.has_value()) features.shmem_enabled = ActiveWord(*choices);
  features.user_namespaces_sysctl = ReadProcNumber("/proc/sys/user/max_user_namespaces");
  HugeProbe died;
  died.tmpfs = Attempt::Refused(ECHILD);
  const HugeProbe probe = InChild<HugeProbe>(ProbeHugeTmpfs, died);
  features.user_namespace = probe.user_namespace;
  features.tmpfs = probe.tmpfs;
  features.huge_bytes = probe.huge_bytes;
  return features;
}

HugetlbFeatures ProbeHugetlb(std::string_view meminfo) {
  HugetlbFeatures features;
  features.page_bytes = KilobytesOf(meminfo, "Hugepagesize").value_or(0);
  features.free_pages = NumberOf(meminfo, "HugePages_Free").value_or(0);
  features.overcommit_pages = ReadProcNumber("/proc/sys/vm/nr_overcommit_hugepages").value_or(0);
  return features;
}

IoUringFeatures ProbeIoUring() {
  IoUringFeatures features;
  features.disabled_sysctl = ReadProcNumber("/proc/sys/kernel/io_uring_disabled");
  io_uring_params parameters = {};
  const UniqueFd ring(static_cast<int>(syscall(SYS_io_uring_setup, 2, &parameters)));
  features.setup = FromResult(ring.get());
  return features;
}

uint64_t AsCount(rlim_t limit) {
  return limit == RLIM_INFINITY ? UINT64_MAX : static_cast<uint64_t>(limit);
}

HostLimits ProbeLimits() {
  HostLimits limits;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limits.open_files_soft = AsCount(limit.rlim_cur);
    limits.open_files_hard = AsCount(limit.rlim_max);
  }
  if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0) limits.locked_bytes = AsCount(limit.rlim_cur);
  if (getrlimit(RLIMIT_NPROC, &limit) == 0) limits.processes = AsCount(limit.rlim_cur);
  limits.max_map_count = ReadProcNumber("/proc/sys/vm/max_map_count");
  return limits;
}

std::string GroupName(gid_t group) {
  const struct group* entry = getgrgid(group);
  return entry != nullptr ? entry->gr_name : std::to_string(group);
}

}  // namespace

KernelRelease ParseKernelRelease(const std::string& text) {
  KernelRelease release;
  release.text = text;
  if (std::sscanf(text.c_str(), "%d.%d", &release.major, &release.minor) != 2) {
    release.major = release.minor = 0;
  }
  return release;
}

std::string ActiveWord(const std::string& choices) {
  const size_t open = choices.find('[');
  const size_t close = choices.find(']', open);
  if (open == std::string::npos || close == std::string::npos) return "";
  return choices.substr(open + 1, close - open - 1);
}

HostFeatures ProbeHost() {
  HostFeatures host;
  host.user = geteuid();
  host.group_name = GroupName(getegid());
  utsname names = {};
  if (uname(&names) == 0) host.kernel = ParseKernelRelease(names.release);
  host.userfaultfd = ProbeUserfaultfd(host.user);
  host.huge = ProbeHugeFrames();
  const std::string meminfo = ReadProcFile("/proc/meminfo").value_or("");
  host.hugetlb = ProbeHugetlb(meminfo);
  host.io_uring = ProbeIoUring();
  host.limits = ProbeLimits();
  host.available_bytes = KilobytesOf(meminfo, "MemAvailable").value_or(0);
  return host;
}

}  // namespace hostmm
