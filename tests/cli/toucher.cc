// A guest for the tests: maps 16 MiB of shared memory, fills the first half, prints "ADDRESS up",
// and on SIGUSR1 fills the second half, reads all of it back and prints "done". Ends with 1 if a
// byte is not what was written.

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>

namespace {

constexpr size_t kBytes = size_t{16} << 20;
constexpr size_t kPage = 4096;

unsigned char ByteOf(size_t page) { return static_cast<unsigned char>(page * 7 + 1); }

void Fill(unsigned char* memory, size_t from, size_t to) {
  for (size_t at = from; at < to; at += kPage) memory[at] = ByteOf(at / kPage);
}

}  // namespace

int main() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  void* mapped = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return 2;
  unsigned char* memory = static_cast<unsigned char*>(mapped);
  Fill(memory, 0, kBytes / 2);
  std::printf("%lx up\n", reinterpret_cast<unsigned long>(mapped));
  std::fflush(stdout);
  int signal = 0;
  sigwait(&set, &signal);
  Fill(memory, kBytes / 2, kBytes);
  for (size_t at = 0; at < kBytes; at += kPage) {
    if (memory[at] != ByteOf(at / kPage)) return 1;
  }
  std::puts("done");
  return 0;
}
