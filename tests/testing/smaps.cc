#include "tests/testing/smaps.h"

#include <sys/resource.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace hostmm::test {
namespace {

std::string ProcPath(pid_t pid, const char* file) {
  return "/proc/" + (pid == 0 ? std::string("self") : std::to_string(pid)) + "/" + file;
}

bool StartsWithKey(const std::string& line, std::string_view key) {
  return line.size() > key.size() && line.compare(0, key.size(), key) == 0 &&
         line[key.size()] == ':';
}

int64_t ValueAfterKey(const std::string& line, std::string_view key) {
  return strtoll(line.c_str() + key.size() + 1, nullptr, 10);
}

int64_t FindKib(const std::string& path, std::string_view key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (StartsWithKey(line, key)) return ValueAfterKey(line, key);
  }
  return -1;
}

void TakeLine(const std::string& line, VmaStats* vma) {
  const struct {
    std::string_view key;
    int64_t* value;
  } fields[] = {{"Rss", &vma->rss_kib},
                {"ShmemPmdMapped", &vma->shmem_pmd_mapped_kib},
                {"Shared_Hugetlb", &vma->shared_hugetlb_kib},
                {"Private_Hugetlb", &vma->private_hugetlb_kib}};
  for (const auto& field : fields) {
    if (StartsWithKey(line, field.key)) *field.value = ValueAfterKey(line, field.key);
  }
  if (StartsWithKey(line, "VmFlags")) vma->flags = line.substr(sizeof("VmFlags:") - 1) + " ";
}

}  // namespace

bool VmaStats::HasFlag(std::string_view two_letters) const {
  return flags.find(" " + std::string(two_letters) + " ") != std::string::npos;
}

std::optional<VmaStats> ReadVma(pid_t pid, const void* address) {
  const uint64_t wanted = reinterpret_cast<uint64_t>(address);
  std::ifstream file(ProcPath(pid, "smaps"));
  std::optional<VmaStats> found;
  for (std::string line; std::getline(file, line);) {
    uint64_t begin = 0;
    uint64_t end = 0;
    if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " ", &begin, &end) == 2) {
      if (found) return found;
      if (begin <= wanted && wanted < end) found.emplace().begin = begin, found->end = end;
    } else if (found) {
      TakeLine(line, &*found);
    }
  }
  return found;
}

int64_t RssKib(const void* address) {
  const auto vma = ReadVma(0, address);
  return vma ? vma->rss_kib : -1;
}

int64_t PmdMappedKib(const void* address) {
  const auto vma = ReadVma(0, address);
  return vma ? vma->shmem_pmd_mapped_kib : -1;
}

int64_t StatusKib(pid_t pid, std::string_view key) { return FindKib(ProcPath(pid, "status"), key); }

int64_t MeminfoKib(std::string_view key) { return FindKib("/proc/meminfo", key); }

int64_t MinorFaultsOfThisThread() {
  rusage usage = {};
  return getrusage(RUSAGE_THREAD, &usage) == 0 ? usage.ru_minflt : -1;
}

}  // namespace hostmm::test
