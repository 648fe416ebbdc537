#include "runtime/worker_pool.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"

namespace hostmm {
namespace {

// Long against anything that a pool does; a test that is right never waits for it.
constexpr int kDeadlineMs = 10'000;

UniqueFd EventFd() {
  absl::StatusOr<UniqueFd> fd = WorkerPool::NewEventFd();
  EXPECT_TRUE(fd.ok());
  return *std::move(fd);
}

// Runs what is done until `*count` says that all is; plays the loop.
void RunUntil(WorkerPool* pool, const int* count, int all) {
  while (*count < all) {
    pollfd done = {pool->event_fd(), POLLIN, 0};
    ASSERT_EQ(poll(&done, 1, kDeadlineMs), 1) << *count << " of " << all;
    pool->RunDone();
  }
}

TEST(WorkerPoolTest, OneWorkerKeepsTheOrder) {
  WorkerPool pool(EventFd(), 1);
  std::vector<int> worked;  // by the worker; read by us after its done
  std::vector<int> finished;
  int count = 0;
  for (int i = 0; i < 100; ++i) {
    pool.Submit([&worked, i] { worked.push_back(i); },
                [&, i] {
                  finished.push_back(i);
                  ++count;
                });
  }
  RunUntil(&pool, &count, 100);
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(worked[i], i);
    EXPECT_EQ(finished[i], i);
  }
}

TEST(WorkerPoolTest, DoneRunsOnTheCallersThreadAfterItsWork) {
  WorkerPool pool(EventFd(), 4);
  const std::thread::id us = std::this_thread::get_id();
  int count = 0;
  std::vector<int> result(1000);  // plain: the pool orders work before done
  for (size_t i = 0; i < result.size(); ++i) {
    pool.Submit(
        [&result, i, us] {
          EXPECT_NE(std::this_thread::get_id(), us);
          result[i] = static_cast<int>(i);
        },
        [&, i] {
          EXPECT_EQ(std::this_thread::get_id(), us);
          EXPECT_EQ(result[i], static_cast<int>(i));
          ++count;
        });
  }
  RunUntil(&pool, &count, 1000);
}

TEST(WorkerPoolTest, DoneMaySubmit) {
  WorkerPool pool(EventFd(), 2);
  int count = 0;
  std::function<void()> again = [&] {
    if (++count < 50) pool.Submit([] {}, again);
  };
  pool.Submit([] {}, again);
  RunUntil(&pool, &count, 50);
}

TEST(WorkerPoolTest, JobsRunSideBySide) {
  WorkerPool pool(EventFd(), 2);
  absl::Notification first_started;
  absl::Notification second_started;
  int count = 0;
  // Each waits for the other.
  pool.Submit(
      [&] {
        first_started.Notify();
        second_started.WaitForNotification();
      },
      [&] { ++count; });
  pool.Submit(
      [&] {
        second_started.Notify();
        first_started.WaitForNotification();
      },
      [&] { ++count; });
  RunUntil(&pool, &count, 2);
}

TEST(WorkerPoolTest, LaterBeginsOnlyWhenNothingElseWaits) {
  WorkerPool pool(EventFd(), 1);
  absl::Notification go_on;
  std::vector<int> worked;  // by the worker; read by us after its done
  int count = 0;
  const auto submit = [&](int number, WorkerPool::Priority priority) {
    pool.Submit([&worked, number] { worked.push_back(number); }, [&count] { ++count; }, priority);
  };
  pool.Submit([&go_on] { go_on.WaitForNotification(); }, [&count] { ++count; });
  submit(4, WorkerPool::Priority::kLater);
  submit(5, WorkerPool::Priority::kLater);
  submit(1, WorkerPool::Priority::kNow);
  submit(2, WorkerPool::Priority::kNow);
  submit(3, WorkerPool::Priority::kNow);
  go_on.Notify();
  RunUntil(&pool, &count, 6);
  EXPECT_EQ(worked, (std::vector<int>{1, 2, 3, 4, 5}));
}

TEST(WorkerPoolTest, LaterRunsOneAtATimeAndHoldsUpNothingElse) {
  WorkerPool pool(EventFd(), 4);
  absl::Notification go_on;
  std::atomic<int> running = 0;
  std::atomic<int> most = 0;
  int later_done = 0;
  int now_done = 0;
  // The first waits; the others, of which three could run beside it, would be seen.
  for (int i = 0; i < 8; ++i) {
    pool.Submit(
        [&] {
          const int with_us = ++running;
          if (with_us > most) most = with_us;
          go_on.WaitForNotification();
          --running;
        },
        [&later_done] { ++later_done; }, WorkerPool::Priority::kLater);
  }
  for (int i = 0; i < 100; ++i) pool.Submit([] {}, [&now_done] { ++now_done; });
  RunUntil(&pool, &now_done, 100);
  EXPECT_EQ(later_done, 0);
  go_on.Notify();
  RunUntil(&pool, &later_done, 8);
  EXPECT_EQ(most, 1);
}

// What the work holds (gigabytes of frames) is let go by the worker, before its done.
TEST(WorkerPoolTest, WhatTheWorkHoldsGoesOnTheWorker) {
  WorkerPool pool(EventFd(), 1);
  std::atomic<bool> gone_on_worker = false;
  const std::thread::id us = std::this_thread::get_id();
  std::shared_ptr<int> held(new int(0), [&gone_on_worker, us](int* value) {
    gone_on_worker = std::this_thread::get_id() != us;
    delete value;
  });
  int count = 0;
  pool.Submit([held = std::move(held)] { ++*held; },
              [&] {
                EXPECT_TRUE(gone_on_worker);
                ++count;
              });
  RunUntil(&pool, &count, 1);
}

TEST(WorkerPoolTest, TheEndWaitsForWhatRunsAndDropsTheRest) {
  absl::Notification started;
  absl::Notification go_on;
  std::atomic<int> worked = 0;
  int finished = 0;
  auto held = std::make_shared<int>(0);
  std::weak_ptr<int> watched = held;
  auto pool = std::make_unique<WorkerPool>(EventFd(), 1);
  pool->Submit(
      [&] {
        started.Notify();
        go_on.WaitForNotification();
        ++worked;
      },
      [&] { ++finished; });
  for (int i = 0; i < 10; ++i) {
    pool->Submit([&worked, held] { ++worked; }, [&] { ++finished; });
  }
  held.reset();
  started.WaitForNotification();
  std::thread ends([&pool] { pool.reset(); });
  go_on.Notify();
  ends.join();
  EXPECT_GE(worked, 1);  // the one that ran, and what it was too late to stop
  EXPECT_EQ(finished, 0);
  EXPECT_TRUE(watched.expired()) << "what waited is still held";
}

}  // namespace
}  // namespace hostmm
