#include "runtime/image/image_writer.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/event_loop.h"
#include "runtime/image/fake_source.h"
#include "runtime/image/image_load.h"
#include "runtime/unique_fd.h"
#include "runtime/worker_pool.h"
#include "tests/testing/deadline.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;

ImageSpec SpecOf(const ImageId& base = {}) {
  return {.id = kFakeId, .base = base, .unit = kImagePage, .taken_ns = 0, .name = "fake region"};
}

UniqueFd NewFile(const std::string& bytes = "") {
  UniqueFd file(memfd_create("image", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_EQ(write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  return file;
}

std::string ContentOf(const UniqueFd& file) {
  struct stat info = {};
  EXPECT_EQ(fstat(file.get(), &info), 0);
  std::string bytes(static_cast<size_t>(info.st_size), '\0');
  EXPECT_EQ(pread(file.get(), bytes.data(), bytes.size(), 0), info.st_size);
  return bytes;
}

UniqueFd Duplicate(const UniqueFd& fd) { return UniqueFd(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)); }

struct Ends {
  UniqueFd read;
  UniqueFd write;

  explicit Ends(int flags = 0) {
    int ends[2] = {-1, -1};
    EXPECT_EQ(pipe2(ends, O_CLOEXEC | flags), 0);
    read.reset(ends[0]);
    write.reset(ends[1]);
  }
};

// A loop with its workers, on the thread of the test.
class Host {
 public:
  Host() {
    absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
    absl::StatusOr<UniqueFd> event_fd = WorkerPool::NewEventFd();
    if (!loop.ok() || !event_fd.ok()) return;
    loop_ = *std::move(loop);
    workers_ = std::make_unique<WorkerPool>(*std::move(event_fd), 2);
    loop_->Watch(workers_->event_fd(), [this] {
      workers_->RunDone();
      return EventLoop::Progress::kDrained;
    });
    loop_->SetTick(absl::Seconds(20), [this] {
      ADD_FAILURE() << "the export has not ended";
      loop_->Stop();
    });
  }

  bool ok() const { return loop_ != nullptr; }
  EventLoop* loop() { return loop_.get(); }

  std::shared_ptr<ImageWriter> Start(ImageWriter::Job job) {
    job.done = [this](const ImageResult& result) {
      EXPECT_FALSE(result_.has_value()) << "told twice";
      result_ = result;
      loop_->Stop();
    };
    return ImageWriter::Start(loop_.get(), workers_.get(), std::move(job));
  }
  ImageResult Finish() {
    EXPECT_TRUE(loop_->Run().ok());
    return result_.value_or(ImageResult{.error = -1, .why = "nothing was said"});
  }

 private:
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<WorkerPool> workers_;
  std::optional<ImageResult> result_;
};

ImageResult Export(const FakeMemory& memory, UniqueFd image, uint64_t resume_bytes = 0,
                   const ImageId& base = {}) {
  Host host;
  const off_t at = resume_bytes == 0 ? lseek(image.get(), 0, SEEK_CUR) : 0;
  host.Start({.spec = SpecOf(base),
              .source = std::make_unique<FakeSource>(memory),
              .image = std::move(image),
              .start = at < 0 ? ImageWriter::kStream : static_cast<uint64_t>(at),
              .resume_bytes = resume_bytes});
  return host.Finish();
}

class ImageWriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
    if (!loop.ok()) GTEST_SKIP() << loop.status().message();
  }

  const FakeMemory memory_ = FakeMemory::Sample();
  const std::string image_ = ImageOf(memory_);
};

TEST_F(ImageWriterTest, WritesWhatTheFormatSays) {
  const UniqueFd file = NewFile();
  const ImageResult result = Export(memory_, Duplicate(file));
  EXPECT_EQ(result.error, 0) << result.why;
  EXPECT_EQ(result.bytes, image_.size());
  EXPECT_EQ(result.data_pages, 11u);
  EXPECT_TRUE(ContentOf(file) == image_);
}

TEST_F(ImageWriterTest, AnIncrementalImageHasTheZerosToo) {
  FakeMemory changed(3 * kImageBlock);
  changed.Fill(600, 1);
  changed.Clear(601);
  changed.Clear(1500);
  const UniqueFd file = NewFile();
  EXPECT_EQ(Export(changed, Duplicate(file), 0, kFakeBase).error, 0);
  EXPECT_TRUE(ContentOf(file) == ImageOf(changed, kFakeBase));
}

