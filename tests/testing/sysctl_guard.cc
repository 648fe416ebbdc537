#include "tests/testing/sysctl_guard.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <utility>

#include "tests/testing/scoped_fd.h"

namespace hostmm::test {
namespace {

bool WriteSysctl(const std::string& path, int64_t value) {
  const ScopedFd fd(open(path.c_str(), O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(value);
  return fd.valid() &&
         write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

}  // namespace

int64_t ReadSysctl(const std::string& path) {
  std::ifstream file(path);
  int64_t value = -1;
  file >> value;
  return file ? value : -1;
}

SysctlGuard::SysctlGuard(std::string path, int64_t at_least) : path_(std::move(path)) {
  old_value_ = ReadSysctl(path_);
  if (old_value_ < 0) return;
  if (old_value_ < at_least) {
    // The kernel may accept the write and keep less: read it back.
    changed_ = WriteSysctl(path_, at_least);
    ok_ = changed_ && ReadSysctl(path_) >= at_least;
  } else {
    ok_ = true;
  }
}

SysctlGuard::~SysctlGuard() {
  if (changed_ && !WriteSysctl(path_, old_value_)) {
    fprintf(stderr, "could not restore %s to %lld\n", path_.c_str(),
            static_cast<long long>(old_value_));
  }
}

}  // namespace hostmm::test
