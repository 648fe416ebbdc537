#include "runtime/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

using Progress = EventLoop::Progress;

struct Pipe {
  UniqueFd read_end;
  UniqueFd write_end;

  Pipe() {
    int ends[2] = {-1, -1};
    EXPECT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    read_end.reset(ends[0]);
    write_end.reset(ends[1]);
  }
  void Put(size_t bytes = 1) const {
    const std::vector<char> data(bytes);
    EXPECT_EQ(write(write_end.get(), data.data(), bytes), static_cast<ssize_t>(bytes));
  }
  // Reads at most `bytes`. RETURNS what it got, 0 if nothing.
  size_t Get(size_t bytes = 4096) const {
    std::vector<char> data(bytes);
    const ssize_t got = read(read_end.get(), data.data(), bytes);
    return got > 0 ? static_cast<size_t>(got) : 0;
  }
};

class EventLoopTest : public testing::Test {
 protected:
  // The loop belongs to the thread that makes it.
  EventLoopTest() {
    absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
    if (loop.ok()) {
      loop_ = *std::move(loop);
    } else {
      why_ = std::string(loop.status().message());
    }
  }
  void SetUp() override {
    if (loop_ == nullptr) GTEST_SKIP() << why_;
    // A loop that misses an event fails the test instead of hanging it.
    loop_->SetTick(absl::Seconds(5), [this] {
      ADD_FAILURE() << "the loop was still waiting after 5 s";
      loop_->Stop();
    });
  }
  // Calls `then` from the loop after everything that is ready now had its turn.
  void AfterThis(std::function<void()> then) {
    later_.push_back(std::make_unique<Pipe>());
    const Pipe* pipe = later_.back().get();
    pipe->Put();
    loop_->Watch(pipe->read_end.get(), [pipe, then = std::move(then)] {
      if (pipe->Get() > 0) then();
      return Progress::kDrained;
    });
  }

  std::unique_ptr<EventLoop> loop_;
  std::string why_;
  std::vector<std::unique_ptr<Pipe>> later_;
};

TEST_F(EventLoopTest, CallsForWhatIsReadyAlready) {
  Pipe pipe;
  pipe.Put();
  loop_->Watch(pipe.read_end.get(), [&] {
    EXPECT_EQ(pipe.Get(), 1u);
    loop_->Stop();
    return Progress::kDrained;
  });
  EXPECT_TRUE(loop_->Run().ok());
}

TEST_F(EventLoopTest, CallsForEachEdgeAndNotForALevel) {
  Pipe pipe;
  pipe.Put();
  int calls = 0;
  loop_->Watch(pipe.read_end.get(), [&] {
    ++calls;  // leaves the data: a level would call again at once
    return Progress::kDrained;
  });
  AfterThis([&] {
    AfterThis([&] {
      EXPECT_EQ(calls, 1);
      pipe.Put();
      AfterThis([&] { AfterThis([&] { loop_->Stop(); }); });
    });
  });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(calls, 2);
}

TEST_F(EventLoopTest, SoonIsALaterTurnAndKeepsNobodyOut) {
  Pipe pipe;
  loop_->Watch(pipe.read_end.get(), [&] {
    loop_->Stop();
    return Progress::kDrained;
  });
  int turns = 0;
  std::function<void()> again = [&] {
    if (++turns == 3) pipe.Put();
    loop_->Soon(again);
  };
  loop_->Soon(again);
  EXPECT_EQ(turns, 0);
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_LE(turns, 5);
}

TEST_F(EventLoopTest, AHandlerThatHasMoreIsCalledAgainAfterTheOthers) {
  Pipe greedy;
  Pipe modest;
  greedy.Put(100);
  std::vector<char> order;
  loop_->Watch(greedy.read_end.get(), [&] {
    order.push_back('g');
    greedy.Get(1);
    if (order.size() == 3) modest.Put();
    return order.size() < 100 ? Progress::kMore : Progress::kDrained;
  });
  loop_->Watch(modest.read_end.get(), [&] {
    order.push_back('m');
    modest.Get();
    loop_->Stop();
    return Progress::kDrained;
  });
  EXPECT_TRUE(loop_->Run().ok());
  // At most one more turn of the greedy one: the poll is asked between any two.
  EXPECT_LE(order.size(), 5u);
}

