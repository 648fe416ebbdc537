// A copy of `hostmm` and its preload library in a directory of their own, as after an installation,
// with a place for the sockets beside them; all removed at the end.
#ifndef HOSTMM_TESTS_CLI_INSTALLED_HOSTMM_H_
#define HOSTMM_TESTS_CLI_INSTALLED_HOSTMM_H_

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cli/testing_dir.h"
#include "tests/cli/process.h"

namespace hostmm::test {

// Paths of what is copied, from the command line of the test.
struct Sources {
  static inline std::string binary;
  static inline std::string library;
};

class InstalledHostmm {
 public:
  InstalledHostmm() {
    namespace fs = std::filesystem;
    fs::create_directory(dir_.Under("sockets"));
    fs::copy_file(Sources::binary, binary());
    fs::copy_file(Sources::library, library());
    fs::permissions(library(), fs::perms::owner_all);
  }

  const TestingDir& dir() const { return dir_; }
  std::string binary() const { return dir_.Under("hostmm"); }
  std::string library() const { return dir_.Under("libhostmm_preload.so"); }
  // Where `run` makes its private directories.
  std::string sockets() const { return dir_.Under("sockets"); }
  bool NothingLeft() const { return std::filesystem::is_empty(sockets()); }

  Launch Command(std::vector<std::string> words) const {
    Launch launch;
    launch.command = std::move(words);
    launch.command.insert(launch.command.begin(), binary());
    launch.environment = {{"HOSTMM_RUNTIME_DIR", sockets()}, {"HOSTMM_SOCKET", ""}};
    return launch;
  }
  Outcome Run(std::vector<std::string> words) const { return RunToEnd(Command(std::move(words))); }

 private:
  TestingDir dir_;
};

}  // namespace hostmm::test

#endif  // HOSTMM_TESTS_CLI_INSTALLED_HOSTMM_H_