TEST_F(ImageWriterTest, NothingIsAnImageToo) {
  const FakeMemory nothing(kImageBlock);
  const UniqueFd file = NewFile();
  EXPECT_EQ(Export(nothing, Duplicate(file)).bytes, 2 * kImagePage);
  EXPECT_TRUE(ContentOf(file) == ImageOf(nothing));
}

TEST_F(ImageWriterTest, BeginsWhereItIsTold) {
  const UniqueFd file = NewFile("before");
  EXPECT_EQ(Export(memory_, Duplicate(file)).error, 0);
  EXPECT_TRUE(ContentOf(file) == "before" + image_);
}

TEST_F(ImageWriterTest, ManyMoreBlocksThanBuffers) {
  FakeMemory memory(40 * kImageBlock);
  for (uint64_t block = 0; block < 40; ++block) {
    for (uint64_t page = 0; page < 512; page += 3) memory.Fill(block * 512 + page, block + page);
  }
  const UniqueFd file = NewFile();
  EXPECT_EQ(Export(memory, Duplicate(file)).error, 0);
  EXPECT_TRUE(ContentOf(file) == ImageOf(memory));
}

// The reader takes some bytes now and then: everything comes, and the source is asked no faster.
TEST_F(ImageWriterTest, ASlowPipeHoldsTheSourceUp) {
  FakeMemory memory(20 * kImageBlock);
  for (uint64_t block = 0; block < 20; ++block) memory.Fill(block * 512, block);
  for (const int flags : {0, O_NONBLOCK}) {
    SCOPED_TRACE(flags);
    Ends pipe(flags);
    Host host;
    auto source = std::make_unique<FakeSource>(memory);
    size_t asked = 0;
    source->on_read = [&](uint64_t) {
      ++asked;
      return 0;
    };
    host.Start({.spec = SpecOf(), .source = std::move(source), .image = std::move(pipe.write)});
    std::string got;
    size_t asked_first = 0;
    host.loop()->Watch(pipe.read.get(), [&] {
      if (asked_first == 0) asked_first = asked;
      char some[5000];
      const ssize_t bytes = read(pipe.read.get(), some, sizeof(some));
      if (bytes > 0) got.append(some, static_cast<size_t>(bytes));
      return bytes > 0 ? EventLoop::Progress::kMore : EventLoop::Progress::kDrained;
    });
    // Reading an empty pipe must not hold the loop up.
    ASSERT_EQ(fcntl(pipe.read.get(), F_SETFL, O_NONBLOCK), 0);
    EXPECT_EQ(host.Finish().error, 0);
    for (char rest[65536];;) {
      const ssize_t bytes = read(pipe.read.get(), rest, sizeof(rest));
      if (bytes <= 0) break;
      got.append(rest, static_cast<size_t>(bytes));
    }
    EXPECT_TRUE(got == ImageOf(memory));
    // What the pipe holds and the four buffers.
    EXPECT_LE(asked_first, 16u / 2 + 4);
  }
}

TEST_F(ImageWriterTest, ErrorsOfTheFileAreTold) {
  const UniqueFd full(open("/dev/full", O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(Export(memory_, Duplicate(full)).error, ENOSPC);
  EXPECT_EQ(Export(memory_, UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC))).error, EBADF);
  Ends broken;
  broken.read.reset();
  EXPECT_EQ(Export(memory_, std::move(broken.write)).error, EPIPE);
  const UniqueFd sealed = NewFile();
  ASSERT_EQ(fcntl(sealed.get(), F_ADD_SEALS, F_SEAL_GROW), 0);
  EXPECT_EQ(Export(memory_, Duplicate(sealed)).error, EPERM);
}

class Limit {
 public:
  Limit(__rlimit_resource resource, rlim_t bytes) : resource_(resource) {
    EXPECT_EQ(getrlimit(resource_, &old_), 0);
    const rlimit limit = {bytes, old_.rlim_max};
    EXPECT_EQ(setrlimit(resource_, &limit), 0);
  }
  ~Limit() { EXPECT_EQ(setrlimit(resource_, &old_), 0); }

 private:
  __rlimit_resource resource_;
  rlimit old_;
};

