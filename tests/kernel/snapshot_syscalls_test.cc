// System calls, and other processes, that reach into a frozen mapping: the kernel's own accesses
// are events like the program's, except through pages that were pinned before the freeze, and a
// debugger's, which are refused.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <tuple>

#include "tests/kernel/freeze_resolver.h"
#include "tests/kernel/frozen_file.h"
#include "tests/testing/child.h"
#include "tests/testing/frame_files.h"
#include "tests/testing/scoped_fd.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/touch.h"

namespace hostmm::test {
namespace {

// What is read from elsewhere: no byte of it is in the file at first.
std::string NewData(size_t bytes) {
  std::string data(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) data[i] = static_cast<char>(0x80 | (i + i / 509));
  return data;
}

class SnapshotSyscallsTest : public FrozenFileTest,
                             public ::testing::WithParamInterface<std::tuple<Store, Road>> {
 protected:
  static constexpr size_t kLength = 2 * kPage;

  void SetUp() override {
    Open(std::get<Store>(GetParam()));
    if (!IsSkipped() && !HasFatalFailure()) Fill();
    live_ = original();
  }

  void FreezeIt() { Freeze(std::get<Road>(GetParam())); }

  // A span over the border of two units at least, that begins and ends inside a page: what is
  // beside it must stay.
  size_t SpanOffset() const { return 3 * unit() - kPage / 2; }
  char* Span() const { return guest_.data() + SpanOffset(); }
  std::string OriginalSpan() const { return original().substr(SpanOffset(), kLength); }

  // Runs `work` while a resolver serves. False if it still waits at the deadline.
  bool Serve(std::function<void()> work) {
    resolver_ = std::make_unique<FreezeResolver>(
        &uffd_, FreezeResolver::Region{guest_.data(), pager_.data(), kBytes, unit()});
    Touch touch(&uffd_, std::move(work));
    const bool finished = touch.Finished(kStepDeadline);
    resolver_->Stop();
    EXPECT_EQ(resolver_->error(), "");
    return finished;
  }

  // `data` is to have arrived at `offset`, and each unit that it touches was saved as it was.
  void ExpectSaved(size_t offset, const std::string& data) {
    live_.replace(offset, data.size(), data);
    for (size_t index = offset / unit(); index <= (offset + data.size() - 1) / unit(); ++index) {
      const auto saved = resolver_->preimages().find(index);
      ASSERT_NE(saved, resolver_->preimages().end()) << "unit " << index << " was written unseen";
      EXPECT_TRUE(saved->second == original().substr(index * unit(), unit())) << "unit " << index;
    }
  }
  // Everything arrived, and nothing else changed.
  void ExpectLive() const {
    EXPECT_TRUE(memcmp(pager_.data(), live_.data(), live_.size()) == 0) << "the live file";
  }
  void ExpectSpanWritten(const std::string& data) {
    ExpectSaved(SpanOffset(), data);
    ExpectLive();
    const size_t last = (SpanOffset() + kLength - 1) / unit();
    EXPECT_EQ(resolver_->preimages().size(), last - SpanOffset() / unit() + 1);
  }

  // On hugetlb, protection leaves the mapping; else only what was continued is mapped.
  bool ReadsNatively() const {
    const Road road = std::get<Road>(GetParam());
    return road == Road::kMapped || (road == Road::kProtect && unit() == kBlock);
  }

  // Reading saves nothing, and is an event only where nothing was mapped.
  void ExpectOnlyRead() {
    EXPECT_EQ(resolver_->write_events(), 0u);
    EXPECT_EQ(resolver_->read_events() == 0, ReadsNatively());
    ExpectLive();
  }

  std::string live_;  // what the live file should hold
  std::unique_ptr<FreezeResolver> resolver_;
};

INSTANTIATE_TEST_SUITE_P(On, SnapshotSyscallsTest,
                         ::testing::Combine(::testing::Values(Store::kHugeTmpfs, Store::kHugetlb),
                                            ::testing::Values(Road::kZap, Road::kMapped,
                                                              Road::kProtect)),
                         [](const auto& info) {
                           return NameOf(std::get<Store>(info.param)) +
                                  NameOf(std::get<Road>(info.param));
                         });

ScopedFd FileWith(const std::string& data) {
  ScopedFd file = MemfdFile(data.size());
  const ssize_t written = pwrite(file.get(), data.data(), data.size(), 0);
  return written == static_cast<ssize_t>(data.size()) ? std::move(file) : ScopedFd();
}

// Into frozen pages ------------------------------------------------------------------------------

TEST_P(SnapshotSyscallsTest, Pread) {
  const std::string data = NewData(kLength);
  const ScopedFd source = FileWith(data);
  FreezeIt();
  ssize_t got = 0;
  ASSERT_TRUE(Serve([&] { got = pread(source.get(), Span(), kLength, 0); }));
  EXPECT_EQ(got, static_cast<ssize_t>(kLength));
  ExpectSpanWritten(data);
}

TEST_P(SnapshotSyscallsTest, Readv) {
  const std::string data = NewData(3 * 100);
  const ScopedFd source = FileWith(data);
  FreezeIt();
  const iovec parts[] = {{guest(1) + 50, 100}, {guest(5) + 50, 100}, {guest(3) + 50, 100}};
  ssize_t got = 0;
  ASSERT_TRUE(Serve([&] { got = readv(source.get(), parts, 3); }));
  EXPECT_EQ(got, 3 * 100);
  ExpectSaved(1 * unit() + 50, data.substr(0, 100));
  ExpectSaved(5 * unit() + 50, data.substr(100, 100));
  ExpectSaved(3 * unit() + 50, data.substr(200, 100));
  ExpectLive();
  EXPECT_EQ(resolver_->preimages().size(), 3u);
}

TEST_P(SnapshotSyscallsTest, Recv) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const ScopedFd sender(ends[0]);
  const ScopedFd receiver(ends[1]);
  const std::string data = NewData(kLength);
  FreezeIt();
  ASSERT_EQ(send(sender.get(), data.data(), kLength, 0), static_cast<ssize_t>(kLength));
  ssize_t got = 0;
  ASSERT_TRUE(Serve([&] { got = recv(receiver.get(), Span(), kLength, MSG_WAITALL); }));
  EXPECT_EQ(got, static_cast<ssize_t>(kLength));
  ExpectSpanWritten(data);
}

// A file on a disk, open past the page cache; with a reason if there is none.
struct DirectFile {
  ScopedFd fd;
  std::string why_not;
};

DirectFile DirectFileWith(const std::string& data) {
  const char* folder = getenv("TEST_TMPDIR");
  std::string path = std::string(folder != nullptr ? folder : "/var/tmp") + "/direct.XXXXXX";
  const ScopedFd plain(mkostemp(path.data(), O_CLOEXEC));
  if (!plain.valid()) return {ScopedFd(), "cannot make " + path};
  DirectFile direct;
  direct.fd = ScopedFd(open(path.c_str(), O_RDWR | O_DIRECT | O_CLOEXEC));
  unlink(path.c_str());
  struct statfs system = {};
  constexpr int64_t kTmpfsMagic = 0x01021994;
  if (!direct.fd.valid()) {
    direct.why_not = "needs a temporary folder (TEST_TMPDIR) on a file system with O_DIRECT";
  } else if (fstatfs(plain.get(), &system) == 0 && system.f_type == kTmpfsMagic) {
    direct.why_not = "needs a temporary folder (TEST_TMPDIR) on a disk: tmpfs copies O_DIRECT";
  } else if (pwrite(plain.get(), data.data(), data.size(), 0) !=
                 static_cast<ssize_t>(data.size()) ||
             fsync(plain.get()) != 0) {
    direct.why_not = "cannot write " + path;
  }
  return direct;
}

// The device writes the frames through pins, taken for writing: those are the events.
TEST_P(SnapshotSyscallsTest, DirectRead) {
  const std::string data = NewData(kLength);
  const DirectFile source = DirectFileWith(data);
  HOSTMM_SKIP_IF(source.why_not);
  FreezeIt();
  ssize_t got = 0;
  ASSERT_TRUE(Serve([&] { got = pread(source.fd.get(), Span(), kLength, 0); }));
  EXPECT_EQ(got, static_cast<ssize_t>(kLength));
  ExpectSpanWritten(data);
}

class Ring {
 public:
  Ring() : ok_(io_uring_queue_init(4, &ring_, 0) == 0) {}
  ~Ring() {
    if (ok_) io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  bool ok() const { return ok_; }
  io_uring* get() { return &ring_; }

  // RETURNS what the one operation, prepared by `prepare`, said.
  int Do(const std::function<void(io_uring_sqe*)>& prepare) {
    prepare(io_uring_get_sqe(&ring_));
    io_uring_cqe* cqe = nullptr;
    int result = io_uring_submit_and_wait(&ring_, 1);
    if (result >= 0) result = io_uring_wait_cqe(&ring_, &cqe);
    if (result < 0) return result;
    result = cqe->res;
    io_uring_cqe_seen(&ring_, cqe);
    return result;
  }

 private:
  io_uring ring_ = {};
  bool ok_;
};

constexpr char kNoRing[] = "needs io_uring (kernel.io_uring_disabled = 0)";

TEST_P(SnapshotSyscallsTest, RingRead) {
  Ring ring;
  if (!ring.ok()) GTEST_SKIP() << kNoRing;
  const std::string data = NewData(kLength);
  const ScopedFd source = FileWith(data);
  FreezeIt();
  int got = 0;
  ASSERT_TRUE(Serve([&] {
    got = ring.Do(
        [&](io_uring_sqe* sqe) { io_uring_prep_read(sqe, source.get(), Span(), kLength, 0); });
  }));
  EXPECT_EQ(got, static_cast<int>(kLength));
  ExpectSpanWritten(data);
}

// By a worker thread of the kernel.
TEST_P(SnapshotSyscallsTest, RingReadByAWorker) {
  Ring ring;
  if (!ring.ok()) GTEST_SKIP() << kNoRing;
  const std::string data = NewData(kLength);
  const ScopedFd source = FileWith(data);
  FreezeIt();
  int got = 0;
  ASSERT_TRUE(Serve([&] {
    got = ring.Do([&](io_uring_sqe* sqe) {
      io_uring_prep_read(sqe, source.get(), Span(), kLength, 0);
      io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
    });
  }));
  EXPECT_EQ(got, static_cast<int>(kLength));
  ExpectSpanWritten(data);
}

// A buffer that is registered while frozen is pinned for writing then: the events come at once, not
// at the read. Whole pages are pinned, so the units are those that the buffer touches.
TEST_P(SnapshotSyscallsTest, RingBufferRegisteredWhileFrozen) {
  Ring ring;
  if (!ring.ok()) GTEST_SKIP() << kNoRing;
  const std::string data = NewData(kLength);
  const ScopedFd source = FileWith(data);
  FreezeIt();
  const iovec buffer = {Span(), kLength};
  int registered = -1;
  ASSERT_TRUE(Serve([&] { registered = io_uring_register_buffers(ring.get(), &buffer, 1); }));
  ASSERT_EQ(registered, 0) << strerror(-registered);
  int got = 0;
  Touch read(&uffd_, [&] {
    got = ring.Do([&](io_uring_sqe* sqe) {
      io_uring_prep_read_fixed(sqe, source.get(), Span(), kLength, 0, 0);
    });
  });
  ASSERT_TRUE(read.Finished());
  EXPECT_TRUE(uffd_.Quiet());
  EXPECT_EQ(got, static_cast<int>(kLength));
  ExpectSpanWritten(data);
}

// The limit: what was pinned before the freeze is written without any event, and the snapshot's
// shared frame changes under it. Zap and protection take entries away, not pins.
TEST_P(SnapshotSyscallsTest, RingBufferRegisteredBeforeIsWrittenUnseen) {
  Ring ring;
  if (!ring.ok()) GTEST_SKIP() << kNoRing;
  const std::string data = NewData(kLength);
  const ScopedFd source = FileWith(data);
  const iovec buffer = {Span(), kLength};
  const int registered = io_uring_register_buffers(ring.get(), &buffer, 1);
  ASSERT_EQ(registered, 0) << strerror(-registered);
  FreezeIt();
  int got = 0;
  Touch read(&uffd_, [&] {
    got = ring.Do([&](io_uring_sqe* sqe) {
      io_uring_prep_read_fixed(sqe, source.get(), Span(), kLength, 0, 0);
    });
  });
  ASSERT_TRUE(read.Finished());
  EXPECT_TRUE(uffd_.Quiet());
  EXPECT_EQ(got, static_cast<int>(kLength));
  EXPECT_TRUE(memcmp(pager_.data() + SpanOffset(), data.data(), kLength) == 0);
}

TEST_P(SnapshotSyscallsTest, PopulateWrite) {
  FreezeIt();
  int result = -1;
  ASSERT_TRUE(Serve([&] { result = madvise(guest(2), 2 * unit(), MADV_POPULATE_WRITE); }));
  EXPECT_EQ(result, 0);
  ExpectSaved(2 * unit(), original().substr(2 * unit(), 2 * unit()));
  EXPECT_EQ(resolver_->preimages().size(), 2u);
  ExpectLive();
}

// From frozen pages ------------------------------------------------------------------------------

TEST_P(SnapshotSyscallsTest, Write) {
  const ScopedFd target = MemfdFile(kLength);
  FreezeIt();
  ssize_t put = 0;
  ASSERT_TRUE(Serve([&] { put = pwrite(target.get(), Span(), kLength, 0); }));
  EXPECT_EQ(put, static_cast<ssize_t>(kLength));
  std::string written(kLength, '\0');
  ASSERT_EQ(pread(target.get(), written.data(), kLength, 0), static_cast<ssize_t>(kLength));
  EXPECT_TRUE(written == OriginalSpan());
  ExpectOnlyRead();
}

TEST_P(SnapshotSyscallsTest, Send) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const ScopedFd sender(ends[0]);
  const ScopedFd receiver(ends[1]);
  FreezeIt();
  ssize_t put = 0;
  ASSERT_TRUE(Serve([&] { put = send(sender.get(), Span(), kLength, 0); }));
  EXPECT_EQ(put, static_cast<ssize_t>(kLength));
  std::string arrived(kLength, '\0');
  ASSERT_EQ(recv(receiver.get(), arrived.data(), kLength, MSG_WAITALL | MSG_DONTWAIT),
            static_cast<ssize_t>(kLength));
  EXPECT_TRUE(arrived == OriginalSpan());
  ExpectOnlyRead();
}

TEST_P(SnapshotSyscallsTest, DirectWrite) {
  const DirectFile target = DirectFileWith(NewData(kLength));
  HOSTMM_SKIP_IF(target.why_not);
  FreezeIt();
  ssize_t put = 0;
  ASSERT_TRUE(Serve([&] { put = pwrite(target.fd.get(), Span(), kLength, 0); }));
  EXPECT_EQ(put, static_cast<ssize_t>(kLength));
  const ScopedMapping back = ScopedMapping::SharedFile(target.fd.get(), kLength);
  ASSERT_TRUE(back.ok());
  EXPECT_TRUE(memcmp(back.data(), OriginalSpan().data(), kLength) == 0);
  ExpectOnlyRead();
}

// By other processes -----------------------------------------------------------------------------

TEST_P(SnapshotSyscallsTest, ProcessVmWritev) {
  HOSTMM_SKIP_IF(WhyNoRoot());  // ptrace_scope
  const std::string data = NewData(kLength);
  Child other(Identity::kSame, [&](Channel& channel) {
    CHILD_CHECK(channel.Await());
    const iovec from = {const_cast<char*>(data.data()), kLength};
    const iovec to = {Span(), kLength};
    CHILD_CHECK(process_vm_writev(getppid(), &from, 1, &to, 1, 0) == static_cast<ssize_t>(kLength));
    return 0;
  });
  FreezeIt();
  int code = -1;
  ASSERT_TRUE(Serve([&] {
    other.channel().Signal();
    code = other.Wait();
  }));
  EXPECT_EQ(code, 0);
  ExpectSpanWritten(data);
}

// A thread that only waits to be stopped.
class Tracee {
 public:
  Tracee() {
    thread_ = std::thread([this] {
      tid_.set_value(static_cast<pid_t>(syscall(SYS_gettid)));
      end_.get_future().wait();
    });
    id_ = tid_.get_future().get();
  }
  ~Tracee() {
    end_.set_value();
    thread_.join();
  }
  pid_t id() const { return id_; }

