// What a snapshot costs: the pages that were written, once each, and tables. The kernel is asked,
// not only hostmm.
#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "tests/process/guest_program.h"
#include "tests/snapshots/world.h"
#include "tests/testing/smaps.h"

namespace hostmm::test {
namespace {

constexpr size_t kRegionBytes = 64 * kMib;
constexpr size_t kRegionPages = kRegionBytes / kPage;

// What the kernel has for the pager's memory of copies; -1: it has none.
int64_t CopyBytes() {
  const std::string folder = "/proc/" + std::to_string(PagerPid()) + "/fd/";
  DIR* dir = opendir(folder.c_str());
  MUST(dir != nullptr);
  int64_t bytes = -1;
  while (const dirent* entry = readdir(dir)) {
    const std::string path = folder + entry->d_name;
    char target[256];
    const ssize_t length = readlink(path.c_str(), target, sizeof(target));
    if (length <= 0) continue;
    const std::string name(target, static_cast<size_t>(length));
    struct stat info = {};
    if (name.find("hostmm-preimages") == std::string::npos || stat(path.c_str(), &info) != 0) {
      continue;
    }
    bytes = std::max<int64_t>(bytes, 0) + info.st_blocks * 512;
  }
  closedir(dir);
  return bytes;
}

// The first `count` pages of a random order.
std::vector<size_t> SomePages(size_t count, unsigned seed) {
  std::vector<size_t> pages(kRegionPages);
  std::iota(pages.begin(), pages.end(), size_t{0});
  std::shuffle(pages.begin(), pages.end(), std::minstd_rand(seed));
  pages.resize(count);
  return pages;
}

void WritePages(const Live& live, const std::vector<size_t>& pages, uint64_t seed) {
  for (const size_t page : pages) Stamp(live.at() + page * kPage, kPage, seed);
}

void WantCopied(const Snapshot& snapshot, size_t pages, const char* when) {
  const size_t copied = snapshot.Info().copied_bytes;
  Want(copied == pages * kPage, "%s: %zu pages copied of %zu", when, copied / kPage, pages);
  const auto least = static_cast<int64_t>(pages * kPage);
  int64_t kernel = 0;
  // What is needed no more is given back a little later.
  const bool right = Eventually([&] {
    kernel = CopyBytes();
    return kernel <= least + least / 10;
  });
  Want(right && kernel >= least, "%s: the kernel has %lld KiB for %lld", when,
       static_cast<long long>(kernel / 1024), static_cast<long long>(least / 1024));
}

HOSTMM_CASE(AsManyPagesAsAreWritten) {
  for (const size_t pages : {1, 64, 1000, 8000}) {
    Live live(kRegionBytes);
    Stamp(live.at(), live.bytes(), 1);
    const Snapshot snapshot(live.at());
    WantCopied(snapshot, 0, "nothing is written");
    WritePages(live, SomePages(pages, 1), 2);
    WantCopied(snapshot, pages, "written");
    WritePages(live, SomePages(pages, 1), 3);
    WantCopied(snapshot, pages, "written again");
    const View view(snapshot);
    Want(IsStamped(view.at(), view.bytes(), 1), "the snapshot");
    WantCopied(snapshot, pages, "read");
  }
}

// Kernel tables of the writer, and those of hostmm: no more than 4 KiB pages need, and given back.
HOSTMM_CASE(TablesComeAndGo) {
  Live live(kRegionBytes);
  Stamp(live.at(), live.bytes(), 1);
  const int64_t before = StatusKib(0, "VmPTE");
  {
    const Snapshot snapshot(live.at());
    WritePages(live, SomePages(4000, 1), 2);
    const int64_t most = static_cast<int64_t>(live.bytes() / kBlock) * 4 + 8;
    const int64_t grown = StatusKib(0, "VmPTE") - before;
    Want(grown <= most, "%lld KiB of page tables, at most %lld", static_cast<long long>(grown),
         static_cast<long long>(most));
  }
  Want(Eventually([&] { return CopyBytes() == -1; }), "no memory for copies is left");
  if (!OnHuge()) return;
  const bool back = Eventually([&] {
    (void)IsZero(live.at(), kPage);
    Stamp(live.at(), live.bytes(), 3);
    return StatusKib(0, "VmPTE") <= before + 8;
  });
  Want(back, "%lld KiB of page tables, before it were %lld",
       static_cast<long long>(StatusKib(0, "VmPTE")), static_cast<long long>(before));
}

// Two processes write the same pages at the same time.
HOSTMM_CASE(OneCopyForAllWriters) {
  constexpr size_t kCount = 2000;
  Live live(kRegionBytes);
  Stamp(live.at(), live.bytes(), 1);
  Partner writers[3];
  const Snapshot first(live.at());
  const Snapshot second(live.at());
  for (Partner& writer : writers) {
    writer.Start([at = live.at()] {
      for (const size_t page : SomePages(kCount, 5)) Stamp(at + page * kPage, kPage, 2);
      return 0;
    });
  }
  for (Partner& writer : writers) writer.Await();
  WantCopied(first, kCount, "three writers, two snapshots");
  WantCopied(second, kCount, "the other");
}

// What only a dropped snapshot needed is given back at once.
HOSTMM_CASE(DroppedCopiesAreFreed) {
  constexpr size_t kA = 600;
  constexpr size_t kB = 400;
  Live live(kRegionBytes);
  Stamp(live.at(), live.bytes(), 1);
  const std::vector<size_t> all = SomePages(kA + kB, 9);
  const std::vector<size_t> a(all.begin(), all.begin() + kA);
  const std::vector<size_t> b(all.begin() + kA, all.end());
  auto first = std::make_unique<Snapshot>(live.at());
  WritePages(live, a, 2);
  auto second = std::make_unique<Snapshot>(live.at());
  WritePages(live, all, 3);
  // Of the first: a and b as they were. Of the second: a, and b once more for both.
  WantCopied(*second, kA + kA + kB, "two snapshots");
  first.reset();
  const bool freed = Eventually([&] { return second->Info().copied_bytes == (kA + kB) * kPage; });
  Want(freed, "what the first alone needed is gone");
  WantCopied(*second, kA + kB, "the second alone");
  const View view(*second);
  bool right = true;
  for (const size_t page : a) right = right && IsStamped(view.at() + page * kPage, kPage, 2);
  for (const size_t page : b) right = right && IsStamped(view.at() + page * kPage, kPage, 1);
  Want(right, "and it is what it was");
}

}  // namespace
}  // namespace hostmm::test
