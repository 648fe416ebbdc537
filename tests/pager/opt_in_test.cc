// mprotect for all, with a real pager and processes that really write: what holds when the call has
// returned, who is woken, who is waited for. The guests' side is played by OptInGuest.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/pager/opt_in_guest.h"
#include "tests/pager/pager_child.h"
#include "tests/testing/child.h"
#include "tests/testing/deadline.h"
#include "vmm/units.h"

namespace hostmm::test {
namespace {

using Manner = OptInGuest::Manner;
using protocol::Kind;
using protocol::Message;
using protocol::Status;

constexpr size_t kBytes = 8 * kBlock;
constexpr int kReadWrite = PROT_READ | PROT_WRITE;

// What all processes of a test share: plain memory, outside hostmm.
struct Scoreboard {
  std::atomic<uint64_t> writes[64];
  std::atomic<uint32_t> ready;
  std::atomic<uint32_t> stop;
};

class OptInProcessTest : public testing::Test {
 protected:
  OptInProcessTest()
      : pager_({.frames = FramesChoice::kBase}),
        file_(memfd_create("opt-in", MFD_CLOEXEC)),
        shared_(mmap(nullptr, sizeof(Scoreboard), kReadWrite, MAP_SHARED | MAP_ANONYMOUS, -1, 0),
                sizeof(Scoreboard)) {}
  void SetUp() override {
    ASSERT_TRUE(pager_.ok()) << pager_.ready();
    ASSERT_EQ(ftruncate(file_.get(), kBytes), 0);
  }
  Scoreboard& board() { return *reinterpret_cast<Scoreboard*>(shared_.data()); }
  bool AwaitReady(uint32_t count) {
    return PollUntil(Deadline(kStepDeadline), [&] { return board().ready >= count; });
  }

  PagerChild pager_;
  ScopedFd file_;
  Mapping shared_;
};

thread_local sigjmp_buf g_refused;

void OnRefused(int) { siglongjmp(g_refused, 1); }

// Whether a write at `at` is allowed now.
bool Writes(volatile char* at) {
  if (sigsetjmp(g_refused, 1) != 0) return false;
  *at = 1;
  return true;
}

void CatchRefusals() {
  struct sigaction action = {};
  action.sa_handler = OnRefused;
  sigaction(SIGSEGV, &action, nullptr);
}

// Writes all the time, wherever it may, and counts.
int WriterLife(const std::string& socket, int file, Scoreboard* board, size_t number) {
  CatchRefusals();
  OptInGuest guest(socket, Manner::kHonest);
  CHILD_CHECK(guest.ok());
  CHILD_CHECK(guest.Map(file, kBytes, kReadWrite));
  ++board->ready;
  while (board->stop == 0) {
    if (Writes(guest.data() + number * kPage)) ++board->writes[number];
  }
  return 0;
}

// How long all threads of a process have run.
int64_t RunTimeNs(pid_t pid) {
  int64_t sum = 0;
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    int64_t ran = 0;
    std::ifstream(task.path() / "schedstat") >> ran;
    sum += ran;
  }
  return sum;
}

TEST_F(OptInProcessTest, NobodyWritesAfterItHasReturnedAndAllDoAfterItIsAllowed) {
  constexpr size_t kWriters = 4;
  constexpr int kRounds = 50;
  std::vector<std::unique_ptr<Child>> writers;
  for (size_t i = 0; i < kWriters; ++i) {
    writers.push_back(std::make_unique<Child>(Identity::kSame, [&, i](Channel&) {
      return WriterLife(pager_.socket_path(), file_.get(), &board(), i);
    }));
  }
  ASSERT_TRUE(AwaitReady(kWriters));
  OptInGuest guest(pager_.socket_path(), Manner::kHonest);
  ASSERT_TRUE(guest.ok());
  ASSERT_TRUE(guest.Map(file_.get(), kBytes, kReadWrite));
  for (int round = 0; round < kRounds; ++round) {
    ASSERT_EQ(guest.Protect(0, kBytes, PROT_READ), 0);
    // A counter may be behind its last write by one.
    uint64_t before[kWriters];
    for (size_t i = 0; i < kWriters; ++i) before[i] = board().writes[i];
    // Not a wait for something: the time in which a writer that is still allowed to would write.
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    for (size_t i = 0; i < kWriters; ++i) ASSERT_LE(board().writes[i], before[i] + 1) << round;
    ASSERT_EQ(guest.Protect(0, kBytes, kReadWrite), 0);
    for (size_t i = 0; i < kWriters; ++i) {
      const uint64_t now = board().writes[i];
      ASSERT_TRUE(PollUntil(Deadline(kStepDeadline), [&] { return board().writes[i] > now; }));
    }
  }
  board().stop = 1;
  for (const auto& writer : writers) EXPECT_EQ(writer->Wait(), 0);
}

TEST_F(OptInProcessTest, WhoIsKilledDuringItDelaysNobody) {
  OptInGuest guest(pager_.socket_path(), Manner::kHonest);
  ASSERT_TRUE(guest.ok());
  ASSERT_TRUE(guest.Map(file_.get(), kBytes, kReadWrite));
  for (int round = 0; round < 5; ++round) {
    board().ready = 0;
    Child deaf(Identity::kSame, [&](Channel&) {
      OptInGuest self(pager_.socket_path(), Manner::kDeaf);
      CHILD_CHECK(self.Map(file_.get(), kBytes, kReadWrite));
      ++board().ready;
      for (;;) pause();
      return 0;
    });
    ASSERT_TRUE(AwaitReady(1));
    std::thread killer([&, done = guest.carried_out()] {
      // Not before the order is open: then nobody but the deaf one is waited for.
      PollUntil(Deadline(kStepDeadline), [&] { return guest.carried_out() > done; });
      kill(deaf.pid(), SIGKILL);
    });
    const auto start = std::chrono::steady_clock::now();
    EXPECT_EQ(guest.Protect(0, kBytes, round % 2 == 0 ? PROT_READ : kReadWrite), 0);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(4));
    killer.join();
    EXPECT_EQ(deaf.Wait(), 128 + SIGKILL);
  }
}

