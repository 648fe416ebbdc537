// Writes the image of a snapshot to a descriptor while everybody goes on: the pager's exporter.
//
// Flow:     loop     source->ReadBlock(block)            up to kBuffers of them at once
//           worker   DigestBlock: zeros out, hash
//           loop     EventLoop::Write, in block order, one at a time
//           loop     the end, when nothing is left and the snapshot is still whole
// Pressure: a slow reader of the image holds up its own export and nobody else: no buffer is filled
//           again before it was written, and no thread of the pager waits.
// Memory:   kBuffers of 2 MiB for an export, given back at its end.
// Client:   the far end of `client` closes: the export ends. What was written is a prefix that can
//           be gone on with.
// Threads:  the loop thread; workers see one buffer each.
// Owner:    keeps itself alive until `done` was called. Loop and workers outlive it.
#ifndef HOSTMM_RUNTIME_IMAGE_IMAGE_WRITER_H_
#define HOSTMM_RUNTIME_IMAGE_IMAGE_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/event_loop.h"
#include "runtime/image/image_format.h"
#include "runtime/image/resume_scan.h"
#include "runtime/image/snapshot_source.h"
#include "runtime/mapping.h"
#include "runtime/unique_fd.h"
#include "runtime/worker_pool.h"

namespace hostmm {

struct ImageSpec {
  ImageId id = {};
  ImageId base = {};           // none: a full image
  uint32_t unit = kImagePage;  // bytes that are copied at once
  uint64_t taken_ns = 0;       // the same for each image of one snapshot: resuming compares
  std::string name;            // of the region
};

// ECANCELED: Cancel, or the client has gone. EIO: the snapshot is lost, or the write wrote nothing.
// EINVAL: what is to be gone on with is no image of this snapshot, or no file; the client is no
// channel. ENOMEM. Else of the write (ENOSPC, EPIPE, EFBIG, EBADF, ...) or of the source.
struct ImageResult {
  int error = 0;
  std::string why;          // one line, if there is an error
  uint64_t bytes = 0;       // of the image; a file that was gone on with is to be cut there
  uint64_t data_pages = 0;  // that it holds
};

class ImageWriter : public std::enable_shared_from_this<ImageWriter> {
 public:
  static constexpr uint64_t kStream = ~uint64_t{0};
  struct Job {
    ImageSpec spec = {};
    std::unique_ptr<SnapshotSource> source = {};
    UniqueFd image = {};
    // Where in it the image begins; kStream: it has no positions. The client says which: to ask the
    // kernel can take as long as somebody else reads from the file.
    uint64_t start = kStream;
    // A pipe for ImageProgress, or none: some ten a second, none at the end.
    UniqueFd progress = {};
    // The caller's, a channel; or none.
    int client = -1;
    // Of an image there, to be gone on with; 0: from the start.
    uint64_t resume_bytes = 0;
    std::function<void(const ImageResult&)> done = {};
  };

  // `done` is called later, from the loop, once; descriptors and source have gone by then.
  static std::shared_ptr<ImageWriter> Start(EventLoop* loop, WorkerPool* workers, Job job);
  // Ends it. `why`: for the result.
  void Cancel(int error, std::string why) { Fail(error, std::move(why)); }
  // Ends it without a word: `done` is not called any more, and the source goes now. For the end of
  // the pager, when neither loop nor workers call anybody back.
  void Abandon();

 private:
  struct Block {
    uint64_t index;
    PageBitmap pages = {};
    Mapping memory;  // the record, then the block
    enum class State { kReading, kReady } state = State::kReading;

    ImageRecord* record() { return reinterpret_cast<ImageRecord*>(memory.data()); }
    std::byte* content() { return memory.data() + kImagePage; }
  };
  using BlockPtr = std::shared_ptr<Block>;

  ImageWriter(EventLoop* loop, WorkerPool* workers, Job job);
  void Begin();
  void OnScanned(const ResumeScan::Found& found);
  void WatchClient();

  void Pump();
  void ReadAhead();
  void OnRead(const BlockPtr& block, int error);
  void Digest(const BlockPtr& block);
  void WriteNext();
  void WriteRecord(const BlockPtr& block);
  void WriteEnd();
  // Writes all of `data`, then calls `then` if nothing has failed.
  void WriteAll(std::span<const std::byte> data, std::function<void()> then);
  void OnWritten(std::span<const std::byte> data, int result, const std::function<void()>& then);
  void ReportProgress(uint64_t done);

  void Fail(int error, std::string why);
  // One thing that is under way has ended; with nothing left, and an outcome, it is over.
  void Settle();
  void FinishIfIdle();

  EventLoop* const loop_;
  WorkerPool* const workers_;
  Job job_;
  const uint64_t length_;
  ImageHeader header_ = {};
  ImageEnd end_ = {};
  ImagePosition position_;
  ImageResult result_;
  enum class Outcome { kNone, kKnown, kTold } outcome_ = Outcome::kNone;
  int under_way_ = 0;  // reads, digests, writes, the scan

  std::shared_ptr<ResumeScan> scan_;
  EventLoop::WatchId client_watch_;
  bool all_asked_ = false;  // the source has no more blocks
  bool writing_ = false;
  uint64_t next_block_ = 0;       // to ask the source for
  std::deque<BlockPtr> blocks_;   // asked for and not written, in order
  std::vector<Mapping> spare_;    // buffers
  EventLoop::TransferId write_;   // under way, perhaps
  uint64_t written_of_part_ = 0;  // of the part that is being written

  ImageProgress progress_ = {};  // being written
  EventLoop::TransferId progress_write_;
  absl::Time next_progress_ = absl::InfinitePast();
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_IMAGE_IMAGE_WRITER_H_
