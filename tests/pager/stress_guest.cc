// The load of stress_test: many processes and threads that touch random pages of one shared region,
// fork, exit and are killed, under the preload library. Prints "sound" if every byte came out
// right.
//
// Content: a page is zero or holds its own number in its first word; each process counts up the
// second word of pages of its own. Anything else is another page's content, or lost.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

namespace {

constexpr size_t kPage = 4096;
constexpr size_t kPages = (size_t{96} << 20) / kPage;
constexpr int kProcesses = 16;
constexpr int kThreads = 4;
constexpr int kTouches = 1500;
// Every fourth process is killed somewhere on its way.
constexpr int kKillEvery = 4;

struct Page {
  std::atomic<uint64_t> number;
  std::atomic<uint64_t> count;
  char rest[kPage - 16];
};

std::atomic<bool> g_wrong = false;

void TouchPages(Page* pages, int process, unsigned seed) {
  std::mt19937 random(seed);
  for (int i = 0; i < kTouches; ++i) {
    const size_t index = random() % kPages;
    const uint64_t before = pages[index].number.exchange(index + 1);
    if (before != 0 && before != index + 1) g_wrong = true;
    // Pages whose number is ours modulo the number of processes: nobody else counts there.
    const size_t own = (random() % (kPages / kProcesses)) * kProcesses + process;
    pages[own].count.fetch_add(1);
  }
}

int Live(Page* pages, int process, int generation) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back(TouchPages, pages, process, 1000 * generation + 10 * process + i);
  }
  // Forks while its threads fault; the child touches too, and exits while the parent goes on.
  if (generation == 0 && process % 2 == 0) {
    const pid_t child = fork();
    if (child == 0) {
      TouchPages(pages, process, 77);
      _exit(g_wrong ? 1 : 0);
    }
    int status = -1;
    if (waitpid(child, &status, 0) != child || status != 0) g_wrong = true;
  }
  for (std::thread& thread : threads) thread.join();
  return g_wrong ? 1 : 0;
}

// One process after the other is started; some are killed while they fault.
bool RunAll(Page* pages, int generation) {
  std::vector<pid_t> children;
  for (int process = 0; process < kProcesses; ++process) {
    const pid_t child = fork();
    if (child == 0) _exit(Live(pages, process, generation));
    children.push_back(child);
  }
  bool sound = true;
  for (int process = 0; process < kProcesses; ++process) {
    const bool killed = process % kKillEvery == 1;
    if (killed) kill(children[process], SIGKILL);
    int status = -1;
    waitpid(children[process], &status, 0);
    if (!killed && status != 0) sound = false;
  }
  return sound;
}

}  // namespace

int main() {
  void* memory =
      mmap(nullptr, kPages * kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 2;
  auto* pages = static_cast<Page*>(memory);
  bool sound = RunAll(pages, 0) && RunAll(pages, 1);
  std::vector<uint64_t> counts(kProcesses);
  for (size_t i = 0; i < kPages; ++i) {
    const uint64_t number = pages[i].number;
    if (number != 0 && number != i + 1) sound = false;
    counts[i % kProcesses] += pages[i].count;
  }
  for (int process = 0; process < kProcesses; ++process) {
    // Threads of two generations, and the forked child of every other process.
    const uint64_t whole = uint64_t{kTouches} * (2 * kThreads + (process % 2 == 0 ? 1 : 0));
    const bool killed = process % kKillEvery == 1;
    if (killed ? counts[process] > whole : counts[process] != whole) sound = false;
  }
  std::puts(sound ? "sound" : "WRONG");
  return sound ? 0 : 1;
}