TEST_F(OptInProcessTest, WhoNeverDoesItFailsItAfterEightSeconds) {
  OptInGuest guest(pager_.socket_path(), Manner::kHonest);
  OptInGuest deaf(pager_.socket_path(), Manner::kDeaf);
  ASSERT_TRUE(guest.Map(file_.get(), kBytes, kReadWrite));
  ASSERT_TRUE(deaf.Map(file_.get(), kBytes, kReadWrite));
  Message ask = NewPacket(Kind::kForAll);
  ask.va = reinterpret_cast<uintptr_t>(guest.data());
  ask.length = kBytes;
  ask.prot = PROT_READ;
  ask.value[1] = static_cast<uint64_t>(protocol::BoardOp::kProtect);
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
  const ScopedFd near(ends[0]);
  const auto start = std::chrono::steady_clock::now();
  {
    const ScopedFd far(ends[1]);
    ASSERT_TRUE(guest.raw().Send(ask, {far.get()}));
  }
  Packet answer;
  ASSERT_TRUE(PollUntil(Deadline(std::chrono::seconds(15)), [&] {
    return ReceivePacket(near.get(), &answer) == ReceiveResult::kPacket;
  }));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::seconds(7));
  EXPECT_EQ(answer.message.status, Status::kFailed);
  EXPECT_EQ(answer.message.value[1], static_cast<uint64_t>(ETIMEDOUT));
}