rlim_t AddressSpaceInUse() {
  std::ifstream statm("/proc/self/statm");
  rlim_t pages = 0;
  EXPECT_TRUE(statm >> pages);
  return pages * static_cast<rlim_t>(sysconf(_SC_PAGESIZE));
}

// The pager lives, and what was written can be gone on with.
TEST_F(ImageWriterTest, AFileThatMayNotGrowIsTornAndGoneOnWith) {
  const UniqueFd file = NewFile();
  const size_t torn = PartsOf(image_)[2] + 6000;
  {
    const Limit limit(RLIMIT_FSIZE, torn);
    EXPECT_EQ(Export(memory_, Duplicate(file)).error, EFBIG);
  }
  ASSERT_TRUE(ContentOf(file) == image_.substr(0, torn));
  EXPECT_EQ(Export(memory_, Duplicate(file), torn).error, 0);
  EXPECT_TRUE(ContentOf(file) == image_);
}

TEST_F(ImageWriterTest, GoesOnFromEveryPlace) {
  std::vector<size_t> lengths = {1, 8, 100, kImagePage - 1};
  for (const size_t part : PartsOf(image_)) {
    for (const size_t length : {part, part + 1, part + kImagePage, part + kImagePage + 1}) {
      if (length <= image_.size()) lengths.push_back(length);
    }
  }
  lengths.push_back(image_.size() - 1);
  for (const size_t length : lengths) {
    const UniqueFd file = NewFile(image_.substr(0, length));
    const ImageResult result = Export(memory_, Duplicate(file), length);
    ASSERT_EQ(result.error, 0) << length << ": " << result.why;
    ASSERT_EQ(result.bytes, image_.size()) << length;
    ASSERT_EQ(result.data_pages, 11u) << length;
    ASSERT_TRUE(ContentOf(file) == image_) << length;
  }
}

// It goes when it was told: one that stayed would count against those that may be written at once.
TEST_F(ImageWriterTest, WithoutMemoryToGoOnItEnds) {
  const UniqueFd file = NewFile(image_.substr(0, 5000));
  Host host;
  ImageWriter::Job job = {.spec = SpecOf(), .source = std::make_unique<FakeSource>(memory_)};
  job.image = Duplicate(file);
  job.start = 0;
  job.resume_bytes = 5000;
  std::weak_ptr<ImageWriter> writer;
  {
    const Limit limit(RLIMIT_AS, AddressSpaceInUse() + kImageBlock / 2);
    writer = host.Start(std::move(job));
  }
  EXPECT_EQ(host.Finish().error, ENOMEM);
  EXPECT_TRUE(writer.expired());
  EXPECT_TRUE(ContentOf(file) == image_.substr(0, 5000));
}

TEST_F(ImageWriterTest, AWholeImageIsLeftAsItIs) {
  const UniqueFd file = NewFile(image_ + "garbage");
  Host host;
  auto source = std::make_unique<FakeSource>(memory_);
  source->on_read = [](uint64_t) {
    ADD_FAILURE() << "was read";
    return 0;
  };
  host.Start({.spec = SpecOf(),
              .source = std::move(source),
              .image = Duplicate(file),
              .start = 0,
              .resume_bytes = image_.size() + 7});
  const ImageResult result = host.Finish();
  EXPECT_EQ(result.error, 0);
  EXPECT_EQ(result.bytes, image_.size());  // where the client cuts it
  EXPECT_EQ(result.data_pages, 11u);
}

// From the damage on it is written anew.
TEST_F(ImageWriterTest, DamageIsRepaired) {
  for (const size_t at : {PartsOf(image_)[1] + 30, PartsOf(image_)[1] + kImagePage + 1}) {
    std::string damaged = image_;
    damaged[at] ^= 4;
    const UniqueFd file = NewFile(damaged);
    EXPECT_EQ(Export(memory_, Duplicate(file), damaged.size()).error, 0);
    EXPECT_TRUE(ContentOf(file) == image_);
  }
}

