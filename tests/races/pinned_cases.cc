// Race 7: pages that the kernel holds for I/O while their range is protected, zapped and voted away
// by another process. As in plain Linux, what I/O has begun ends in the page that it began with;
// and that page stays the one that everybody has mapped.
#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tests/process/guest_program.h"
#include "tests/races/race_time.h"
#include "tests/races/storm.h"

namespace hostmm::test {
namespace {

constexpr size_t kIoBytes = 64 * kKib;
constexpr size_t kAt = kBlockBytes + 40 * kPageBytes;  // inside a block

// What the other process sees, and where it says so.
struct Shared {
  std::atomic<uint32_t> stop;
  std::atomic<uint64_t> rounds;
};

// Somebody else who maps the file and gives its pages no peace. Readable they stay.
class Tormentor {
 public:
  enum class Does { kProtects, kDrops };
  Tormentor(const SharedFile& file, Does what) {
    void* at = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(at != MAP_FAILED);
    shared_ = static_cast<Shared*>(at);
    pid_ = StartChild([&, what] { Torment(file.Map(0, kFileBytes), what); });
  }
  ~Tormentor() {
    shared_->stop = 1;
    const int status = WaitFor(pid_);
    Say("#%s the other one ends with %d after %llu rounds",
        status == 0 && shared_->rounds != 0 ? "ok" : "BAD", status,
        static_cast<unsigned long long>(shared_->rounds));
  }

 private:
  void Torment(char* base, Does what) {
    for (; shared_->stop == 0; ++shared_->rounds) {
      if (what == Does::kProtects) {
        MUST(mprotect(base + kBlockBytes, kBlockBytes, PROT_READ) == 0);
        MUST(mprotect(base + kBlockBytes, kBlockBytes, PROT_READ | PROT_WRITE) == 0);
      } else {
        // Both are zaps for all: the second needs nobody's vote.
        MUST(madvise(base + kBlockBytes, kBlockBytes, MADV_DONTNEED) == 0);
        MUST(madvise(base + kBlockBytes, kBlockBytes, MADV_COLD) == 0);
      }
    }
  }

  Shared* shared_;
  pid_t pid_;
};

// A file with eight patterns, open past the page cache; -1 if the file system cannot.
int MakeDirectFile() {
  const char* folder = getenv("TEST_TMPDIR");
  const std::string path =
      std::string(folder != nullptr ? folder : "/var/tmp") + "/pinned." + std::to_string(getpid());
  const int plain = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  MUST(plain >= 0);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    std::string bytes(kIoBytes, '\0');
    Fill(bytes.data(), kIoBytes, seed);
    MUST(write(plain, bytes.data(), kIoBytes) == static_cast<ssize_t>(kIoBytes));
  }
  MUST(fsync(plain) == 0);
  close(plain);
  const int direct = open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC);
  unlink(path.c_str());
  return direct;
}

struct Seen {
  uint64_t good = 0;
  uint64_t refused = 0;
  uint64_t bad = 0;
};

void Conclude(const char* what, const Seen& seen) {
  Say("#%s %s: %llu good, %llu refused, %llu bad", seen.good != 0 && seen.bad == 0 ? "ok" : "BAD",
      what, static_cast<unsigned long long>(seen.good),
      static_cast<unsigned long long>(seen.refused), static_cast<unsigned long long>(seen.bad));
}

// `mirror`: another mapping of the same pages.
void ReadDirectly(int direct, char* at, const char* mirror, Seen* seen, Tormentor::Does what) {
  uint64_t seed = 0;
  for (const RaceTime time; !time.over(); seed = (seed + 1) % 8) {
    const ssize_t got = pread(direct, at, kIoBytes, static_cast<off_t>(seed * kIoBytes));
    if (got == static_cast<ssize_t>(kIoBytes)) {
      const bool holds = Holds(at, kIoBytes, seed) && Holds(mirror, kIoBytes, seed);
      ++(holds ? seen->good : seen->bad);
    } else if (what == Tormentor::Does::kProtects && (got >= 0 || errno == EFAULT)) {
      ++seen->refused;
    } else {
      Say("pread: %zd %s", got, ErrnoName(errno));
      ++seen->bad;
    }
  }
}

void DirectReads(Tormentor::Does what) {
  const int direct = MakeDirectFile();
  if (direct < 0) {
    Say("#skip the temporary folder's file system has no O_DIRECT");
    return;
  }
  const SharedFile file(Source::kNamed);
  char* base = file.Map(0, kFileBytes);
  const char* mirror = file.Map(0, kFileBytes);
  Seen seen;
  {
    const Tormentor tormentor(file, what);
    ReadDirectly(direct, base + kAt, mirror + kAt, &seen, what);
  }
  Conclude("direct reads", seen);
}

