#include "runtime/cli/preload_library.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <string_view>

#include "runtime/cli/version.h"
#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

Failure NoPreload(std::string_view path, std::string_view why, std::string_view remedy) {
  return MakeFailure(ExitStatus::kNoPreload, path, why, remedy);
}

OrFailure<std::string> ReadWholeFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.ok()) return NoPreload(path, ErrnoText(errno), "build or install it again");
  std::string content;
  std::array<char, 64 << 10> buffer;  // arbitrary
  for (;;) {
    const ssize_t got = read(fd.get(), buffer.data(), buffer.size());
    if (got < 0) return NoPreload(path, ErrnoText(errno), "build or install it again");
    if (got == 0) return content;
    content.append(buffer.data(), static_cast<size_t>(got));
  }
}

// The text between the mark's prefix and its semicolon, "" if there is no mark.
std::string VersionIn(std::string_view content) {
  constexpr std::string_view kPrefix = HOSTMM_PRELOAD_MARK_PREFIX;
  const size_t start = content.find(kPrefix);
  if (start == std::string_view::npos) return "";
  const std::string_view rest = content.substr(start + kPrefix.size());
  constexpr size_t kLongestVersion = 64;  // arbitrary: what is longer is no version
  const size_t end = rest.substr(0, kLongestVersion).find(';');
  return end == std::string_view::npos ? "" : std::string(rest.substr(0, end));
}

// Whether all of the path is open to users who are neither owner nor in the group.
Reach ReachOf(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0 || (info.st_mode & S_IROTH) == 0) return Reach::kOwnerOnly;
  for (size_t slash = path.rfind('/'); slash != std::string::npos && slash != 0;
       slash = path.rfind('/', slash - 1)) {
    const std::string folder = path.substr(0, slash);
    if (stat(folder.c_str(), &info) != 0 || (info.st_mode & S_IXOTH) == 0) {
      return Reach::kOwnerOnly;
    }
  }
  return Reach::kEveryone;
}

std::string RealPath(const std::string& path) {
  char* resolved = realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return "";
  std::string result = resolved;
  std::free(resolved);
  return result;
}

OrFailure<PreloadLibrary> Examine(const std::string& path) {
  if (path.find_first_of(" \t:") != std::string::npos) {
    return NoPreload(path, "LD_PRELOAD cannot carry a path with a blank or a colon",
                     "move hostmm to another folder");
  }
  struct statvfs mount = {};
  if (statvfs(path.c_str(), &mount) == 0 && (mount.f_flag & ST_NOEXEC) != 0) {
    return NoPreload(path, "its filesystem is mounted noexec", "move hostmm to another filesystem");
  }
  OrFailure<std::string> content = ReadWholeFile(path);
  if (const Failure* failure = FailureOf(content)) return *failure;
  return PreloadLibrary{path, VersionIn(std::get<std::string>(content)), ReachOf(path)};
}

}  // namespace

OrFailure<PreloadLibrary> FindPreloadLibraryFrom(const std::string& binary_directory) {
  for (const std::string_view folder : {"", "../lib/", "../lib/hostmm/"}) {
    const std::string path =
        RealPath(binary_directory + "/" + std::string(folder) + kPreloadFileName);
    if (!path.empty()) return Examine(path);
  }
  return NoPreload(kPreloadFileName,
                   "found neither in " + binary_directory + " nor in ../lib of it",
                   "build it with tools/build, or install it beside hostmm");
}

OrFailure<PreloadLibrary> FindPreloadLibrary() {
  std::array<char, PATH_MAX> binary;
  const ssize_t length = readlink("/proc/self/exe", binary.data(), binary.size());
  if (length <= 0) {
    return NoPreload("/proc/self/exe", ErrnoText(errno), "mount /proc");
  }
  const std::string_view path(binary.data(), static_cast<size_t>(length));
  return FindPreloadLibraryFrom(std::string(path.substr(0, path.rfind('/'))));
}

std::optional<Failure> CheckPreloadVersion(const PreloadLibrary& library) {
  if (library.version == HOSTMM_VERSION) return std::nullopt;
  const std::string why = library.version.empty() ? std::string("has no version mark of hostmm")
                                                  : "is of version " + library.version +
                                                        ", hostmm of version " + HOSTMM_VERSION;
  return MakeFailure(ExitStatus::kVersionMismatch, library.path, why,
                     "install both from one build (tools/build)");
}

}  // namespace hostmm