// Never written over: it may be somebody's only copy of something.
TEST_F(ImageWriterTest, WhatIsNoImageOfThisSnapshotIsRefused) {
  FakeMemory longer(8 * kImageBlock);
  for (const std::string& bytes :
       {std::string("precious"), std::string(10000, 'p'), ImageOf(memory_, kFakeBase),
        ImageOf(longer), image_.substr(0, 60) + "x"}) {
    const UniqueFd file = NewFile(bytes);
    const ImageResult result = Export(memory_, Duplicate(file), bytes.size());
    EXPECT_EQ(result.error, EINVAL);
    EXPECT_THAT(result.why, HasSubstr("no image of this snapshot"));
    EXPECT_TRUE(ContentOf(file) == bytes);
  }
  Ends pipe;
  EXPECT_EQ(Export(memory_, std::move(pipe.write), 1).error, EINVAL);
  const UniqueFd appending = NewFile(image_.substr(0, 5000));
  ASSERT_EQ(fcntl(appending.get(), F_SETFL, O_APPEND), 0);
  EXPECT_EQ(Export(memory_, Duplicate(appending), 5000).error, EINVAL);
}

TEST_F(ImageWriterTest, ALostSnapshotHasNoEnd) {
  for (const uint64_t lost_at : {1, 6}) {
    const UniqueFd file = NewFile();
    Host host;
    auto source = std::make_unique<FakeSource>(memory_);
    FakeSource* const fake = source.get();
    source->on_read = [fake, lost_at](uint64_t block) {
      if (block == lost_at) fake->Lose("out of frames");
      return 0;
    };
    host.Start(
        {.spec = SpecOf(), .source = std::move(source), .image = Duplicate(file), .start = 0});
    const ImageResult result = host.Finish();
    EXPECT_EQ(result.error, EIO);
    EXPECT_EQ(result.why, "out of frames");
    EXPECT_LT(ContentOf(file).size(), image_.size());
  }
}

// Lost behind the last read, while it is being written: the last moment that counts.
TEST_F(ImageWriterTest, ASnapshotThatIsLostBeforeTheEndHasNone) {
  Ends pipe(O_NONBLOCK);
  ASSERT_EQ(fcntl(pipe.write.get(), F_SETPIPE_SZ, 4096), 4096);
  FakeMemory memory(kImageBlock);
  memory.Fill(0, 1);
  Host host;
  auto source = std::make_unique<FakeSource>(memory);
  FakeSource* const fake = source.get();
  host.Start({.spec = SpecOf(), .source = std::move(source), .image = std::move(pipe.write)});
  size_t got = 0;
  host.loop()->Watch(pipe.read.get(), [&] {
    char some[4096];
    const ssize_t bytes = read(pipe.read.get(), some, sizeof(some));
    if (bytes <= 0) return EventLoop::Progress::kDrained;
    got += static_cast<size_t>(bytes);
    // The record's page is on its way: header, record and page are three pipes full.
    if (got == 2 * kImagePage) fake->Lose("a guest left");
    return EventLoop::Progress::kMore;
  });
  const ImageResult result = host.Finish();
  EXPECT_EQ(result.error, EIO) << result.bytes;
  EXPECT_EQ(result.why, "a guest left");
}

TEST_F(ImageWriterTest, ErrorsOfTheSourceAreTold) {
  Host host;
  auto source = std::make_unique<FakeSource>(memory_);
  source->on_read = [](uint64_t block) { return block == 3 ? EFAULT : 0; };
  host.Start({.spec = SpecOf(), .source = std::move(source), .image = NewFile(), .start = 0});
  EXPECT_EQ(host.Finish().error, EFAULT);
}

TEST_F(ImageWriterTest, EndsWithItsClient) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const UniqueFd near(ends[0]);
  UniqueFd far(ends[1]);
  Ends pipe;  // that nobody reads
  FakeMemory memory(kImageBlock);
  for (uint64_t page = 0; page < 512; ++page) memory.Fill(page, page);
  Host host;
  auto source = std::make_unique<FakeSource>(memory);
  source->on_read = [&](uint64_t) {
    far.reset();
    return 0;
  };
  host.Start({.spec = SpecOf(),
              .source = std::move(source),
              .image = std::move(pipe.write),
              .client = near.get()});
  EXPECT_EQ(host.Finish().error, ECANCELED);
}

