// The file that an image or a raw copy is written to, as the command line opens it.
//
// Never over something: a file that has content is refused, unless it is to be gone on with.
// Made with mode 0600: it will hold a program's memory.
// Owner:   Abandon removes what Open has made; else it stays.
// Errors:  kImageNotWritten.
#ifndef HOSTMM_RUNTIME_CLI_IMAGE_FILE_H_
#define HOSTMM_RUNTIME_CLI_IMAGE_FILE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/cli/failure.h"
#include "runtime/unique_fd.h"

namespace hostmm {

class ImageFile {
 public:
  enum class Begin { kAnew, kResume };
  // "-": standard output, whatever it is but a terminal.
  static OrFailure<ImageFile> Open(const std::string& path, Begin begin);

  int fd() const { return fd_.get(); }
  // For messages.
  const std::string& path() const { return path_; }
  // Where the image begins in it; UINT64_MAX: it has no positions.
  uint64_t start() const { return start_; }
  // Of a regular file, from there on.
  uint64_t bytes() const;

  // Cuts it behind the image, moves its position there, and waits for the disk.
  std::optional<Failure> Finish(uint64_t bytes) const;
  // Removes it if Open has made it and it has nothing. RETURNS whether something is left.
  bool Abandon() const;
  // Removes it if Open has made it.
  void Remove() const;

 private:
  enum class Made { kNo, kYes };

  UniqueFd fd_;
  std::string path_;
  uint64_t start_ = UINT64_MAX;
  Made made_ = Made::kNo;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_CLI_IMAGE_FILE_H_