// 210 guests are attached, 10 of them map the file.
TEST_F(OptInProcessTest, GuestsThatDoNotMapItAreNotWoken) {
  std::vector<std::unique_ptr<OptInGuest>> mappers;
  for (int i = 0; i < 10; ++i) {
    mappers.push_back(std::make_unique<OptInGuest>(pager_.socket_path(), Manner::kHonest));
    ASSERT_TRUE(mappers.back()->Map(file_.get(), kBytes, kReadWrite));
  }
  const auto pager_time = [&] {
    const int64_t start = RunTimeNs(pager_.pid());
    for (int i = 0; i < 100; ++i) {
      EXPECT_EQ(mappers[0]->Protect(0, kBytes, i % 2 == 0 ? PROT_READ : kReadWrite), 0);
    }
    return RunTimeNs(pager_.pid()) - start;
  };
  const int64_t alone = pager_time();
  std::vector<std::unique_ptr<OptInGuest>> others;
  const ScopedFd another(memfd_create("another", MFD_CLOEXEC));
  ASSERT_EQ(ftruncate(another.get(), kBytes), 0);
  for (int i = 0; i < 200; ++i) {
    others.push_back(std::make_unique<OptInGuest>(pager_.socket_path(), Manner::kHonest));
    ASSERT_TRUE(others.back()->ok());
    if (i % 2 == 0) {
      ASSERT_TRUE(others.back()->Map(another.get(), kBytes, kReadWrite));
    }
  }
  // The least of some: a stall of the machine may count as time that the pager ran.
  const int64_t crowded = std::min({pager_time(), pager_time(), pager_time()});
  uint64_t woken = 0;
  for (const auto& other : others) {
    EXPECT_EQ(other->carried_out(), 0u);
    woken += other->woken();
  }
  // Those that map a file, once, by the packet with its board, and now and then one that is late
  // with that. Each of 300 calls would wake all.
  EXPECT_LT(woken, others.size());
  // A generous bound: the benchmark measures, this only finds a walk over all of them.
  constexpr int64_t kSlackNs = 20'000'000;
  EXPECT_LT(crowded, 3 * alone + kSlackNs);
}

// The pager's own named file, by two users.
TEST_F(OptInProcessTest, ANamedRegionIsSharedByName) {
  OptInGuest owner(pager_.socket_path(), Manner::kHonest);
  ASSERT_TRUE(owner.ok());
  Message open = NewPacket(Kind::kOpenName);
  strcpy(open.text, "pool");
  open.length = kBytes;
  open.value[0] = O_RDWR | O_CREAT;
  open.value[1] = 0600;
  ScopedFd file;
  const auto made = owner.Ask(open, {}, &file);
  ASSERT_TRUE(made.has_value());
  ASSERT_EQ(made->status, Status::kOk);
  ASSERT_TRUE(owner.Map(file.get(), kBytes, kReadWrite));
  owner.data()[5] = 'x';
  ASSERT_EQ(owner.Protect(0, kBytes, PROT_READ), 0);
  Child other(Identity::kSame, [&](Channel&) {
    OptInGuest self(pager_.socket_path(), Manner::kHonest);
    Message find = NewPacket(Kind::kOpenName);
    strcpy(find.text, "pool");
    find.value[0] = O_RDWR;
    ScopedFd found;
    const auto answer = self.Ask(find, {}, &found);
    CHILD_CHECK(answer.has_value() && answer->status == Status::kOk);
    CHILD_CHECK(self.Map(found.get(), kBytes, kReadWrite));
    CHILD_CHECK(self.data()[5] == 'x');
    CatchRefusals();
    CHILD_CHECK(!Writes(self.data() + 5));
    CHILD_CHECK(self.Protect(0, kBytes, kReadWrite) == 0);
    CHILD_CHECK(Writes(self.data() + 6));
    return 0;
  });
  EXPECT_EQ(other.Wait(), 0);
  EXPECT_EQ(owner.data()[6], 1);
  owner.data()[7] = 1;
  Child stranger(Identity::kNobody, [&](Channel&) {
    RawGuest self(pager_.socket_path());
    CHILD_CHECK(self.Hello());
    Message find = NewPacket(Kind::kOpenName);
    strcpy(find.text, "pool");
    const auto answer = self.Ask(find);
    CHILD_CHECK(answer.has_value() && answer->status == Status::kFailed);
    CHILD_CHECK(answer->value[1] == EACCES);
    return 0;
  });
  EXPECT_EQ(stranger.Wait(), 0);
  Message unlink = NewPacket(Kind::kUnlinkName);
  strcpy(unlink.text, "pool");
  const auto gone = owner.Ask(unlink);
  ASSERT_TRUE(gone.has_value());
  EXPECT_EQ(gone->status, Status::kOk);
}

}  // namespace
}  // namespace hostmm::test
