// An in-memory store that eight processes write, saved while they do. The snapshot takes no longer
// than a transaction, so it is taken under the store's lock; the export, which takes its time, is
// not. The image is loaded again and checked.
//
//   store_snapshot             with a pager of its own
//
// store_fork does the same with fork.
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

#include "examples/store.h"
#include "runtime/hostmm.h"

namespace {

struct Store {
  pthread_mutex_t lock;
  volatile uint64_t transfers;
  volatile unsigned writers;
  Record records[kRecords];
};
static_assert(sizeof(Store) <= kStoreBytes);

// In a child, for ever.
[[noreturn]] void Write(Store* store, unsigned seed) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  pthread_mutex_lock(&store->lock);
  store->writers = store->writers + 1;
  pthread_mutex_unlock(&store->lock);
  for (std::minstd_rand random(seed);;) {
    pthread_mutex_lock(&store->lock);
    Transfer(store->records, &random);
    store->transfers = store->transfers + 1;
    pthread_mutex_unlock(&store->lock);
  }
}

}  // namespace

int main() {
  auto session = hostmm::Session::Open();
  if (!session.ok()) std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
  Check(session.ok(), "attached");
  auto region = session->MapAnonymous(kStoreBytes);
  Check(region.ok(), "a region of 64 MiB");
  auto* store = reinterpret_cast<Store*>(region->data());
  pthread_mutexattr_t of_all;
  pthread_mutexattr_init(&of_all);
  pthread_mutexattr_setpshared(&of_all, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&store->lock, &of_all);
  Fill(store->records);
  pid_t writers[8];
  for (unsigned i = 0; i < 8; ++i) {
    if ((writers[i] = fork()) == 0) Write(store, i + 1);
  }
  // A snapshot waits a second at most for a child that was just forked: all are to have begun.
  while (store->writers < 8 || store->transfers < 1000) usleep(1000);

  pthread_mutex_lock(&store->lock);
  auto snapshot = region->Snapshot();
  pthread_mutex_unlock(&store->lock);
  Check(snapshot.ok(), "a snapshot between two transfers");
  std::FILE* image = std::tmpfile();
  Check(image != nullptr && snapshot->ExportTo(fileno(image)).ok(), "exported");
  const uint64_t transfers = store->transfers;
  for (const pid_t writer : writers) kill(writer, SIGKILL);
  while (wait(nullptr) > 0) {
  }

  auto loaded = session->MapAnonymous(kStoreBytes);
  lseek(fileno(image), 0, SEEK_SET);
  Check(loaded.ok() && hostmm::LoadImage(fileno(image), *loaded).ok(), "loaded");
  const auto* saved = reinterpret_cast<const Store*>(loaded->data());
  Check(IsWhole(saved->records), "every record whole, and nothing lost or made");
  Check(saved->transfers >= 1000 && saved->transfers < transfers, "the writers went on meanwhile");
}
