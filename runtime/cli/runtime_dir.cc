#include "runtime/cli/runtime_dir.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <utility>

#include "runtime/cli/options.h"
#include "runtime/cli/preload_library.h"
#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

constexpr char kSocketName[] = "pager";

// Two equal names are as good as impossible; the second try is for a kernel without entropy yet.
constexpr int kNameTries = 3;

std::string RandomName() {
  uint64_t bits = 0;
  if (getrandom(&bits, sizeof(bits), 0) != sizeof(bits)) bits = static_cast<uint64_t>(getpid());
  char name[32];
  std::snprintf(name, sizeof(name), "hostmm-%016llx", static_cast<unsigned long long>(bits));
  return name;
}

// RETURNS why `base` cannot be used, "" if it can.
std::string WhyUnusable(const std::string& base, Holds holds) {
  struct statvfs mount = {};
  if (statvfs(base.c_str(), &mount) != 0) return ErrnoText(errno);
  if (holds == Holds::kSocketAndLibrary && (mount.f_flag & ST_NOEXEC) != 0) {
    return "mounted noexec";
  }
  if (CheckSocketPathLength(base + "/" + RandomName() + "/" + kSocketName).has_value()) {
    return "its path is too long for a socket";
  }
  return "";
}

// RETURNS the path of a new directory under `base`, "" with errno.
std::string MakeUnder(const std::string& base) {
  for (int i = 0; i < kNameTries; ++i) {
    const std::string path = base + "/" + RandomName();
    if (mkdir(path.c_str(), 0700) == 0) {
      if (chmod(path.c_str(), 0711) == 0) return path;  // mkdir's mode is cut by the umask
      rmdir(path.c_str());
      return "";
    }
    if (errno != EEXIST) return "";
  }
  return "";
}

}  // namespace

OrFailure<RuntimeDir> RuntimeDir::Create(std::span<const std::string> bases, Holds holds) {
  std::string what = "private directory";
  std::string why = "no place to make one";
  for (const std::string& base : bases) {
    what = base;
    why = WhyUnusable(base, holds);
    if (!why.empty()) continue;
    std::string path = MakeUnder(base);
    if (!path.empty()) return RuntimeDir(std::move(path));
    why = ErrnoText(errno);
  }
  return MakeFailure(ExitStatus::kNoSuchDirectory, what,
                     "cannot make a private directory for the pager: " + why,
                     "make /tmp writable, or start 'hostmm pager' elsewhere and use --pager");
}

std::string RuntimeDir::SocketPath() const { return path_ + "/" + kSocketName; }

std::string RuntimeDir::LibraryPath() const { return path_ + "/" + kPreloadFileName; }

std::optional<Failure> RuntimeDir::CopyLibrary(const std::string& source) const {
  const auto failed = [&](std::string_view call) {
    return MakeFailure(ExitStatus::kNoPreload, source,
                       "cannot be copied to " + path_ + " for other users: " + std::string(call) +
                           ": " + ErrnoText(errno),
                       "install hostmm in a folder that everybody can read");
  };
  const UniqueFd in(open(source.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info = {};
  if (!in.ok() || fstat(in.get(), &info) != 0) return failed("open");
  const UniqueFd out(
      open(LibraryPath().c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0755));
  if (!out.ok()) return failed("create");
  for (off_t left = info.st_size; left > 0;) {
    const ssize_t sent = sendfile(out.get(), in.get(), nullptr, static_cast<size_t>(left));
    if (sent < 0) return failed("write");
    if (sent == 0) break;  // it shrank meanwhile; the loader will say so
    left -= sent;
  }
  if (fchmod(out.get(), 0755) != 0) return failed("chmod");  // open's mode is cut by the umask
  return std::nullopt;
}

void RuntimeDir::Remove() const {
  unlink(SocketPath().c_str());
  unlink(LibraryPath().c_str());
  rmdir(path_.c_str());
}

std::vector<std::string> RuntimeDirBases(uid_t user, const RuntimeDirPlaces& places) {
  std::vector<std::string> bases;
  if (places.chosen.starts_with("/")) bases.push_back(places.chosen);
  if (user == 0) {
    bases.push_back("/run");
  } else if (places.xdg_runtime_dir.starts_with("/")) {
    bases.push_back(places.xdg_runtime_dir);
  }
  bases.push_back("/tmp");
  bases.push_back("/var/tmp");
  return bases;
}

}  // namespace hostmm
