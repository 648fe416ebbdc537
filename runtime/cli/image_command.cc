#include "runtime/cli/image_command.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <optional>
#include <utility>
#include <vector>

#include "runtime/cli/image_file.h"
#include "runtime/cli/progress_line.h"
#include "runtime/image/image_read.h"
#include "runtime/mapping.h"

namespace hostmm {
namespace {

Failure BadImage(const std::string& path, const std::string& why, const std::string& remedy) {
  return MakeFailure(ExitStatus::kBadImage, path, why, remedy);
}

std::string NameOf(const ImageId& id) {
  char text[64];
  std::snprintf(text, sizeof(text), "%016" PRIx64 "%016" PRIx64 ".%" PRIu64, id.random[0],
                id.random[1], id.sequence);
  return text;
}

std::string TimeText(uint64_t ns) {
  const auto seconds = static_cast<time_t>(ns / 1'000'000'000);
  std::tm parts = {};
  char text[64];
  if (gmtime_r(&seconds, &parts) == nullptr ||
      std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S UTC", &parts) == 0) {
    return "at an unknown time";
  }
  return text;
}

// The memory that images make, in a file with holes for its zeros.
class RawFile {
 public:
  explicit RawFile(const ImageFile& file) : file_(file) {}

  // 0 or an errno.
  int Resize(uint64_t length) const {
    return ftruncate(file_.fd(), static_cast<off_t>(length)) == 0 ? 0 : errno;
  }

  int Put(const ImageHeader& header, const ImageRecord& record, const std::byte* pages) const {
    for (uint32_t page = 0; page < kPagesOfBlock; ++page) {
      const uint64_t at = record.block * kImageBlock + page * kImagePage;
      int error = 0;
      if (record.data.Test(page)) {
        error = Write(at, pages + RankOf(record.data, page) * kImagePage);
      } else if (header.incremental() && record.zero.Test(page)) {
        error = Punch(at);
      }
      if (error != 0) return error;
    }
    return 0;
  }

 private:
  int Write(uint64_t at, const std::byte* page) const {
    size_t done = 0;
    while (done < kImagePage) {
      const ssize_t wrote =
          pwrite(file_.fd(), page + done, kImagePage - done, static_cast<off_t>(at + done));
      if (wrote < 0 && errno != EINTR) return errno;
      if (wrote == 0) return EIO;
      if (wrote > 0) done += static_cast<size_t>(wrote);
    }
    return 0;
  }
  int Punch(uint64_t at) const {
    if (fallocate(file_.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(at),
                  kImagePage) == 0) {
      return 0;
    }
    static constexpr std::byte kZeros[kImagePage] = {};
    return Write(at, kZeros);  // a filesystem without holes
  }

  const ImageFile& file_;
};

// The images of one command, in their order.
class Chain {
 public:
  // `raw` may be null.
  explicit Chain(const RawFile* raw)
      : raw_(raw),
        memory_(
            mmap(nullptr, kImageBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
            kImageBlock) {}

  // Reads one; on success prints its line.
  std::optional<Failure> Add(const std::string& path) {
    if (!memory_.ok()) {
      return MakeFailure(ExitStatus::kLimitTooLow, path, "mmap: " + ErrnoText(errno),
                         "raise 'ulimit -v'");
    }
    UniqueFd file(path == "-" ? fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 3)
                              : open(path.c_str(), O_RDONLY | O_CLOEXEC));
    const std::string name = path == "-" ? "standard input" : path;
    if (!file.ok()) return BadImage(name, "open: " + ErrnoText(errno), "");
    ImageReader reader(file.get());
    if (reader.Open() != 0) return Bad(name, reader);
    if (auto failure = CheckFits(name, reader.header())) return failure;
    if (auto failure = ReadRecords(name, &reader)) return failure;
    if (char more; read(file.get(), &more, 1) > 0) {
      return BadImage(
          name, "something stands behind its end",
          "cut it off: truncate -s " + std::to_string(reader.position().bytes) + " FILE");
    }
    last_ = reader.header();
    std::printf("%s: %s\n", OneLine(name).c_str(),
                DescribeImage(reader.header(), reader.position()).c_str());
    return std::nullopt;
  }

 private:
  static Failure Bad(const std::string& name, const ImageReader& reader) {
    std::string why = reader.why();
    if (reader.error() != EINVAL && reader.error() != EILSEQ)
      why += ": " + ErrnoText(reader.error());
    return BadImage(name, why, "");
  }

  // Whether its records may be put over those of the image before it.
  std::optional<Failure> CheckFits(const std::string& name, const ImageHeader& header) const {
    if (raw_ == nullptr) return std::nullopt;
    if (!last_.has_value()) {
      if (header.incremental()) {
        return BadImage(name, "is incremental, based on " + hostmm::NameOf(header.base),
                        "give the full image first, and what is between them");
      }
      const int error = raw_->Resize(header.length);
      return error == 0 ? std::nullopt : std::optional<Failure>(RawFailure(error));
    }
    if (!header.incremental()) {
      return BadImage(name, "is a full image", "give one full image, then incremental ones");
    }
    if (header.base != last_->id || header.length != last_->length) {
      return BadImage(name,
                      "is based on " + hostmm::NameOf(header.base) +
                          ", not on the one before it, " + hostmm::NameOf(last_->id),
                      "give them in the order in which they were taken");
    }
    return std::nullopt;
  }

  std::optional<Failure> ReadRecords(const std::string& name, ImageReader* reader) const {
    for (;;) {
      switch (reader->Next(memory_.data())) {
        case ImageReader::Step::kEnd:
          return std::nullopt;
        case ImageReader::Step::kFailed:
          return Bad(name, *reader);
        case ImageReader::Step::kRecord:
          if (raw_ == nullptr) break;
          if (const int error = raw_->Put(reader->header(), reader->record(), memory_.data());
              error != 0) {
            return RawFailure(error);
          }
      }
    }
  }

  static Failure RawFailure(int error) {
    return MakeFailure(ExitStatus::kImageNotWritten, "--to", ErrnoText(error), "");
  }

  const RawFile* const raw_;
  const Mapping memory_;
  std::optional<ImageHeader> last_;
};

int Verify(const ImageOptions& options) {
  int status = ToInt(ExitStatus::kOk);
  for (const std::string& path : options.files) {
    if (const auto failure = Chain(nullptr).Add(path)) status = Report(*failure);
  }
  return status;
}

}  // namespace

std::string DescribeImage(const ImageHeader& header, const ImagePosition& position) {
  std::string text = header.incremental() ? "incremental image" : "full image";
  text += " of '" + OneLine(header.name) + "', " + SizeText(header.length) + ", ";
  text += std::to_string(position.data_pages) + " pages in " + std::to_string(position.records) +
          " blocks, " + SizeText(position.bytes) + ", snapshot " + NameOf(header.id);
  if (header.incremental()) text += " since " + NameOf(header.base);
  if (header.taken_ns != 0) text += ", " + TimeText(header.taken_ns);
  return text;
}

int RunImage(const ImageOptions& options) {
  if (options.raw.empty()) return Verify(options);
  const OrFailure<ImageFile> opened = ImageFile::Open(options.raw, ImageFile::Begin::kAnew);
  if (const Failure* failure = FailureOf(opened)) return Report(*failure);
  const ImageFile& file = std::get<ImageFile>(opened);
  if (file.start() == UINT64_MAX) {
    return Report(MakeFailure(ExitStatus::kImageNotWritten, options.raw, "is no file on a disk",
                              "name a file that does not exist"));
  }
  const RawFile raw(file);
  Chain chain(&raw);
  std::optional<Failure> failure;
  for (const std::string& path : options.files) {
    failure = chain.Add(path);
    if (failure.has_value()) break;
  }
  if (!failure.has_value() && fsync(file.fd()) != 0) {
    failure = MakeFailure(ExitStatus::kImageNotWritten, options.raw, "fsync: " + ErrnoText(errno),
                          "look after the disk, and do it again");
  }
  if (!failure.has_value()) return ToInt(ExitStatus::kOk);
  file.Remove();
  return Report(*failure);
}

}  // namespace hostmm
