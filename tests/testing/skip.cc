#include "tests/testing/skip.h"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {
namespace {

std::string Refused(const std::string& what) { return what + ": " + strerror(errno); }

// What forbids huge pages in shared memory altogether. Not a trial: a kernel that could give them
// and no longer does is what the tests are to notice, not to skip.
std::string WhyNoShmemThp() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  std::string modes;
  if (!std::getline(file, modes)) return "needs a kernel with CONFIG_TRANSPARENT_HUGEPAGE";
  const bool denied = modes.find("[deny]") != std::string::npos;
  return denied ? "needs transparent_hugepage/shmem_enabled other than deny (never is fine)" : "";
}

bool KernelIsAtLeast(int major, int minor) {
  utsname name = {};
  int found_major = 0;
  int found_minor = 0;
  if (uname(&name) != 0 || sscanf(name.release, "%d.%d", &found_major, &found_minor) != 2) {
    return false;
  }
  return std::pair(found_major, found_minor) >= std::pair(major, minor);
}

// /proc/buddyinfo: "Node 0, zone Normal" and then the free runs of 4 KiB << column.
bool HasFreeHugeFrame() {
  constexpr int kHugeOrder = 9;
  std::ifstream file("/proc/buddyinfo");
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string word;
    for (int i = 0; i < 4; ++i) words >> word;
    int64_t count = 0;
    for (int order = 0; words >> count; ++order) {
      if (order >= kHugeOrder && count > 0) return true;
    }
  }
  return false;
}

}  // namespace

std::string WhyNoRoot() { return geteuid() == 0 ? "" : "needs root (sudo) to change uid"; }

std::string WhyNoUserfaultfd(uint64_t features) {
  const ScopedFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) return Refused("needs /dev/userfaultfd (Linux 6.1, root or its mode bits)");
  const TestUffd uffd = TestUffd::FromDevice(device.get(), features);
  return uffd.valid() ? "" : Refused("the kernel lacks the userfaultfd features of this test");
}

std::string WhyNoHugeTmpfs() {
  if (std::string why = WhyNoShmemThp(); !why.empty()) return why;
  const ScopedFd file = HugeTmpfsFile(kBlock);
  if (!file.valid()) return Refused("needs a huge=within_size tmpfs (root or user namespaces)");
  if (!HasFreeHugeFrame()) return "needs unfragmented memory: no free 2 MiB in /proc/buddyinfo";
  return "";
}

std::string WhyNoCollapse() {
  if (std::string why = WhyNoShmemThp(); !why.empty()) return why;
  return KernelIsAtLeast(6, 1) ? "" : "needs MADV_COLLAPSE (Linux 6.1)";
}

std::string WhyNoMemory(int64_t gib) {
  const int64_t available_kib = MeminfoKib("MemAvailable");
  if (available_kib >= gib << 20) return "";
  return "needs " + std::to_string(gib) + " GiB of available memory, there are " +
         std::to_string(available_kib >> 20);
}

}  // namespace hostmm::test
