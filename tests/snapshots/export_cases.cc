// Images of snapshots, written and loaded again while other processes write tickets: an image is
// the snapshot of which it is, and so a state that existed.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <thread>

#include "tests/process/guest_program.h"
#include "tests/snapshots/tickets.h"
#include "tests/snapshots/world.h"

namespace hostmm::test {
namespace {

// Tickets of a chain after which each of its pages has been written anew.
constexpr uint64_t kAllPages = 2 * kPages;

struct Shared {
  Tickets tickets;
  std::atomic<bool> stop = false;
};

// Processes that write tickets as long as the object lives.
class Writers {
 public:
  explicit Writers(const Live& live) : shared_(SharedCounters<Shared>()) {
    // What no ticket touches: an image of blocks full of data, far longer than what the pager and a
    // pipe hold of it.
    for (size_t i = kPage / 2; i < live.bytes(); i += kPage) live.at()[i] = 'b';
    for (size_t i = 0; i < writers_.size(); ++i) {
      writers_[i].Start([shared = shared_, at = live.at(), i] {
        for (size_t chain = i; !shared->stop; chain = (chain + 1) % kChains) {
          shared->tickets.Write(at, chain);
        }
        return 0;
      });
    }
    AwaitAllPagesAnew();
  }
  ~Writers() {
    shared_->stop = true;
    for (const Partner& writer : writers_) writer.Await();
  }
  Writers(const Writers&) = delete;
  Writers& operator=(const Writers&) = delete;

  const Tickets& tickets() const { return shared_->tickets; }
  // Until the writers have written every page of theirs once more.
  void AwaitAllPagesAnew() const {
    const Tickets::Counts from = shared_->tickets.Written();
    MUST(Eventually([&] {
      const Tickets::Counts now = shared_->tickets.Written();
      for (size_t i = 0; i < kChains; ++i) {
        if (now[i] < from[i] + kAllPages) return false;
      }
      return true;
    }));
  }

 private:
  Shared* const shared_;
  std::array<Partner, 2> writers_;
};

// A snapshot, and the tickets between which it was taken.
struct Taken {
  Taken(const Live& live, const Writers& writers)
      : least(writers.tickets().Written()),
        snapshot(live.at()),
        most(writers.tickets().Written()),
        view(snapshot) {}

  const Tickets::Counts least;
  const Snapshot snapshot;
  const Tickets::Counts most;
  const View view;
};

int MakeImageFile() {
  const int file = memfd_create("image", MFD_CLOEXEC);
  MUST(file >= 0);
  return file;
}

size_t SizeOf(int file) {
  struct stat info = {};
  MUST(fstat(file, &info) == 0);
  return static_cast<size_t>(info.st_size);
}

long Export(const Taken& taken, int file, const Taken* earlier = nullptr) {
  hostmm_export options = {};
  options.size = sizeof(options);
  options.earlier = earlier != nullptr ? earlier->snapshot.handle() : -1;
  return hostmm_snapshot_export(taken.snapshot.handle(), file, &options);
}

// Loads the image over what is there, which is to be the snapshot then, and a state that existed.
void WantLoaded(int image, char* at, const Taken& taken, const Writers& writers, const char* what) {
  MUST(lseek(image, 0, SEEK_SET) == 0);
  const int loaded = hostmm_image_load(image, at, kTicketBytes);
  if (!Want(loaded == 0, "%s is loaded: %s", what, loaded == 0 ? "ok" : hostmm_error())) return;
  const char* wrong = writers.tickets().Judge(at, taken.least, taken.most, Tickets::Halves::kMayBe);
  Want(*wrong == 0, "%s is a state that existed %s", what, wrong);
  Want(memcmp(at, taken.view.at(), kTicketBytes) == 0, "%s is the snapshot", what);
  Want(taken.snapshot.Condition() == "ok", "%s: the snapshot is whole", what);
}

// Takes the image out of a pipe whose other end the pager writes. When the image has begun, and the
// most of it has not been read by the pager, it waits until all pages have been written anew.
class HesitantReader {
 public:
  explicit HesitantReader(const Writers& writers) : file_(MakeImageFile()) {
    MUST(pipe2(ends_, O_CLOEXEC) == 0);
    thread_ = std::thread([this, &writers] { Copy(writers); });
  }
  ~HesitantReader() { close(file_); }
  HesitantReader(const HesitantReader&) = delete;
  HesitantReader& operator=(const HesitantReader&) = delete;

