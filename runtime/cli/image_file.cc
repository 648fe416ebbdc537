#include "runtime/cli/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace hostmm {
namespace {

Failure NotWritten(const std::string& path, const std::string& why, const std::string& remedy) {
  return MakeFailure(ExitStatus::kImageNotWritten, path, why, remedy);
}

bool IsRegular(int fd, struct stat* info) { return fstat(fd, info) == 0 && S_ISREG(info->st_mode); }

// What a pipe takes too; whoever opens a FIFO waits for its reader.
int OpenExisting(const std::string& path, mode_t type) {
  return open(path.c_str(), (S_ISREG(type) ? O_RDWR : O_WRONLY) | O_CLOEXEC);
}

}  // namespace

OrFailure<ImageFile> ImageFile::Open(const std::string& path, Begin begin) {
  ImageFile file;
  file.path_ = path == "-" ? "standard output" : path;
  struct stat info = {};
  if (path == "-") {
    file.fd_.reset(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
    if (isatty(STDOUT_FILENO) != 0) {
      return NotWritten(file.path_, "is a terminal", "redirect it, or name a file");
    }
  } else if (stat(path.c_str(), &info) == 0) {
    if (S_ISDIR(info.st_mode)) return NotWritten(path, "is a directory", "name a file in it");
    if (S_ISREG(info.st_mode) && info.st_size > 0 && begin == Begin::kAnew) {
      return NotWritten(path, "exists already", "choose another name, or remove it");
    }
    file.fd_.reset(OpenExisting(path, info.st_mode));
  } else if (begin == Begin::kResume) {
    return NotWritten(path, "cannot be gone on with: " + ErrnoText(errno), "leave --resume out");
  } else {
    file.fd_.reset(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    file.made_ = file.fd_.ok() ? Made::kYes : Made::kNo;
  }
  if (!file.fd_.ok()) return NotWritten(file.path_, "open: " + ErrnoText(errno), "");
  // What appends has one position, as a pipe has.
  const int flags = fcntl(file.fd(), F_GETFL);
  if (IsRegular(file.fd(), &info) && (flags & O_APPEND) == 0) {
    const off_t at = lseek(file.fd(), 0, SEEK_CUR);
    if (at >= 0) file.start_ = static_cast<uint64_t>(at);
  }
  return file;
}

uint64_t ImageFile::bytes() const {
  struct stat info = {};
  if (start_ == UINT64_MAX || fstat(fd(), &info) != 0) return 0;
  const auto size = static_cast<uint64_t>(info.st_size);
  return size > start_ ? size - start_ : 0;
}

std::optional<Failure> ImageFile::Finish(uint64_t bytes) const {
  struct stat info = {};
  if (!IsRegular(fd(), &info)) return std::nullopt;
  if (start_ != UINT64_MAX) {
    const auto end = static_cast<off_t>(start_ + bytes);
    if (ftruncate(fd(), end) != 0 || lseek(fd(), end, SEEK_SET) != end) {
      return NotWritten(path_, "ftruncate: " + ErrnoText(errno), "");
    }
  }
  if (fsync(fd()) != 0) {
    return NotWritten(path_, "fsync: " + ErrnoText(errno), "look after the disk, and do it again");
  }
  return std::nullopt;
}

bool ImageFile::Abandon() const {
  if (bytes() != 0) return true;
  Remove();
  return false;
}

void ImageFile::Remove() const {
  if (made_ == Made::kYes) unlink(path_.c_str());
}

}  // namespace hostmm
