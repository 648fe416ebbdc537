// What tests of the protocol of a freeze share: real userfaultfds of this process, and agents that
// the test plays.
//
// Threads:  the test's one.
// Errors:   expectations of the test.
#ifndef HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOTS_FIXTURE_H_
#define HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOTS_FIXTURE_H_

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/session_fixture.h"
#include "tests/testing/scoped_mapping.h"
#include "tests/testing/skip.h"
#include "tests/testing/test_uffd.h"

namespace hostmm {

// A named region, mapped by each guest at a place of its own in this process.
class SnapshotsTest : public SessionFixture {
 protected:
  struct Window {
    Guest* guest = nullptr;
    test::ScopedMapping memory;
    uint64_t va() const { return reinterpret_cast<uint64_t>(memory.data()); }
  };

  void SetUp() override {
    HOSTMM_SKIP_IF(test::WhyNoUserfaultfd());
    names_.push_back("live");
  }

  // Handles that the test has closed are seen by the loop.
  void TearDown() override {
    file_.reset();
    while (!ids_.empty()) EndGuest(*guests_.Find(ids_.back()));
    RunUntil(loop_.get(), [this] { return segment_.reader().Pools().mms <= names_.size(); });
    SessionFixture::TearDown();
  }

  Guest& NewProcess() {
    Guest& guest = NewOptInGuest();
    const test::TestUffd uffd = test::TestUffd::Open(UFFD_FEATURE_MISSING_SHMEM);
    guest.uffd.fd.reset(dup(uffd.fd()));
    guest.pid = getpid();
    return guest;
  }

  // Maps it in the guest, as the library does.
  Window Map(Guest& guest) {
    protocol::Message open = NewPacket(protocol::Kind::kOpenName);
    open.length = kRegion;
    open.value[0] = O_RDWR | O_CREAT;
    open.value[1] = 0600;
    strcpy(open.text, "live");
    EXPECT_EQ(StatusOf(guest, open), protocol::Status::kOk);
    Window window;
    window.guest = &guest;
    window.memory = test::ScopedMapping::SharedFile(file_.get(), kRegion);
    protocol::Message adopt = Ranged(protocol::Kind::kAdopt, window.va(), kRegion);
    adopt.value[0] = static_cast<uint64_t>(protocol::AdoptSource::kFile);
    const std::optional<protocol::Message> answer = Ask(guest, adopt, std::move(file_));
    EXPECT_EQ(answer->value[0], static_cast<uint64_t>(protocol::Adopted::kOwn));
    frozen_answer_ = answer->value[1];
    mm_ = {answer->mm.slot, answer->mm.generation};
    return window;
  }
  Window NewWindow() { return Map(NewProcess()); }

  UniqueFd AskForSnapshot(const Window& window) {
    protocol::Message take = NewPacket(protocol::Kind::kTakeSnapshot);
    take.va = window.va();
    return Send(*window.guest, take);
  }
  // The next order of that kind that the guest's agent finds.
  std::optional<protocol::Message> NextOrder(const Guest& guest, protocol::OrderOp op) {
    while (std::optional<protocol::Message> next = AgentOf(guest).Next()) {
      if (next->op == op) return next;
    }
    return std::nullopt;
  }
  // As the agent does when it has zapped.
  void SayFrozen(Guest& guest, const protocol::Message& freeze) {
    protocol::Message done = NewPacket(protocol::Kind::kFreezeDone);
    done.mm = freeze.mm;
    done.order = freeze.order;
    Note(guest, done);
  }
  void CarryOutFreeze(Guest& guest) {
    const std::optional<protocol::Message> freeze = NextOrder(guest, protocol::OrderOp::kFreeze);
    ASSERT_TRUE(freeze.has_value());
    SayFrozen(guest, *freeze);
  }
  // RETURNS the child's end of its channel.
  UniqueFd AnnounceFork(Guest& guest) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    Packet intent;
    intent.message = NewPacket(protocol::Kind::kForkIntent);
    intent.fds[0].reset(ends[1]);
    session_.OnPacket(guest, std::move(intent));
    return UniqueFd(ends[0]);
  }
  // A snapshot of what all windows map, taken; `file_` is its handle.
  UniqueFd TakeOne(const Window& window) {
    const UniqueFd reply = AskForSnapshot(window);
    CarryOutFreeze(*window.guest);
    EXPECT_EQ(AnswerOn(reply)->status, protocol::Status::kOk);
    return std::move(file_);
  }
  static protocol::Message AskHandle(const UniqueFd& handle, protocol::Message ask,
                                     EventLoop* loop) {
    std::array<int, 2> ends;
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()), 0);
    const UniqueFd near(ends[0]);
    EXPECT_EQ(SendPacket(handle.get(), ask, ends[1]), SendResult::kSent);
    close(ends[1]);
    Packet answer;
    RunUntil(loop, [&] { return ReceivePacket(near.get(), &answer) == ReceiveResult::kPacket; });
    return answer.message;
  }
  template <class Condition>
  static void RunUntil(EventLoop* loop, Condition condition) {
    int turns = 0;
    bool met = false;
    loop->SetTick(absl::Milliseconds(5), [&] {
      met = condition();
      if (met || ++turns > 1000) loop->Stop();
    });
    EXPECT_TRUE(loop->Run().ok());
    EXPECT_TRUE(met);
  }
  // As RunUntil, and asks in each turn of the loop, which ends with the one that meets it.
  template <class Condition>
  void RunTurnsUntil(Condition condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(10);
    bool met = false;
    std::function<void()> ask = [&] {
      met = condition();
      if (met || absl::Now() > deadline) return loop_->Stop();
      loop_->Soon(ask);
    };
    loop_->Soon(ask);
    EXPECT_TRUE(loop_->Run().ok());
    EXPECT_TRUE(met);
  }
  void TakeOfBoth(const Window& first, const Window& second) {
    const UniqueFd reply = AskForSnapshot(first);
    CarryOutFreeze(*first.guest);
    CarryOutFreeze(*second.guest);
    EXPECT_EQ(AnswerOn(reply)->status, protocol::Status::kOk);
  }
  // Closes the handle. RETURNS who of the two has not been thawed when the other one has.
  Guest& CloseUntilOneIsThawed(const Window& first, const Window& second) {
    file_.reset();
    bool is_first = false;
    RunTurnsUntil([&] {
      is_first = NextOrder(*first.guest, protocol::OrderOp::kThaw).has_value();
      return is_first || NextOrder(*second.guest, protocol::OrderOp::kThaw).has_value();
    });
    return is_first ? *second.guest : *first.guest;
  }
  bool IsFrozen() const { return snapshots_.IsFrozen(mm_); }

  MmId mm_;
  uint64_t frozen_answer_ = 0;
};

}  // namespace hostmm

#endif  // HOSTMM_RUNTIME_SNAPSHOT_SNAPSHOTS_FIXTURE_H_
