// The pager is stopped, killed and restarted under programs that use their memory; programs are
// killed under the pager. Anonymous memory falls back to the kernel: everybody goes on, with the
// same results as plain Linux.
#include <signal.h>

#include <memory>
#include <string>
#include <thread>

#include "gtest/gtest.h"
#include "tests/process/guest_runner.h"
#include "tests/testing/skip.h"

namespace hostmm::test {
namespace {

// What every case prints at the end, as plain Linux prints it.
constexpr char kEverything[] =
    "holes are filled 1\nchild 0\nsees 1\nmore 1\nprotect ok\ndenied SIGSEGV/ACCERR\n"
    "remove ok\nreads 0\nunmap ok ok\n";

class PagerDeathTest : public testing::Test {
 protected:
  void SetUp() override {
    HOSTMM_SKIP_IF(WhyNoUserfaultfd());
    pager_ = std::make_unique<ServicePager>();
  }

  std::unique_ptr<Program> Start(const std::string& name) {
    auto program = std::make_unique<Program>(std::vector<std::string>{Built::guest, name},
                                             pager_->GuestEnvironment());
    return program;
  }

  static void ExpectAllWell(Program& program) {
    const Ended ended = program.Finish();
    EXPECT_EQ(ended.status, 0) << ended.out << ended.err;
    EXPECT_NE(ended.out.find(kEverything), std::string::npos) << ended.out << ended.err;
    EXPECT_EQ(ended.out.find("#BAD"), std::string::npos) << ended.out << ended.err;
  }

  std::unique_ptr<ServicePager> pager_;
};

TEST_F(PagerDeathTest, PlainLinuxPrintsTheSame) {
  const Ended ended = RunToEnd({Built::guest, "Newcomer"});
  EXPECT_EQ(ended.out, kEverything);
}

TEST_F(PagerDeathTest, IdleGuestGoesOn) {
  auto program = Start("Idle");
  ASSERT_TRUE(program->AwaitOut("ready"));
  pager_->Kill();
  program->Signal(SIGUSR1);
  ExpectAllWell(*program);
  EXPECT_NE(program->err().find("goes on without hostmm: the pager is gone"), std::string::npos)
      << program->err();
}

// IdleGuestGoesOn shows that the same death is reported where standard error still is what it was.
TEST_F(PagerDeathTest, ADataFileThatGotTheNumberOfStandardErrorStaysClean) {
  auto program = Start("DataFileIsStandardError");
  ASSERT_TRUE(program->AwaitOut("ready"));
  pager_->Kill();
  program->Signal(SIGUSR1);
  ExpectAllWell(*program);
  EXPECT_NE(program->out().find("the file holds 'before after'\n"), std::string::npos)
      << program->out();
}

TEST_F(PagerDeathTest, FaultingThreadsGoOn) {
  // Several times: each kill hits the pager at another point of its work.
  for (int round = 0; round < 5; ++round) {
    auto program = Start("Faulting");
    ASSERT_TRUE(program->AwaitOut("ready"));
    pager_->Kill();
    program->Signal(SIGUSR1);
    ExpectAllWell(*program);
    pager_->Start();
  }
}

TEST_F(PagerDeathTest, ThreadsThatWaitComeBack) {
  auto program = Start("Waiting");
  ASSERT_TRUE(program->AwaitOut("ready"));
  pager_->Signal(SIGSTOP);
  program->Signal(SIGUSR1);
  ASSERT_TRUE(program->AwaitOut("waiting"));
  pager_->Kill();
  program->Signal(SIGUSR1);
  ExpectAllWell(*program);
}

TEST_F(PagerDeathTest, StoppedPagerIsWaitedFor) {
  auto waiting = Start("Waiting");
  auto faulting = Start("Faulting");
  ASSERT_TRUE(waiting->AwaitOut("ready"));
  ASSERT_TRUE(faulting->AwaitOut("ready"));
  pager_->Signal(SIGSTOP);
  waiting->Signal(SIGUSR1);
  faulting->Signal(SIGUSR1);
  ASSERT_TRUE(waiting->AwaitOut("waiting"));
  // The one second that the guests wait is what is tested; nothing else can end it.
  std::this_thread::sleep_for(std::chrono::seconds(1));
  EXPECT_EQ(waiting->out().find("all came back"), std::string::npos);
  pager_->Signal(SIGCONT);
  waiting->Signal(SIGUSR1);
  ExpectAllWell(*waiting);
  ExpectAllWell(*faulting);
  EXPECT_EQ(waiting->err() + faulting->err(), "");
  pager_->ExpectNoTrace();
}

TEST_F(PagerDeathTest, RestartDoesNotConfuseOldGuests) {
  auto old = Start("Idle");
  ASSERT_TRUE(old->AwaitOut("ready"));
  pager_->Kill();
  pager_->Start();
  auto newcomer = Start("Newcomer");
  old->Signal(SIGUSR1);
  ExpectAllWell(*old);
  ExpectAllWell(*newcomer);
  EXPECT_EQ(newcomer->err(), "");
  pager_->ExpectNoTrace();
}

TEST_F(PagerDeathTest, NoPagerFromTheStart) {
  pager_->Kill();
  const Ended ended = RunToEnd({Built::guest, "TellsWhetherManaged"}, pager_->GuestEnvironment());
  EXPECT_EQ(ended.out, RunToEnd({Built::guest, "TellsWhetherManaged"}).out);
  EXPECT_NE(ended.err.find("goes on without hostmm: no pager"), std::string::npos) << ended.err;
}

TEST_F(PagerDeathTest, TerminatedPagerLetsGuestsGo) {
  auto program = Start("Faulting");
  ASSERT_TRUE(program->AwaitOut("ready"));
  pager_->Signal(SIGTERM);
  program->Signal(SIGUSR1);
  ExpectAllWell(*program);
}

TEST_F(PagerDeathTest, KilledGuestsLeaveNoTrace) {
  for (int round = 0; round < 5; ++round) {
    auto program = Start("ForkBomb");
    ASSERT_TRUE(program->AwaitOut("faulting"));
    program->Signal(SIGKILL);
    program.reset();
    // Its children are ours now.
    EndAllChildren();
    pager_->ExpectNoTrace();
  }
  auto newcomer = Start("Newcomer");
  ExpectAllWell(*newcomer);
}

}  // namespace
}  // namespace hostmm::test

int main(int argc, char** argv) {
  hostmm::test::Built::TakeFrom(argc, argv);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