// Each turn of a flooded descriptor raises a new edge; were each edge one more turn, the turns
// would grow without end and the others starve.
TEST_F(EventLoopTest, EdgesGiveAHandlerThatHasMoreNoMoreTurns) {
  Pipe flood;
  Pipe modest;
  flood.Put(1);
  int flooded = 0;
  int between = 0;
  int most = 0;
  loop_->Watch(flood.read_end.get(), [&] {
    flood.Get(1);
    flood.Put(2);
    ++between;
    if (++flooded == 400) loop_->Stop();
    return Progress::kMore;
  });
  modest.Put();
  loop_->Watch(modest.read_end.get(), [&] {
    most = std::max(most, between);
    between = 0;
    return Progress::kMore;
  });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_LE(most, 3);
}

TEST_F(EventLoopTest, AHandlerMayUnwatchItself) {
  Pipe pipe;
  pipe.Put();
  EventLoop::WatchId watch;
  int calls = 0;
  // What the handler holds must live to its end.
  auto held = std::make_shared<int>(7);
  watch = loop_->Watch(pipe.read_end.get(), [&, held = std::move(held)] {
    ++calls;
    loop_->Unwatch(&watch);
    EXPECT_EQ(*held, 7);
    pipe.Put();
    AfterThis([&] { AfterThis([&] { loop_->Stop(); }); });
    return Progress::kMore;
  });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(watch.generation, 0u);
}

TEST_F(EventLoopTest, AnEventOfAnOldWatchDoesNotReachTheNextOneInItsSlot) {
  Pipe first;
  Pipe old_pipe;
  Pipe new_pipe;
  EventLoop::WatchId watch;
  int old_calls = 0;
  int new_calls = 0;
  first.Put();
  loop_->Watch(first.read_end.get(), [&] {
    if (first.Get() == 0) return Progress::kDrained;
    // Ready, so that its event is in the queue when its slot goes to another.
    old_pipe.Put();
    EventLoop::WatchId stale = watch;
    loop_->Unwatch(&watch);
    const EventLoop::WatchId reused = loop_->Watch(new_pipe.read_end.get(), [&] {
      ++new_calls;
      return Progress::kDrained;
    });
    EXPECT_EQ(reused.slot, stale.slot);
    EXPECT_NE(reused.generation, stale.generation);
    loop_->Unwatch(&stale);  // names nobody now
    AfterThis([&] {
      AfterThis([&] {
        EXPECT_EQ(new_calls, 0);
        new_pipe.Put();
        AfterThis([&] { AfterThis([&] { loop_->Stop(); }); });
      });
    });
    return Progress::kDrained;
  });
  watch = loop_->Watch(old_pipe.read_end.get(), [&] {
    ++old_calls;
    return Progress::kDrained;
  });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(old_calls, 0);
  EXPECT_EQ(new_calls, 1);
}

// The poll holds the file. If unwatching left it behind when an event is on its way, the file would
// never close: here the other end would never see the end.
TEST_F(EventLoopTest, UnwatchLetsTheFileGoWhileEventsArrive) {
  constexpr int kRounds = 200;
  int rounds = 0;
  std::function<void()> next;
  std::array<int, 2> ends;
  UniqueFd near;
  UniqueFd far;
  EventLoop::WatchId near_watch;
  EventLoop::WatchId far_watch;
  next = [&] {
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()),
              0);
    near.reset(ends[0]);
    far.reset(ends[1]);
    near_watch = loop_->Watch(near.get(), [&] {
      // More events for the poll that goes now.
      for (int i = 0; i < 3; ++i) EXPECT_EQ(send(far.get(), "x", 1, 0), 1);
      loop_->Unwatch(&near_watch);
      near.reset();
      return Progress::kDrained;
    });
    far_watch = loop_->Watch(far.get(), [&] {
      char byte;
      const ssize_t got = recv(far.get(), &byte, 1, MSG_DONTWAIT);
      if (got < 0 && errno == EAGAIN) return Progress::kDrained;
      loop_->Unwatch(&far_watch);
      far.reset();
      if (++rounds < kRounds) {
        next();
      } else {
        loop_->Stop();
      }
      return Progress::kDrained;
    });
    EXPECT_EQ(send(far.get(), "x", 1, 0), 1);
  };
  next();
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(rounds, kRounds);
}

TEST_F(EventLoopTest, AHangUpCalls) {
  Pipe pipe;
  loop_->Watch(pipe.read_end.get(), [&] {
    EXPECT_EQ(pipe.Get(), 0u);
    loop_->Stop();
    return Progress::kDrained;
  });
  pipe.write_end.reset();
  EXPECT_TRUE(loop_->Run().ok());
}

