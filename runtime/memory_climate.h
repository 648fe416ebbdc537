// Whether memory is short: for the whole machine, or in the pager's own memory cgroup, where its
// guests' frames are charged.
//
// Tight is less than a sixteenth left (of all memory, or of the group's limit), not counting what
// the kernel can drop: MemAvailable, and the group's usage without its inactive file cache. Then no
// frame is made larger than it must be.
//
// Cost:     a few pread of /proc and the cgroup file systems.
// Threads:  the loop thread.
// Errors:   what cannot be read limits nothing.
#ifndef HOSTMM_RUNTIME_MEMORY_CLIMATE_H_
#define HOSTMM_RUNTIME_MEMORY_CLIMATE_H_

#include <string>
#include <string_view>

#include "runtime/unique_fd.h"
#include "vmm/density_policy.h"

namespace hostmm {

class ClimateWatch {
 public:
  // Where the files are. The default is the running system; tests bring their own.
  struct Files {
    std::string meminfo = "/proc/meminfo";
    std::string self_cgroup = "/proc/self/cgroup";
    std::string cgroup_root = "/sys/fs/cgroup";
  };

  ClimateWatch() : ClimateWatch(Files()) {}
  explicit ClimateWatch(const Files& files);

  MemoryClimate Now() const;

 private:
  void OpenGroup(std::string_view directory, const char* limit, const char* usage);
  bool MachineIsTight() const;
  bool GroupIsTight() const;

  UniqueFd meminfo_;
  UniqueFd limit_;
  UniqueFd usage_;
  UniqueFd stat_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_MEMORY_CLIMATE_H_