 private:
  pid_t id_ = 0;
  std::promise<pid_t> tid_;
  std::promise<void> end_;
  std::thread thread_;
};

enum class Access { kPeek, kPoke };
constexpr int64_t kPoked = 0x0102030405060708;

// A debugger, in a process of its own. RETURNS 0 or errno of the access.
int AccessStopped(pid_t tid, Access access, char* at) {
  CHILD_CHECK(ptrace(PTRACE_SEIZE, tid, nullptr, nullptr) == 0);
  CHILD_CHECK(ptrace(PTRACE_INTERRUPT, tid, nullptr, nullptr) == 0);
  int status = 0;
  CHILD_CHECK(waitpid(tid, &status, __WALL) == tid);
  errno = 0;  // PEEKDATA returns the data
  ptrace(access == Access::kPeek ? PTRACE_PEEKDATA : PTRACE_POKEDATA, tid, at, kPoked);
  const int result = errno;
  CHILD_CHECK(ptrace(PTRACE_DETACH, tid, nullptr, nullptr) == 0);
  return result;
}

// Not an event: a debugger's access cannot wait in the middle, so the kernel refuses it (EIO).
// Nothing is written unseen; but a debugger does not see what a zap took away, either.
TEST_P(SnapshotSyscallsTest, PtraceIsRefused) {
  HOSTMM_SKIP_IF(WhyNoRoot());  // ptrace_scope
  const Tracee tracee;
  const auto debug = [&](Access access, size_t index) {
    Child debugger(Identity::kSame,
                   [&](Channel&) { return AccessStopped(tracee.id(), access, guest(index)); });
    return debugger.Wait();
  };
  ASSERT_EQ(debug(Access::kPoke, 6), 0) << "not frozen";
  live_.replace(6 * unit(), sizeof(kPoked), reinterpret_cast<const char*>(&kPoked), sizeof(kPoked));
  FreezeIt();
  int poked = -1;
  int peeked = -1;
  ASSERT_TRUE(Serve([&] {
    poked = debug(Access::kPoke, 3);
    peeked = debug(Access::kPeek, 3);
  }));
  EXPECT_EQ(poked, EIO);
  EXPECT_EQ(peeked, ReadsNatively() ? 0 : EIO);
  EXPECT_EQ(resolver_->read_events() + resolver_->write_events(), 0u);
  ExpectLive();
}

// The same road of the kernel.
TEST_P(SnapshotSyscallsTest, ProcMemIsRefused) {
  const ScopedFd memory(open("/proc/self/mem", O_RDWR | O_CLOEXEC));
  const std::string data = NewData(8);
  const auto store = [&](size_t index) {
    const off_t at = static_cast<off_t>(reinterpret_cast<uintptr_t>(guest(index)));
    return pwrite(memory.get(), data.data(), data.size(), at) == 8 ? 0 : errno;
  };
  ASSERT_EQ(store(6), 0) << "not frozen";
  live_.replace(6 * unit(), data.size(), data);
  FreezeIt();
  int result = 0;
  ASSERT_TRUE(Serve([&] { result = store(3); }));
  EXPECT_EQ(result, EIO);
  EXPECT_EQ(resolver_->write_events(), 0u);
  ExpectLive();
}

}  // namespace
}  // namespace hostmm::test
