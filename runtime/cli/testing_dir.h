// A directory for one test, with a path that is short enough for unix sockets; removed with all
// that is in it.
#ifndef HOSTMM_RUNTIME_CLI_TESTING_DIR_H_
#define HOSTMM_RUNTIME_CLI_TESTING_DIR_H_

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

namespace hostmm {

class TestingDir {
 public:
  TestingDir() {
    char name[] = "/tmp/hostmm-test-XXXXXX";
    if (mkdtemp(name) != nullptr) path_ = name;
  }
  ~TestingDir() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TestingDir(const TestingDir&) = delete;
  TestingDir& operator=(const TestingDir&) = delete;

  const std::string& path() const { return path_; }
  std::string Under(std::string_view name) const { return path_ + "/" + std::string(name); }
  std::string Write(std::string_view name, std::string_view content) const {
    std::ofstream(Under(name), std::ios::binary) << content;
    return Under(name);
  }

 private:
  std::string path_;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_TESTING_DIR_H_
