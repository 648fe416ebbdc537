// What hostmm does for a program that knows nothing of it: one shared region, many processes that
// use all of it.
//
//   many_children                            the kernel's page tables for it, plain
//   hostmm run -- many_children              the same program, the same memory
//
// Prints one line: the sum of VmPTE over the children, and whether each saw what the others wrote.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

namespace {

constexpr size_t kBytes = size_t{256} << 20;
constexpr size_t kPage = 4096;
constexpr int kChildren = 16;

struct Board {
  uint64_t page_table_kb[kChildren];
  bool right[kChildren];
};

uint64_t PageTableKb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmPTE:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10);
  }
  return 0;
}

void UseAllOf(const volatile char* region, Board* board, int child) {
  board->right[child] = true;
  for (size_t at = 0; at < kBytes; at += kPage) {
    if (region[at] != static_cast<char>(at / kPage)) board->right[child] = false;
  }
  board->page_table_kb[child] = PageTableKb();
}

template <class T>
T* MapShared(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at != MAP_FAILED) return static_cast<T*>(at);
  std::perror("mmap");
  std::exit(1);
}

}  // namespace

int main() {
  auto* region = MapShared<char>(kBytes);
  auto* board = MapShared<Board>(sizeof(Board));  // below 8 MiB: hostmm leaves it alone
  for (size_t at = 0; at < kBytes; at += kPage) region[at] = static_cast<char>(at / kPage);
  for (int child = 0; child < kChildren; ++child) {
    if (fork() == 0) {
      UseAllOf(region, board, child);
      _exit(0);
    }
  }
  while (wait(nullptr) > 0) {
  }
  uint64_t sum = 0;
  bool right = true;
  for (int child = 0; child < kChildren; ++child) {
    sum += board->page_table_kb[child];
    right = right && board->right[child];
  }
  std::printf("%d children, %zu MiB shared: %lu kB of page tables, content %s\n", kChildren,
              kBytes >> 20, static_cast<unsigned long>(sum), right ? "right" : "WRONG");
  return right ? 0 : 1;
}
