// Finds how much of an image a file has already, so that a writer can go on behind it.
//
// Flow:     the loop reads header, record, pages, record, ...; a worker hashes the pages. It stops
//           before the first part that is not whole and right: a torn end, damage, the limit.
// Threads:  the loop thread. Nothing blocks it: the file is a guest's, and may be on a slow disk.
// Owner:    keeps itself alive until `done` was called; descriptor and loop outlive it.
#ifndef HOSTMM_RUNTIME_IMAGE_RESUME_SCAN_H_
#define HOSTMM_RUNTIME_IMAGE_RESUME_SCAN_H_

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "runtime/event_loop.h"
#include "runtime/image/image_format.h"
#include "runtime/mapping.h"
#include "runtime/worker_pool.h"

namespace hostmm {

class ResumeScan : public std::enable_shared_from_this<ResumeScan> {
 public:
  struct Found {
    // EINVAL: the file has something, and that is no image of this snapshot, or it cannot be read
    // at an offset. Else of read.
    int error = 0;
    std::string why;
    ImagePosition position;  // bytes 0: nothing
    enum class End { kMissing, kThere } end = End::kMissing;
  };
  using Done = std::function<void(const Found&)>;

  struct Place {
    int fd;
    uint64_t start;  // of the image in the file
    uint64_t bytes;  // at most so many of it are looked at
  };
  // `done` is called later, from the loop, once.
  static std::shared_ptr<ResumeScan> Start(EventLoop* loop, WorkerPool* workers, const Place& place,
                                           const ImageHeader& expected, Done done);
  // `done` is called soon, with an error.
  void Cancel();

 private:
  ResumeScan(EventLoop* loop, WorkerPool* workers, const Place& place, const ImageHeader& expected,
             Done done);
  void Begin();
  // Reads as many bytes as are there, at the position and `skip` bytes on.
  void Read(std::span<std::byte> to, uint64_t skip, std::function<void(size_t got)> then);
  void ReadMore(std::span<std::byte> to, uint64_t offset, size_t got,
                const std::function<void(size_t got)>& then);
  void OnHeader(size_t got);
  void ReadRecord();
  void OnRecord(size_t got);
  void OnPages(size_t got);
  void Fail(int error, std::string why);
  void Finish();

  EventLoop* const loop_;
  WorkerPool* const workers_;
  const Place place_;
  const ImageHeader expected_;
  const Done done_;
  bool cancelled_ = false;
  EventLoop::TransferId read_;
  Found found_;
  Mapping memory_;  // a header or record, then pages
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_RESUME_SCAN_H_