HOSTMM_CASE(DirectReadsWhileProtected) { DirectReads(Tormentor::Does::kProtects); }
HOSTMM_CASE(DirectReadsWhileDropped) { DirectReads(Tormentor::Does::kDrops); }

// RETURNS what the one operation said.
enum class Way { kIntoMemory, kIntoFile };
int Submit(io_uring* ring, int direct, Way way, char* at, uint64_t offset) {
  io_uring_sqe* sqe = io_uring_get_sqe(ring);
  if (way == Way::kIntoMemory) {
    io_uring_prep_read_fixed(sqe, direct, at, kIoBytes, offset, 0);
  } else {
    io_uring_prep_write_fixed(sqe, direct, at, kIoBytes, offset, 0);
  }
  io_uring_cqe* cqe = nullptr;
  MUST(io_uring_submit_and_wait(ring, 1) >= 0 && io_uring_wait_cqe(ring, &cqe) == 0);
  const int result = cqe->res;
  io_uring_cqe_seen(ring, cqe);
  return result;
}

void FixedBuffers(Tormentor::Does what) {
  const int direct = MakeDirectFile();
  io_uring ring;
  if (direct < 0 || io_uring_queue_init(4, &ring, 0) != 0) {
    Say("#skip no O_DIRECT in the temporary folder, or no io_uring");
    return;
  }
  const SharedFile file(Source::kNamed);
  char* base = file.Map(0, kFileBytes);
  const char* mirror = file.Map(0, kFileBytes);
  const iovec buffer = {base + kAt, kIoBytes};
  memset(base + kAt, 1, kIoBytes);
  if (const int error = io_uring_register_buffers(&ring, &buffer, 1); error != 0) {
    Say("#skip io_uring does not take the buffer: %s", ErrnoName(-error));
    return;
  }
  Seen seen;
  {
    const Tormentor tormentor(file, what);
    uint64_t seed = 0;
    for (const RaceTime time; !time.over(); seed = (seed + 1) % 8) {
      const int got = Submit(&ring, direct, Way::kIntoMemory, base + kAt, seed * kIoBytes);
      const bool holds = got == static_cast<int>(kIoBytes) && Holds(base + kAt, kIoBytes, seed) &&
                         Holds(mirror + kAt, kIoBytes, seed);
      ++(holds ? seen.good : seen.bad);
    }
  }
  Conclude("reads into a fixed buffer", seen);
  // And the other way: what is stored through the mapping is what I/O takes from the buffer.
  Fill(base + kAt, kIoBytes, 99);
  MUST(Submit(&ring, direct, Way::kIntoFile, base + kAt, 0) == static_cast<int>(kIoBytes));
  void* back = nullptr;
  MUST(posix_memalign(&back, kPageBytes, kIoBytes) == 0);
  MUST(pread(direct, back, kIoBytes, 0) == static_cast<ssize_t>(kIoBytes));
  const bool same = Holds(static_cast<char*>(back), kIoBytes, 99);
  Say("#%s the buffer is the memory that is mapped", same ? "ok" : "BAD");
  free(back);
  io_uring_queue_exit(&ring);
}

HOSTMM_CASE(FixedBuffersWhileProtected) { FixedBuffers(Tormentor::Does::kProtects); }
HOSTMM_CASE(FixedBuffersWhileDropped) { FixedBuffers(Tormentor::Does::kDrops); }

// Pages in a pipe by vmsplice are the mapped ones: what is stored later is what the pipe gives out.
HOSTMM_CASE(SplicedPagesWhileDropped) {
  const SharedFile file(Source::kNamed);
  char* base = file.Map(0, kFileBytes);
  int pipes[2];
  MUST(pipe2(pipes, O_CLOEXEC) == 0);
  Seen seen;
  {
    const Tormentor tormentor(file, Tormentor::Does::kDrops);
    std::string taken(kPageBytes, '\0');
    uint64_t seed = 0;
    for (const RaceTime time; !time.over(); ++seed) {
      const iovec page = {base + kAt, kPageBytes};
      MUST(vmsplice(pipes[1], &page, 1, 0) == static_cast<ssize_t>(kPageBytes));
      Fill(base + kAt, kPageBytes, seed);
      MUST(read(pipes[0], taken.data(), kPageBytes) == static_cast<ssize_t>(kPageBytes));
      ++(Holds(taken.data(), kPageBytes, seed) ? seen.good : seen.bad);
    }
  }
  Conclude("spliced pages", seen);
}

}  // namespace
}  // namespace hostmm::test