// Watching a file would keep the loop busy: its poll never waits.
TEST_F(ImageWriterTest, AClientThatIsNoChannelIsRefused) {
  const UniqueFd file = NewFile();
  const Ends pipe;
  const UniqueFd datagrams(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  for (const int client : {file.get(), pipe.read.get(), datagrams.get()}) {
    Ends image;  // that nobody reads
    Host host;
    auto source = std::make_unique<FakeSource>(memory_);
    source->on_read = [](uint64_t) {
      ADD_FAILURE() << "was read";
      return 0;
    };
    const std::weak_ptr<ImageWriter> writer = host.Start({.spec = SpecOf(),
                                                          .source = std::move(source),
                                                          .image = std::move(image.write),
                                                          .client = client});
    EXPECT_EQ(host.Finish().error, EINVAL);
    EXPECT_TRUE(writer.expired());
  }
}

// As at the end of a pager: a write is in the kernel, and callbacks hold the writer, when the
// snapshots go.
TEST_F(ImageWriterTest, AbandonedItLetsGoOfItsSourceAndSaysNothing) {
  struct WatchedSource : FakeSource {
    using FakeSource::FakeSource;
    ~WatchedSource() override { *gone = true; }
    bool* gone = nullptr;
  };
  FakeMemory memory(20 * kImageBlock);
  for (uint64_t page = 0; page < memory.bytes.size() / kImagePage; page += 7) {
    memory.Fill(page, page);
  }
  Ends pipe;  // that nobody reads
  bool gone = false;
  Host host;
  auto source = std::make_unique<WatchedSource>(memory);
  source->gone = &gone;
  ImageWriter::Job job = {.spec = SpecOf(), .source = std::move(source)};
  job.image = std::move(pipe.write);
  const std::weak_ptr<ImageWriter> writer = host.Start(std::move(job));
  host.loop()->Watch(pipe.read.get(), [&] {
    host.loop()->Stop();
    return EventLoop::Progress::kDrained;
  });
  ASSERT_TRUE(host.loop()->Run().ok());
  ASSERT_FALSE(writer.expired());
  writer.lock()->Abandon();
  EXPECT_TRUE(gone);
}

TEST_F(ImageWriterTest, ProgressComesAndNobodyNeedsToReadIt) {
  for (const bool read_it : {true, false}) {
    Ends progress;
    ASSERT_EQ(fcntl(progress.write.get(), F_SETPIPE_SZ, 4096), 4096);
    if (!read_it) {
      const std::string full(4096, 'x');
      ASSERT_EQ(write(progress.write.get(), full.data(), full.size()), 4096);
    }
    Host host;
    host.Start({.spec = SpecOf(),
                .source = std::make_unique<FakeSource>(memory_),
                .image = NewFile(),
                .start = 0,
                .progress = std::move(progress.write)});
    EXPECT_EQ(host.Finish().error, 0);
    if (!read_it) continue;
    ImageProgress first = {};
    ASSERT_EQ(read(progress.read.get(), &first, sizeof(first)), sizeof(first));
    EXPECT_EQ(first.done, kImageBlock);
    EXPECT_EQ(first.total, memory_.bytes.size());
  }
}

// The exporter is killed at moments of its own making, again and again; each one goes on, and in
// the end the image is what it should be.
TEST_F(ImageWriterTest, AKilledWriterIsGoneOnWith) {
  FakeMemory memory(30 * kImageBlock);
  for (uint64_t page = 0; page < 30 * 512; page += 5) memory.Fill(page, page);
  const std::string expected = ImageOf(memory);
  const UniqueFd file = NewFile();
  for (uint64_t kill_at = expected.size() / 5; kill_at < expected.size();
       kill_at += expected.size() / 5) {
    const auto size = [&] {
      struct stat info = {};
      return fstat(file.get(), &info) == 0 ? static_cast<uint64_t>(info.st_size) : 0;
    };
    const pid_t child = fork();
    if (child == 0) {
      ASSERT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
      _exit(Export(memory, Duplicate(file), size()).error);
    }
    ASSERT_GT(child, 0);
    const bool came =
        test::PollUntil(test::Deadline(test::kStepDeadline), [&] { return size() >= kill_at; });
    EXPECT_TRUE(came);
    ASSERT_EQ(kill(child, SIGKILL), 0);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
  }
  const uint64_t size = ContentOf(file).size();
  ASSERT_EQ(Export(memory, Duplicate(file), size).error, 0);
  EXPECT_TRUE(ContentOf(file) == expected);
  std::string loaded(memory.bytes.size(), 'x');
  char why[256] = "";
  ASSERT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
  EXPECT_EQ(LoadImage(file.get(), loaded.data(), loaded.size(), why, sizeof(why)), 0) << why;
  EXPECT_TRUE(loaded == memory.bytes);
}

}  // namespace
}  // namespace hostmm
