#include "tests/shared_pt/view.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "tests/process/guest_program.h"
#include "tests/shared_pt/calls.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

// `hostmm dump` of this program's pager.
std::vector<std::string> DumpLines() {
  const char* program = getenv("HOSTMM_TEST_PROGRAM");
  const char* socket = PagerSocket();
  MUST(program != nullptr && socket != nullptr);
  const std::string command = std::string("env -u LD_PRELOAD -u HOSTMM_SOCKET '") + program +
                              "' dump --pager '" + socket + "' 2>&1";
  FILE* pipe = popen(command.c_str(), "re");
  MUST(pipe != nullptr);
  std::vector<std::string> lines;
  char line[512];
  while (fgets(line, sizeof(line), pipe) != nullptr) lines.emplace_back(line);
  MUST(pclose(pipe) == 0);
  return lines;
}

}  // namespace

size_t PresentPages(const void* at, size_t bytes) {
  const int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  MUST(fd >= 0);
  std::vector<uint64_t> entries(bytes / kPage);
  const size_t wanted = entries.size() * sizeof(uint64_t);
  const off_t offset =
      static_cast<off_t>(reinterpret_cast<uint64_t>(at) / kPage * sizeof(uint64_t));
  MUST(pread(fd, entries.data(), wanted, offset) == static_cast<ssize_t>(wanted));
  close(fd);
  return static_cast<size_t>(
      std::count_if(entries.begin(), entries.end(), [](uint64_t entry) { return entry >> 63; }));
}

size_t PagesInMemory(void* at, size_t bytes) {
  std::vector<unsigned char> flags(bytes / kPage);
  MUST(mincore(at, bytes, flags.data()) == 0);
  return static_cast<size_t>(
      std::count_if(flags.begin(), flags.end(), [](auto flag) { return flag & 1; }));
}

size_t DirtyKib(const void* at) {
  std::ifstream file("/proc/self/smaps");
  const uint64_t wanted = reinterpret_cast<uint64_t>(at);
  size_t sum = 0;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    uint64_t begin = 0;
    uint64_t end = 0;
    size_t kib = 0;
    if (sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      inside = begin <= wanted && wanted < end;
    } else if (inside && (sscanf(line.c_str(), "Shared_Dirty: %zu", &kib) == 1 ||
                          sscanf(line.c_str(), "Private_Dirty: %zu", &kib) == 1)) {
      sum += kib;
    }
  }
  return sum;
}

std::string Permissions(const void* at) {
  std::ifstream file("/proc/self/maps");
  const uint64_t wanted = reinterpret_cast<uint64_t>(at);
  for (std::string line; std::getline(file, line);) {
    uint64_t begin = 0;
    uint64_t end = 0;
    char mode[5] = {};
    MUST(sscanf(line.c_str(), "%lx-%lx %4s", &begin, &end, mode) == 3);
    if (begin <= wanted && wanted < end) return mode;
  }
  return "none";
}

bool HasVmFlag(const void* at, const char* flag) {
  const auto vma = ReadVma(0, at);
  return vma.has_value() && vma->HasFlag(flag);
}

std::vector<std::string> RegionsOf(pid_t pid) {
  const std::string wanted = " pid " + std::to_string(pid) + " ";
  std::vector<std::string> regions;
  bool inside = false;
  for (const std::string& line : DumpLines()) {
    if (line.rfind("guest ", 0) == 0) {
      inside = line.find(wanted) != std::string::npos;
    } else if (inside) {
      regions.push_back(line);
    }
  }
  return regions;
}

std::string StateOfThisProcess() {
  std::string state;
  std::ifstream file("/proc/self/maps");
  for (std::string line; std::getline(file, line);) {
    // The agent maps the board of a file when it gets to it.
    const size_t mode = line.find(' ') + 1;
    if (line[mode + 3] == 's' && line.find("hostmm-acks") == std::string::npos)
      state += line + "\n";
  }
  for (const std::string& line : RegionsOf(getpid())) state += line;
  return state;
}

}  // namespace hostmm::test