  int pipe() const { return ends_[1]; }
  // The whole image, after the export has returned.
  int Finish() {
    close(ends_[1]);
    thread_.join();
    return file_;
  }

 private:
  void Copy(const Writers& writers) {
    std::string bytes(64 * kKib, '\0');
    for (bool first = true;; first = false) {
      const ssize_t got = read(ends_[0], bytes.data(), bytes.size());
      if (got <= 0) break;
      MUST(write(file_, bytes.data(), static_cast<size_t>(got)) == got);
      if (first) writers.AwaitAllPagesAnew();
    }
    close(ends_[0]);
  }

  const int file_;
  int ends_[2];
  std::thread thread_;
};

HOSTMM_CASE(WhileAllPagesAreWritten) {
  Live live(kTicketBytes);
  Live into(kTicketBytes);
  // What the image leaves out becomes zero.
  memset(into.at(), 7, into.bytes());
  const Writers writers(live);
  const Taken taken(live, writers);
  HesitantReader reader(writers);
  const long exported = Export(taken, reader.pipe());
  const int image = reader.Finish();
  Want(exported == 0, "exported: %s", exported == 0 ? "ok" : hostmm_error());
  WantLoaded(image, into.at(), taken, writers, "the image");
}

// Each image holds what has changed since the one before.
HOSTMM_CASE(IncrementalWhileAllPagesAreWritten) {
  Live live(kTicketBytes);
  Live into(kTicketBytes);
  const Writers writers(live);
  std::unique_ptr<Taken> earlier;
  size_t full = 0;
  for (const char* what : {"the base", "the first increment", "the second increment"}) {
    auto taken = std::make_unique<Taken>(live, writers);
    HesitantReader reader(writers);
    const long exported = Export(*taken, reader.pipe(), earlier.get());
    const int image = reader.Finish();
    Want(exported == 0, "%s: %s", what, exported == 0 ? "ok" : hostmm_error());
    full = std::max(full, SizeOf(image));
    // On hugetlb tickets are in each block.
    const size_t most = earlier == nullptr || OnHugetlb() ? full : full / 8;
    Want(SizeOf(image) <= most, "%s: %zu bytes of %zu", what, SizeOf(image), full);
    WantLoaded(image, into.at(), *taken, writers, what);
    earlier = std::move(taken);
  }
}

// Several moments, each to a file, at the same time.
HOSTMM_CASE(SideBySide) {
  constexpr size_t kImages = 3;
  Live live(kTicketBytes);
  Live into(kTicketBytes);
  const Writers writers(live);
  std::array<std::unique_ptr<Taken>, kImages> taken;
  std::array<int, kImages> images;
  std::array<long, kImages> exported;
  std::array<std::thread, kImages> exporters;
  for (size_t i = 0; i < kImages; ++i) {
    taken[i] = std::make_unique<Taken>(live, writers);
    images[i] = MakeImageFile();
    exporters[i] = std::thread([&, i] { exported[i] = Export(*taken[i], images[i]); });
    writers.AwaitAllPagesAnew();
  }
  for (std::thread& exporter : exporters) exporter.join();
  for (size_t i = 0; i < kImages; ++i) {
    Want(exported[i] == 0, "export %zu", i);
    WantLoaded(images[i], into.at(), *taken[i], writers, "one of several");
    close(images[i]);
  }
}

// Loading is a write like others: what the region was before is what its snapshot shows.
HOSTMM_CASE(LoadedOverAFrozenRegion) {
  Live live(kTicketBytes);
  Live into(kTicketBytes);
  const Writers writers(live);
  const Taken taken(live, writers);
  const int image = MakeImageFile();
  Want(Export(taken, image) == 0, "exported");
  Fill(into.at(), into.bytes(), 5);
  const Snapshot before(into.at());
  const View view(before);
  Want(Holds(view.at(), view.bytes() / 2, 5), "a half is mapped in a view");
  WantLoaded(image, into.at(), taken, writers, "the image");
  Want(Holds(view.at(), view.bytes(), 5), "the region as it was is in its snapshot");
  Want(before.Condition() == "ok", "which is whole");
  close(image);
}

}  // namespace
}  // namespace hostmm::test
