// Reads an image from a descriptor, part by part, and believes nothing of it before it was checked.
//
// Flow:     ImageReader reader(fd); reader.Open(); while (reader.Next(pages) == kRecord) ...
//           Reads exactly the image: what comes behind its end stays in the pipe or file.
// Hostile:  a forged image has right hashes. So every field is checked too: a record that was read
//           lies inside the region, behind the record before it, and has as many pages as it says.
// Errors:   an errno and one line. EINVAL: no image. EILSEQ: damaged, or it ends too early. Else
//           of read.
// Used by:  the guest library too: system calls and memory, no C++ library, no exceptions, no
//           allocation.
// Threads:  one for an object.
#ifndef HOSTMM_RUNTIME_IMAGE_IMAGE_READ_H_
#define HOSTMM_RUNTIME_IMAGE_IMAGE_READ_H_

#include <cstddef>

#include "runtime/image/image_format.h"

namespace hostmm {

class ImageReader {
 public:
  // The descriptor stays the caller's.
  explicit ImageReader(int fd) : fd_(fd) {}

  // Reads the header. RETURNS 0, or an errno.
  int Open();

  enum class Step : uint8_t { kRecord, kEnd, kFailed };
  // Reads the next record and its pages to `pages`, which has kImageBlock bytes. What is there
  // after kFailed was not checked.
  Step Next(std::byte* pages);

  const ImageHeader& header() const { return header_; }
  // The last record that Next found.
  const ImageRecord& record() const { return record_; }
  // Behind it. Of the end only the bytes count.
  const ImagePosition& position() const { return position_; }

  int error() const { return error_; }
  const char* why() const { return why_; }

 private:
  // Reads `bytes`. RETURNS how many came before the end of the file; -1: error() says why.
  long Read(void* to, size_t bytes);
  Step Fail(int error, const char* what);
  Step FailAt(const char* what);
  Step ReadPages(std::byte* pages);

  const int fd_;
  int error_ = 0;
  char why_[128] = "";
  ImageHeader header_ = {};
  ImageRecord record_ = {};
  ImagePosition position_;
};

// Where page `page` of a record stands among the pages that follow it. REQUIRES: it is in `data`.
uint32_t RankOf(const PageBitmap& data, uint32_t page);

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_IMAGE_READ_H_
