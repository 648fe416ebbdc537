// A buffer pool that is read-only but while somebody writes a page of it: a stray write, in any
// process, is caught where it happens instead of corrupting data.
//
//   buffer_pool                with a pager of its own
//
// kDedicated: a library that calls plain mprotect on the pool by mistake is refused.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/hostmm.h"

namespace {

constexpr size_t kPool = size_t{64} << 20;
constexpr size_t kPage = 8192;  // of the database: two of the machine's

void Check(bool holds, const char* what) {
  std::printf("%s: %s\n", what, holds ? "yes" : "NO");
  if (!holds) std::exit(1);
}

// A process of the pool, forked before anything was protected: it writes when it is told to.
class Worker {
 public:
  explicit Worker(std::byte* at) {
    if (pipe(ends_) != 0) std::exit(1);
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    char go = 0;
    if (read(ends_[0], &go, 1) != 1) _exit(1);
    *const_cast<volatile std::byte*>(at) = std::byte{0xbb};
    _exit(0);
  }
  // How its write ended: 0, or the signal.
  int Write() {
    int status = 0;
    if (write(ends_[1], "g", 1) != 1 || waitpid(pid_, &status, 0) != pid_) std::exit(1);
    return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
  }

 private:
  int ends_[2];
  pid_t pid_;
};

}  // namespace

int main() {
  auto session = hostmm::Session::Open();
  if (!session.ok()) std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
  Check(session.ok(), "attached");
  auto pool = session->MapAnonymous(kPool, {.share = hostmm::ShareMode::kDedicated});
  Check(pool.ok(), "a pool of 64 MiB");
  std::memset(pool->data(), 0xaa, pool->size());

  std::byte* stray = pool->data() + 4000 * kPage;
  std::byte* page = pool->data() + 7 * kPage;
  Worker astray(stray), writer(page), late(page);

  Check(pool->Protect(hostmm::Protection::kRead).ok(), "sealed for all");
  Check(astray.Write() == SIGSEGV, "a stray write in another process is caught");
  Check(*stray == std::byte{0xaa}, "the data is as it was");

  Check(pool->Protect(7 * kPage, kPage, hostmm::Protection::kReadWrite).ok(), "one page opened");
  Check(writer.Write() == 0 && *page == std::byte{0xbb}, "its writer may write");
  Check(pool->Protect(7 * kPage, kPage, hostmm::Protection::kRead).ok(), "and sealed");
  Check(late.Write() == SIGSEGV, "a late write is caught");
  Check(mprotect(pool->data(), kPool, PROT_READ | PROT_WRITE) != 0 && errno == EPERM,
        "plain mprotect is refused");
}
