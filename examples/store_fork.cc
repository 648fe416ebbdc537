// The store of store_snapshot in one process with eight threads, saved by fork as many programs do
// it: the child has the memory of that moment and writes it to a file. In memory of ShareMode::kCow
// the fork copies none of its page tables.
//
//   store_fork                 with a pager of its own
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

#include "examples/store.h"
#include "runtime/hostmm.h"

namespace {

constexpr size_t kBytes = kRecords * sizeof(Record);

std::mutex g_lock;
std::atomic<uint64_t> g_transfers;
std::atomic<bool> g_stop;

void Write(Record* records, unsigned seed) {
  for (std::minstd_rand random(seed); !g_stop; ++g_transfers) {
    const std::lock_guard<std::mutex> hold(g_lock);
    Transfer(records, &random);
  }
}

bool Save(const Record* records, int file) {
  const auto* bytes = reinterpret_cast<const char*>(records);
  for (size_t done = 0; done < kBytes;) {
    const ssize_t n = write(file, bytes + done, kBytes - done);
    if (n <= 0) return false;
    done += static_cast<size_t>(n);
  }
  return true;
}

}  // namespace

int main() {
  auto session = hostmm::Session::Open();
  if (!session.ok()) std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
  Check(session.ok(), "attached");
  auto memory = session->MapAnonymous(kStoreBytes, {.share = hostmm::ShareMode::kCow});
  Check(memory.ok(), "64 MiB of copy-on-write memory");
  auto* records = reinterpret_cast<Record*>(memory->data());
  Fill(records);
  std::vector<std::thread> writers;
  for (unsigned i = 0; i < 8; ++i) writers.emplace_back(Write, records, i + 1);
  while (g_transfers < 1000) usleep(1000);

  std::FILE* image = std::tmpfile();
  Check(image != nullptr, "a file");
  g_lock.lock();
  const pid_t child = fork();
  if (child == 0) _exit(Save(records, fileno(image)) ? 0 : 1);
  const uint64_t transfers = g_transfers;
  g_lock.unlock();
  int status = 1;
  Check(waitpid(child, &status, 0) == child && status == 0, "saved by a child");
  Check(g_transfers > transfers + 8, "the writers went on meanwhile");
  g_stop = true;
  for (std::thread& writer : writers) writer.join();

  std::vector<Record> loaded(kRecords);
  std::rewind(image);
  Check(std::fread(loaded.data(), kBytes, 1, image) == 1, "loaded");
  Check(IsWhole(loaded.data()), "every record whole, and nothing lost or made");
}
