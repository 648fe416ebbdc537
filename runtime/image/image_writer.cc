#include "runtime/image/image_writer.h"

#include <fcntl.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/image/block_digest.h"
#include "runtime/packet.h"

namespace hostmm {
namespace {

// One is written, one hashed, one read, and one waits for whichever is late.
constexpr size_t kBuffers = 4;

// About ten times a second, for a person who watches.
constexpr absl::Duration kProgressPeriod = absl::Milliseconds(100);

constexpr size_t kBufferBytes = kImagePage + kImageBlock;

ImageHeader HeaderOf(const ImageSpec& spec, uint64_t length) {
  ImageHeader header = {};
  header.magic = kImageMagic;
  header.version = kImageVersion;
  header.unit = spec.unit;
  header.length = length;
  header.id = spec.id;
  header.base = spec.base;
  header.taken_ns = spec.taken_ns;
  spec.name.copy(header.name, sizeof(header.name) - 1);
  SealHeader(&header);
  return header;
}

template <class Part>
std::span<const std::byte> BytesOf(const Part& part) {
  return std::as_bytes(std::span(&part, 1));
}

bool HungUp(int fd) {
  pollfd ask = {fd, 0, 0};
  return poll(&ask, 1, 0) == 1;
}

}  // namespace

std::shared_ptr<ImageWriter> ImageWriter::Start(EventLoop* loop, WorkerPool* workers, Job job) {
  std::shared_ptr<ImageWriter> writer(new ImageWriter(loop, workers, std::move(job)));
  writer->Begin();
  return writer;
}

ImageWriter::ImageWriter(EventLoop* loop, WorkerPool* workers, Job job)
    : loop_(loop),
      workers_(workers),
      job_(std::move(job)),
      length_(job_.source->length()),
      header_(HeaderOf(job_.spec, length_)) {}

void ImageWriter::Begin() {
  // Held until the loop has its next turn, so that `done` is not called from here.
  ++under_way_;
  loop_->Soon([self = shared_from_this()] { self->Settle(); });
  if (job_.client >= 0 && !IsChannel(job_.client)) {
    return Fail(EINVAL, "whoever wanted the image cannot be told that it is written");
  }
  WatchClient();
  if (job_.resume_bytes == 0) {
    WriteAll(BytesOf(header_), [this] {
      position_ = Behind(header_);
      Pump();
    });
    return;
  }
  if (job_.start == kStream) {
    return Fail(EINVAL, "to go on with an image takes a file, not a pipe");
  }
  const int flags = fcntl(job_.image.get(), F_GETFL);
  if (flags >= 0 && (flags & O_APPEND) != 0) {
    return Fail(EINVAL, "to go on with an image takes a file that is not opened with O_APPEND");
  }
  ++under_way_;
  scan_ = ResumeScan::Start(
      loop_, workers_, {job_.image.get(), job_.start, job_.resume_bytes}, header_,
      [self = shared_from_this()](const ResumeScan::Found& found) { self->OnScanned(found); });
}

void ImageWriter::OnScanned(const ResumeScan::Found& found) {
  scan_.reset();
  if (found.error != 0) {
    Fail(found.error, found.why);
  } else if (outcome_ == Outcome::kNone) {
    position_ = found.position;
    next_block_ = position_.next_block;
    if (found.end == ResumeScan::Found::End::kThere) {
      outcome_ = Outcome::kKnown;
    } else if (position_.bytes == 0) {
      WriteAll(BytesOf(header_), [this] {
        position_ = Behind(header_);
        Pump();
      });
    } else {
      Pump();
    }
  }
  Settle();
}

void ImageWriter::WatchClient() {
  if (job_.client < 0) return;
  client_watch_ = loop_->Watch(job_.client, [weak = weak_from_this()] {
    const std::shared_ptr<ImageWriter> self = weak.lock();
    if (self != nullptr && HungUp(self->job_.client)) {
      self->Fail(ECANCELED, "whoever wanted the image has gone");
    }
    return EventLoop::Progress::kDrained;
  });
}

void ImageWriter::Pump() {
  ReadAhead();
  WriteNext();
}

void ImageWriter::ReadAhead() {
  while (outcome_ == Outcome::kNone && !all_asked_ && blocks_.size() < kBuffers) {
    const std::optional<uint64_t> index = job_.source->NextBlock(next_block_);
    if (!index.has_value() || *index * kImageBlock >= length_) {
      all_asked_ = true;
      return;
    }
    next_block_ = *index + 1;
    auto block = std::make_shared<Block>();
    block->index = *index;
    if (spare_.empty()) {
      block->memory = Mapping(
          mmap(nullptr, kBufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
          kBufferBytes);
      if (!block->memory.ok()) return Fail(ENOMEM, "the pager has no memory for the image");
    } else {
      block->memory = std::move(spare_.back());
      spare_.pop_back();
    }
    blocks_.push_back(block);
    ++under_way_;
    job_.source->ReadBlock(
        *index, block->content(), &block->pages,
        [self = shared_from_this(), block](int error) { self->OnRead(block, error); });
  }
}

void ImageWriter::OnRead(const BlockPtr& block, int error) {
  if (error != 0) {
    Fail(error, absl::StrCat("the snapshot cannot be read: ", strerror(error)));
  } else if (const std::string lost = job_.source->why_lost(); !lost.empty()) {
    Fail(EIO, lost);
  } else if (outcome_ == Outcome::kNone) {
    Digest(block);
  }
  Settle();
}

void ImageWriter::Digest(const BlockPtr& block) {
  const ImageKind kind = header_.incremental() ? ImageKind::kIncremental : ImageKind::kFull;
  const uint64_t rest = std::min(length_ - block->index * kImageBlock, kImageBlock);
  const PageBitmap within = PageBitmap::FirstOnes(static_cast<uint32_t>(rest / kImagePage));
  if (kind == ImageKind::kFull) block->pages = within;
  block->pages.Intersect(within);
  ++under_way_;
  workers_->Submit(
      [block, kind] {
        DigestBlock(kind, block->index, block->pages, block->content(), block->record());
      },
      [self = shared_from_this(), block] {
        block->state = Block::State::kReady;
        self->Pump();
        self->Settle();
      },
      WorkerPool::Priority::kLater);
}

void ImageWriter::WriteNext() {
  while (outcome_ == Outcome::kNone && !writing_ && position_.bytes != 0) {
    if (blocks_.empty()) {
      if (all_asked_) WriteEnd();
      return;
    }
    const BlockPtr block = blocks_.front();
    if (block->state != Block::State::kReady) return;
    blocks_.pop_front();
    const ImageRecord& record = *block->record();
    if (record.data_pages != 0 || record.zero_pages != 0) {
      WriteRecord(block);
    } else {
      ReportProgress((block->index + 1) * kImageBlock);
      spare_.push_back(std::move(block->memory));
      ReadAhead();
    }
  }
}

void ImageWriter::WriteRecord(const BlockPtr& block) {
  ImageRecord* record = block->record();
  SealRecord(position_.chain, record);
  const size_t bytes = kImagePage + record->data_pages * kImagePage;
  WriteAll(block->memory.bytes().first(bytes), [this, block] {
    position_ = Behind(position_, *block->record());
    ReportProgress((block->index + 1) * kImageBlock);
    spare_.push_back(std::move(block->memory));
    Pump();
  });
}

void ImageWriter::WriteEnd() {
  // The last moment at which a loss could matter: all that was read is right if it is whole now.
  if (const std::string lost = job_.source->why_lost(); !lost.empty()) return Fail(EIO, lost);
  SealEnd(position_, &end_);
  WriteAll(BytesOf(end_), [this] {
    position_.bytes += sizeof(end_);
    if (outcome_ == Outcome::kNone) outcome_ = Outcome::kKnown;
  });
}

void ImageWriter::WriteAll(std::span<const std::byte> data, std::function<void()> then) {
  const bool anew = !writing_;
  writing_ = true;
  if (anew) written_of_part_ = 0;
  const int64_t offset =
      job_.start == kStream ? EventLoop::kOwnPosition
                            : static_cast<int64_t>(job_.start + position_.bytes + written_of_part_);
  ++under_way_;
  write_ = loop_->Write(job_.image.get(), data, offset,
                        [self = shared_from_this(), data, then = std::move(then)](int result) {
                          self->OnWritten(data, result, then);
                          self->Settle();
                        });
}

void ImageWriter::OnWritten(std::span<const std::byte> data, int result,
                            const std::function<void()>& then) {
  write_ = {};
  if (outcome_ != Outcome::kNone) return;
  if (result == 0) return Fail(EIO, "nothing of the image could be written");
  if (result < 0 && result != -EINTR) {
    return Fail(-result, absl::StrCat("the image cannot be written: ", strerror(-result)));
  }
  const size_t bytes = result < 0 ? 0 : static_cast<size_t>(result);
  written_of_part_ += bytes;
  if (bytes < data.size()) return WriteAll(data.subspan(bytes), then);
  writing_ = false;
  then();
}

void ImageWriter::ReportProgress(uint64_t done) {
  if (!job_.progress.ok() || progress_write_.number != 0) return;
  const absl::Time now = absl::Now();
  if (now < next_progress_) return;
  next_progress_ = now + kProgressPeriod;
  progress_ = {std::min(done, length_), length_};
  ++under_way_;
  progress_write_ = loop_->Write(job_.progress.get(), BytesOf(progress_), EventLoop::kOwnPosition,
                                 [self = shared_from_this()](int) {
                                   self->progress_write_ = {};
                                   self->Settle();
                                 });
}

void ImageWriter::Fail(int error, std::string why) {
  if (outcome_ != Outcome::kNone) return;
  outcome_ = Outcome::kKnown;
  result_.error = error;
  result_.why = std::move(why);
  loop_->Cancel(write_);
  if (scan_ != nullptr) scan_->Cancel();
}

void ImageWriter::Abandon() {
  outcome_ = Outcome::kTold;
  loop_->Unwatch(&client_watch_);
  job_.done = nullptr;
  job_.source.reset();
}

void ImageWriter::Settle() {
  --under_way_;
  // A reader that does not read its progress is not waited for.
  if (outcome_ == Outcome::kKnown && under_way_ == 1) loop_->Cancel(progress_write_);
  FinishIfIdle();
}

void ImageWriter::FinishIfIdle() {
  if (outcome_ != Outcome::kKnown || under_way_ != 0) return;
  outcome_ = Outcome::kTold;
  loop_->Unwatch(&client_watch_);
  if (job_.image.ok()) loop_->Close(job_.image.release());
  if (job_.progress.ok()) loop_->Close(job_.progress.release());
  job_.source.reset();
  blocks_.clear();
  spare_.clear();
  result_.bytes = position_.bytes;
  result_.data_pages = position_.data_pages;
  const auto done = std::move(job_.done);
  done(result_);
}

}  // namespace hostmm