TEST_F(EventLoopTest, ADescriptorThatIsClosedOrCannotBePolledCallsAndEndsNothing) {
  int calls = 0;
  UniqueFd closed(eventfd(0, EFD_CLOEXEC));
  const int number = closed.get();
  closed.reset();
  loop_->Watch(number, [&] {
    ++calls;
    return Progress::kDrained;
  });
  AfterThis([&] { AfterThis([&] { loop_->Stop(); }); });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_LE(calls, 1);
}

TEST_F(EventLoopTest, TheTickComesAgainAndAgain) {
  absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
  ASSERT_TRUE(loop.ok());
  int ticks = 0;
  (*loop)->SetTick(absl::Milliseconds(5), [&] {
    if (++ticks == 5) (*loop)->Stop();
  });
  const absl::Time start = absl::Now();
  EXPECT_TRUE((*loop)->Run().ok());
  EXPECT_EQ(ticks, 5);
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(25));
}

// More than the submission queue and the completion queue hold.
TEST_F(EventLoopTest, ServesThousandsOfWatchesThatAreReadyAtOnce) {
  rlimit limit;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  constexpr size_t kWatches = 5000;
  if (limit.rlim_max < kWatches + 100) GTEST_SKIP() << "needs ulimit -Hn of " << kWatches + 100;
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  std::vector<UniqueFd> fds;
  std::vector<EventLoop::WatchId> watches(kWatches);
  std::vector<int> calls(kWatches);
  size_t called = 0;
  int round = 1;
  const auto raise_all = [&] {
    for (const UniqueFd& fd : fds) ASSERT_EQ(eventfd_write(fd.get(), 1), 0);
  };
  for (size_t i = 0; i < kWatches; ++i) fds.emplace_back(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  for (size_t i = 0; i < kWatches; ++i) {
    watches[i] = loop_->Watch(fds[i].get(), [&, i] {
      eventfd_t value;
      if (eventfd_read(fds[i].get(), &value) != 0) return Progress::kDrained;
      ++calls[i];
      if (++called < kWatches) return Progress::kDrained;
      called = 0;
      if (++round > 3) {
        loop_->Stop();
      } else {
        raise_all();
      }
      return Progress::kDrained;
    });
  }
  raise_all();
  EXPECT_TRUE(loop_->Run().ok());
  for (size_t i = 0; i < kWatches; ++i) ASSERT_EQ(calls[i], 3) << i;
  for (EventLoop::WatchId& watch : watches) loop_->Unwatch(&watch);
}

std::span<const std::byte> BytesOf(const std::string& text) {
  return std::as_bytes(std::span(text));
}

TEST_F(EventLoopTest, WritesAndReadsAFileAtAnOffset) {
  const UniqueFd file(memfd_create("file", MFD_CLOEXEC));
  const std::string text = "snapshot";
  std::array<std::byte, 20> back = {};
  loop_->Write(file.get(), BytesOf(text), 4096, [&](int written) {
    EXPECT_EQ(written, 8);
    loop_->Read(file.get(), back, 4094, [&](int got) {
      EXPECT_EQ(got, 10);  // to the end of the file
      loop_->Stop();
    });
  });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(std::string(reinterpret_cast<char*>(back.data()) + 2, 8), text);
}

TEST_F(EventLoopTest, AWriteAtTheFilesOwnPositionMovesIt) {
  const UniqueFd file(memfd_create("file", MFD_CLOEXEC));
  ASSERT_EQ(lseek(file.get(), 5, SEEK_SET), 5);
  const std::string text = "abc";
  loop_->Write(file.get(), BytesOf(text), EventLoop::kOwnPosition, [&](int) { loop_->Stop(); });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(lseek(file.get(), 0, SEEK_CUR), 8);
}

// The others go on while a write waits for its reader, whatever the flags of the pipe.
class FullPipeTest : public EventLoopTest, public testing::WithParamInterface<int> {};

TEST_P(FullPipeTest, HoldsNothingUp) {
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.write_end.get(), F_SETFL, GetParam()), 0);
  const std::string much(1 << 20, 'x');
  size_t written = 0;
  std::function<void(int)> write_on = [&](int result) {
    ASSERT_GE(result, 0);
    written += static_cast<size_t>(result);
    if (written == much.size()) return;
    loop_->Write(pipe.write_end.get(), BytesOf(much).subspan(written), EventLoop::kOwnPosition,
                 write_on);
  };
  write_on(0);
  size_t got = 0;
  std::function<void()> drain = [&] {
    got += pipe.Get(1 << 16);
    if (got == much.size() && written == got) return loop_->Stop();
    AfterThis(drain);
  };
  AfterThis(drain);
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(got, much.size());
}

