#include "runtime/image/image_read.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace hostmm {

long ImageReader::Read(void* to, size_t bytes) {
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got = read(fd_, static_cast<std::byte*>(to) + done, bytes - done);
    if (got == 0) break;
    if (got > 0) {
      done += static_cast<size_t>(got);
    } else if (errno == EAGAIN) {
      pollfd wait = {fd_, POLLIN, 0};
      (void)poll(&wait, 1, -1);
    } else if (errno != EINTR) {
      const int error = errno;
      snprintf(why_, sizeof(why_), "it cannot be read at byte %llu",
               static_cast<unsigned long long>(position_.bytes + done));
      error_ = error;
      return -1;
    }
  }
  return static_cast<long>(done);
}

ImageReader::Step ImageReader::Fail(int error, const char* what) {
  error_ = error;
  snprintf(why_, sizeof(why_), "%s", what);
  return Step::kFailed;
}

ImageReader::Step ImageReader::FailAt(const char* what) {
  error_ = EILSEQ;
  snprintf(why_, sizeof(why_), "%s at byte %llu", what,
           static_cast<unsigned long long>(position_.bytes));
  return Step::kFailed;
}

int ImageReader::Open() {
  const long got = Read(&header_, sizeof(header_));
  if (got < 0) return error_;
  if (got < static_cast<long>(sizeof(header_.magic)) || header_.magic != kImageMagic) {
    Fail(EINVAL, got == 0 ? "it is empty" : "it is no image of hostmm");
    return error_;
  }
  if (got < static_cast<long>(sizeof(header_))) {
    Fail(EILSEQ, "it ends within its header");
    return error_;
  }
  if (header_.version != kImageVersion) {
    // Which part is damaged cannot be told here: another version's header may have another form.
    Fail(EINVAL, "it is of another version of hostmm, or its header is damaged");
    return error_;
  }
  const PartIs part = CheckHeader(header_);
  if (part == PartIs::kGood) {
    position_ = Behind(header_);
  } else {
    Fail(EILSEQ, part == PartIs::kDamaged ? "its header is damaged" : "its header makes no sense");
  }
  return error_;
}

ImageReader::Step ImageReader::Next(std::byte* pages) {
  if (error_ != 0) return Step::kFailed;
  static_assert(sizeof(ImageEnd) == sizeof(ImageRecord));
  const long got = Read(&record_, sizeof(record_));
  if (got < 0) return Step::kFailed;
  if (got < static_cast<long>(sizeof(record_))) return FailAt("it is not whole: it ends");
  ImageEnd end;
  memcpy(&end, &record_, sizeof(end));
  PartIs part = CheckEnd(position_, end);
  if (part == PartIs::kGood) {
    position_.bytes += sizeof(end);
    return Step::kEnd;
  }
  if (part == PartIs::kOther) part = CheckRecord(header_, position_, record_);
  if (part == PartIs::kImpossible) return FailAt("a record makes no sense");
  if (part != PartIs::kGood) return FailAt("it is damaged");
  return ReadPages(pages);
}

ImageReader::Step ImageReader::ReadPages(std::byte* pages) {
  const size_t bytes = record_.data_pages * kImagePage;
  const long got = Read(pages, bytes);
  if (got < 0) return Step::kFailed;
  if (got < static_cast<long>(bytes)) return FailAt("it is not whole: it ends in the record");
  if (ImageHash(pages, bytes, 0) != record_.data_hash) {
    return FailAt("pages are damaged in the record");
  }
  position_ = Behind(position_, record_);
  return Step::kRecord;
}

uint32_t RankOf(const PageBitmap& data, uint32_t page) {
  uint32_t rank = 0;
  for (uint32_t word = 0; word < page / 64; ++word) {
    rank += static_cast<uint32_t>(__builtin_popcountll(data.words[word]));
  }
  const uint64_t below = (uint64_t{1} << (page % 64)) - 1;
  return rank + static_cast<uint32_t>(__builtin_popcountll(data.words[page / 64] & below));
}

}  // namespace hostmm
