#include "runtime/image/image_load.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>

#include "runtime/image/image_read.h"

namespace hostmm {
namespace {

struct Target {
  std::byte* base;
  uint64_t length;  // of the image
  RemoveMemory remove;
};

bool IsZeroPage(const std::byte* page, size_t bytes) {
  return bytes == 0 || (page[0] == std::byte{0} && memcmp(page, page + 1, bytes - 1) == 0);
}

// Writes only where it must: a read of a hole costs no memory where the kernel has a page of zeros
// for it.
void ClearByHand(std::byte* at, uint64_t bytes) {
  while (bytes != 0) {
    const size_t step = bytes < kImagePage ? bytes : kImagePage;
    if (!IsZeroPage(at, step)) memset(at, 0, step);
    at += step;
    bytes -= step;
  }
}

void ClearMemory(const Target& target, uint64_t from, uint64_t to) {
  // In one call what is whole blocks by address.
  const auto begin = reinterpret_cast<uintptr_t>(target.base + from);
  const auto end = reinterpret_cast<uintptr_t>(target.base + to);
  const uintptr_t first = (begin + kImageBlock - 1) & ~(kImageBlock - 1);
  const uintptr_t last = end & ~(kImageBlock - 1);
  if (first < last && target.remove(reinterpret_cast<void*>(first), last - first) == 0) {
    ClearByHand(target.base + from, first - begin);
    ClearByHand(target.base + from + (last - begin), end - last);
  } else {
    ClearByHand(target.base + from, to - from);
  }
}

void PlaceRecord(const Target& target, const ImageHeader& header, const ImageRecord& record,
                 const std::byte* pages) {
  const uint64_t start = record.block * kImageBlock;
  for (uint32_t page = 0; page < kPagesOfBlock; ++page) {
    const uint64_t at = start + page * kImagePage;
    if (at >= target.length) return;
    if (record.data.Test(page)) {
      memcpy(target.base + at, pages, kImagePage);
      pages += kImagePage;
    } else if (!header.incremental() || record.zero.Test(page)) {
      ClearByHand(target.base + at, kImagePage);
    }
  }
}

int PlaceAll(ImageReader* reader, const Target& target, std::byte* pages) {
  const bool clears = !reader->header().incremental();
  uint64_t done = 0;  // all before it is as it is to be
  for (;;) {
    const ImageReader::Step step = reader->Next(pages);
    if (step == ImageReader::Step::kFailed) return reader->error();
    const bool is_end = step == ImageReader::Step::kEnd;
    const uint64_t start = is_end ? target.length : reader->record().block * kImageBlock;
    if (clears && done < start) ClearMemory(target, done, start);
    if (is_end) return 0;
    PlaceRecord(target, reader->header(), reader->record(), pages);
    done = start + kImageBlock;
  }
}

}  // namespace

int RemoveBySystemCall(void* addr, size_t length) { return madvise(addr, length, MADV_REMOVE); }

int LoadImage(int fd, void* addr, size_t length, char* why, size_t why_bytes, RemoveMemory remove) {
  ImageReader reader(fd);
  if (reader.Open() != 0) {
    snprintf(why, why_bytes, "%s", reader.why());
    return reader.error();
  }
  const Target target = {static_cast<std::byte*>(addr), reader.header().length, remove};
  if (target.length > length) {
    snprintf(why, why_bytes, "the image is of %llu bytes, there is room for %llu",
             static_cast<unsigned long long>(target.length),
             static_cast<unsigned long long>(length));
    return EFBIG;
  }
  void* pages =
      mmap(nullptr, kImageBlock, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) {
    snprintf(why, why_bytes, "there is no memory to check its records in");
    return ENOMEM;
  }
  const int error = PlaceAll(&reader, target, static_cast<std::byte*>(pages));
  munmap(pages, kImageBlock);
  if (error != 0) snprintf(why, why_bytes, "%s", reader.why());
  return error;
}

}  // namespace hostmm