INSTANTIATE_TEST_SUITE_P(Flags, FullPipeTest, testing::Values(0, O_NONBLOCK));

// Also when the reader goes while the write waits, which is when our own thread would get SIGPIPE.
TEST_F(EventLoopTest, ABrokenPipeIsAnErrorAndNoSignal) {
  signal(SIGPIPE, SIG_DFL);  // who started the test may ignore it
  Pipe broken;
  broken.read_end.reset();
  Pipe breaks;
  ASSERT_EQ(fcntl(breaks.write_end.get(), F_SETFL, 0), 0);
  const std::string much(1 << 20, 'x');
  int errors = 0;
  const auto note = [&](int result) {
    EXPECT_EQ(result, -EPIPE);
    if (++errors == 2) loop_->Stop();
  };
  std::function<void(int)> write_on = [&](int result) {
    if (result < 0) return note(result);
    loop_->Write(breaks.write_end.get(), BytesOf(much), EventLoop::kOwnPosition, write_on);
  };
  loop_->Write(broken.write_end.get(), BytesOf(much), EventLoop::kOwnPosition, note);
  write_on(0);
  // A loop's round or two later the write waits for room.
  AfterThis([&] { AfterThis([&] { breaks.read_end.reset(); }); });
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_EQ(errors, 2);
}

TEST_F(EventLoopTest, AWriteThatWaitsCanBeCancelled) {
  Pipe pipe;
  ASSERT_EQ(fcntl(pipe.write_end.get(), F_SETFL, 0), 0);
  const std::string much(1 << 20, 'x');
  int result = 1;
  const EventLoop::TransferId whole =
      loop_->Write(pipe.write_end.get(), BytesOf(much), EventLoop::kOwnPosition, [&](int first) {
        ASSERT_GT(first, 0);  // what the pipe holds
        const EventLoop::TransferId waits = loop_->Write(pipe.write_end.get(), BytesOf(much),
                                                         EventLoop::kOwnPosition, [&](int second) {
                                                           result = second;
                                                           loop_->Stop();
                                                         });
        AfterThis([this, waits] { loop_->Cancel(waits); });
      });
  EXPECT_NE(whole.number, 0u);
  EXPECT_TRUE(loop_->Run().ok());
  EXPECT_LT(result, 0);
  loop_->Cancel(whole);  // over: names nothing
}

// What comes into the pipe afterwards stays there: no read is left that would put it into memory
// that has gone.
TEST_F(EventLoopTest, TheDestructorLeavesNoTransferBehind) {
  for (int round = 0; round < 500; ++round) {
    Pipe pipe;
    ASSERT_EQ(fcntl(pipe.read_end.get(), F_SETFL, 0), 0);
    auto memory = std::make_shared<std::array<std::byte, 16>>();
    const std::weak_ptr<std::array<std::byte, 16>> watched = memory;
    absl::StatusOr<std::unique_ptr<EventLoop>> loop = EventLoop::Create();
    ASSERT_TRUE(loop.ok());
    const std::span<std::byte> bytes = *memory;
    (*loop)->Read(pipe.read_end.get(), bytes, EventLoop::kOwnPosition,
                  [memory = std::move(memory)](int) { ADD_FAILURE() << "called"; });
    // Submits: the read waits for the pipe when the loop goes.
    Pipe other;
    other.Put();
    (*loop)->Watch(other.read_end.get(), [&] {
      (*loop)->Stop();
      return Progress::kDrained;
    });
    ASSERT_TRUE((*loop)->Run().ok());
    loop->reset();
    EXPECT_TRUE(watched.expired());
    ASSERT_EQ(fcntl(pipe.read_end.get(), F_SETFL, O_NONBLOCK), 0);
    pipe.Put(3);
    ASSERT_EQ(pipe.Get(), 3u) << "round " << round;
  }
}

TEST_F(EventLoopTest, ClosesADescriptor) {
  Pipe pipe;
  loop_->Watch(pipe.read_end.get(), [&] {
    if (pipe.Get() == 0) loop_->Stop();  // nobody has the other end
    return Progress::kDrained;
  });
  loop_->Close(pipe.write_end.release());
  EXPECT_TRUE(loop_->Run().ok());
}

}  // namespace
}  // namespace hostmm
