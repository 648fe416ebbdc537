#include "runtime/image/resume_scan.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace hostmm {

std::shared_ptr<ResumeScan> ResumeScan::Start(EventLoop* loop, WorkerPool* workers,
                                              const Place& place, const ImageHeader& expected,
                                              Done done) {
  std::shared_ptr<ResumeScan> scan(new ResumeScan(loop, workers, place, expected, std::move(done)));
  // Whoever asked has it before `done` is called.
  loop->Soon([scan] { scan->Begin(); });
  return scan;
}

ResumeScan::ResumeScan(EventLoop* loop, WorkerPool* workers, const Place& place,
                       const ImageHeader& expected, Done done)
    : loop_(loop),
      workers_(workers),
      place_(place),
      expected_(expected),
      done_(std::move(done)),
      memory_(mmap(nullptr, kImagePage + kImageBlock, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
              kImagePage + kImageBlock) {}

void ResumeScan::Begin() {
  if (!memory_.ok()) return Fail(ENOMEM, "no memory to read the image");
  Read(memory_.bytes().first(kImagePage), 0,
       [self = shared_from_this()](size_t got) { self->OnHeader(got); });
}

void ResumeScan::Cancel() {
  cancelled_ = true;
  loop_->Cancel(read_);
}

void ResumeScan::Fail(int error, std::string why) {
  found_ = Found();
  found_.error = error;
  found_.why = std::move(why);
  Finish();
}

void ResumeScan::Finish() {
  memory_ = Mapping();
  done_(found_);
}

void ResumeScan::Read(std::span<std::byte> to, uint64_t skip,
                      std::function<void(size_t got)> then) {
  const uint64_t offset = found_.position.bytes + skip;
  const uint64_t there = place_.bytes > offset ? place_.bytes - offset : 0;
  ReadMore(to.first(std::min<uint64_t>(to.size(), there)), place_.start + offset, 0,
           std::move(then));
}

void ResumeScan::ReadMore(std::span<std::byte> to, uint64_t offset, size_t got,
                          const std::function<void(size_t got)>& then) {
  if (cancelled_) return Fail(ECANCELED, "cancelled");
  if (to.empty()) return then(got);
  read_ = loop_->Read(place_.fd, to, static_cast<int64_t>(offset),
                      [self = shared_from_this(), to, offset, got, then](int result) {
                        self->read_ = {};
                        if (result == -EINTR || self->cancelled_)
                          return self->ReadMore(to, offset, got, then);
                        if (result == 0) return then(got);
                        if (result == -ESPIPE || result == -EBADF || result == -EISDIR) {
                          return self->Fail(EINVAL,
                                            "to go on with an image takes a file that can be read");
                        }
                        if (result < 0) return self->Fail(-result, "the image cannot be read");
                        const auto more = static_cast<size_t>(result);
                        self->ReadMore(to.subspan(more), offset + more, got + more, then);
                      });
}

void ResumeScan::OnHeader(size_t got) {
  if (std::memcmp(memory_.data(), &expected_, got) != 0) {
    return Fail(EINVAL, "the file is no image of this snapshot");
  }
  if (got < kImagePage) return Finish();
  found_.position = Behind(expected_);
  ReadRecord();
}

void ResumeScan::ReadRecord() {
  Read(memory_.bytes().first(kImagePage), 0,
       [self = shared_from_this()](size_t got) { self->OnRecord(got); });
}

void ResumeScan::OnRecord(size_t got) {
  if (got < kImagePage) return Finish();
  ImageEnd end;
  std::memcpy(&end, memory_.data(), sizeof(end));
  if (CheckEnd(found_.position, end) == PartIs::kGood) {
    found_.position.bytes += kImagePage;
    found_.end = Found::End::kThere;
    return Finish();
  }
  ImageRecord record;
  std::memcpy(&record, memory_.data(), sizeof(record));
  if (CheckRecord(expected_, found_.position, record) != PartIs::kGood) return Finish();
  Read(memory_.bytes().subspan(kImagePage, record.data_pages * kImagePage), kImagePage,
       [self = shared_from_this()](size_t pages) { self->OnPages(pages); });
}

void ResumeScan::OnPages(size_t got) {
  ImageRecord record;
  std::memcpy(&record, memory_.data(), sizeof(record));
  if (got < record.data_pages * kImagePage) return Finish();
  auto is_right = std::make_shared<bool>(false);
  workers_->Submit(
      [self = shared_from_this(), is_right, record] {
        const uint64_t hash =
            ImageHash(self->memory_.data() + kImagePage, record.data_pages * kImagePage, 0);
        *is_right = hash == record.data_hash;
      },
      [self = shared_from_this(), is_right, record] {
        if (!*is_right) return self->Finish();
        self->found_.position = Behind(self->found_.position, record);
        self->ReadRecord();
      },
      WorkerPool::Priority::kLater);
}

}  // namespace hostmm
