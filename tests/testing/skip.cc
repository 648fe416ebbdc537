#include "tests/testing/skip.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "tests/testing/collapse.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/smaps.h"
#include "tests/testing/test_uffd.h"

namespace hostmm::test {
namespace {

std::string Refused(const std::string& what) { return what + ": " + strerror(errno); }

// What forbids huge pages in shared memory altogether.
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

// Whether the first touch of each block of a tmpfs file gives a huge frame.
bool TmpfsGives(size_t blocks) {
  const ScopedFd file = HugeTmpfsFile(blocks * kBlock);
  const ScopedMapping mapping = ScopedMapping::SharedFile(file.get(), blocks * kBlock);
  if (!mapping.ok()) return false;
  for (size_t i = 0; i < blocks; ++i) WriteByte(mapping.block(i), 1);
  return PmdMappedKib(mapping.data()) == static_cast<int64_t>(blocks * kBlock >> 10);
}

// The same of private memory, for which the kernel makes room by itself, whatever it is set to.
bool MemoryGives(size_t blocks) {
  char* place = ReserveAligned(blocks * kBlock, kBlock);
  if (place == nullptr) return false;
  const ScopedMapping mapping = ScopedMapping::Adopt(place, blocks * kBlock);
  if (mprotect(place, blocks * kBlock, PROT_READ | PROT_WRITE) != 0) return false;
  for (size_t i = 0; i < blocks; ++i) {
    WriteByte(mapping.block(i), 1);
    if (Collapse(mapping.block(i)) != 0) return false;
  }
  return true;
}

// With the usual defrag=madvise nobody does that for a tmpfs. It changes nothing that lasts.
void CompactMemory() {
  const ScopedFd trigger(open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC));
  if (trigger.valid() && write(trigger.get(), "1", 1) != 1) perror("vm.compact_memory");
}

}  // namespace

std::string WhyNoRoot() { return geteuid() == 0 ? "" : "needs root (sudo) to change uid"; }

std::string WhyNoUserfaultfd(uint64_t features) {
  const ScopedFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (!device.valid()) return Refused("needs /dev/userfaultfd (Linux 6.1, root or its mode bits)");
  const TestUffd uffd = TestUffd::FromDevice(device.get(), features);
  return uffd.valid() ? "" : Refused("the kernel lacks the userfaultfd features of this test");
}

std::string WhyNoHugeTmpfs(size_t blocks) {
  if (std::string why = WhyNoShmemThp(); !why.empty()) return why;
  if (!HugeTmpfsFile(kBlock).valid()) {
    return Refused("needs a huge=within_size tmpfs (root or user namespaces)");
  }
  if (TmpfsGives(blocks)) return "";
  CompactMemory();
  // A tmpfs that gives none of what there is: that the tests are to notice, not to skip.
  if (TmpfsGives(blocks) || MemoryGives(blocks)) return "";
  return "needs unfragmented memory: " + std::to_string(blocks) + " blocks of 2 MiB";
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
