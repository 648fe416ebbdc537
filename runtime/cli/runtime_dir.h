// The private directory of one `hostmm run`: the pager's socket, and a copy of the preload library
// where the original cannot be reached by the users that the command may change to.
//
// Name:      BASE/hostmm-<64 random bits in hex>, mode 0711: whoever knows the name (it is in the
//            environment of the command's processes only) can connect; nobody can list it.
// Owner:     the last of `run` and its pager calls Remove(); removing twice is fine.
// Errors:    kNoSuchDirectory when no base can be used, with the reason of the last one tried.
#ifndef HOSTMM_RUNTIME_CLI_RUNTIME_DIR_H_
#define HOSTMM_RUNTIME_CLI_RUNTIME_DIR_H_

#include <sys/types.h>

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "runtime/cli/failure.h"

namespace hostmm {

// What the directory will hold: a library must not lie on a filesystem that is mounted noexec (/run
// often is).
enum class Holds { kSocket, kSocketAndLibrary };

class RuntimeDir {
 public:
  // Tries `bases` in order.
  static OrFailure<RuntimeDir> Create(std::span<const std::string> bases, Holds holds);

  const std::string& path() const { return path_; }
  std::string SocketPath() const;
  std::string LibraryPath() const;

  // Copies the library to LibraryPath(), readable by everybody.
  std::optional<Failure> CopyLibrary(const std::string& source) const;

  // Removes the two files and the directory, whichever exist.
  void Remove() const;

 private:
  explicit RuntimeDir(std::string path) : path_(std::move(path)) {}

  std::string path_;
};

// What the environment says about places; empty where a variable is unset.
struct RuntimeDirPlaces {
  std::string chosen;           // $HOSTMM_RUNTIME_DIR: the user's own choice, before all others
  std::string xdg_runtime_dir;  // $XDG_RUNTIME_DIR
};

// Where to make it. For root first /run: its command may become another user, who cannot enter
// root's own $XDG_RUNTIME_DIR. For others $XDG_RUNTIME_DIR. Then /tmp and /var/tmp.
std::vector<std::string> RuntimeDirBases(uid_t user, const RuntimeDirPlaces& places);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_RUNTIME_DIR_H_
