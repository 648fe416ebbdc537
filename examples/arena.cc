// hostmm::Arena: an ordinary C++ container in shared memory. One process fills it; others read it
// through plain pointers, while nobody can write it.
//
//   arena                      with a pager of its own
#include "runtime/arena.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>

namespace {

using Text = std::basic_string<char, std::char_traits<char>, hostmm::ArenaAllocator<char>>;
using Pair = std::pair<const int, Text>;
using Index = std::map<int, Text, std::less<>, hostmm::ArenaAllocator<Pair>>;

constexpr int kEntries = 10000;
constexpr int kReaders = 4;

void Check(bool holds, const char* what) {
  std::printf("%s: %s\n", what, holds ? "yes" : "NO");
  if (!holds) std::exit(1);
}

std::string Expected(int key) { return "the value of key " + std::to_string(key); }

// In a child: true if it finds every entry, through what the owner has published.
bool ReadsAll(const hostmm::Region& region) {
  auto index = hostmm::RootOf<Index>(region);
  if (!index.ok() || (*index)->size() != kEntries) return false;
  for (int key = 0; key < kEntries; ++key) {
    if ((*index)->at(key) != Expected(key).c_str()) return false;
  }
  return true;
}

}  // namespace

int main() {
  auto session = hostmm::Session::Open();
  if (!session.ok()) std::fprintf(stderr, "%s\n", session.status().ToString().c_str());
  Check(session.ok(), "attached");
  auto region = session->MapAnonymous(size_t{16} << 20);
  Check(region.ok(), "a region of 16 MiB");
  auto arena = hostmm::Arena::Create(*std::move(region));
  Check(arena.ok(), "an arena in it");

  // The allocator goes into the container, and from there into its elements.
  const hostmm::ArenaAllocator<char> memory(arena->get());
  auto* index = (*arena)->New<Index>(memory);
  for (int key = 0; key < kEntries; ++key) {
    index->emplace(key, Text(Expected(key).c_str(), memory));
  }
  Check((*arena)->Contains(index) && (*arena)->Contains(index->at(77).data()), "all of it inside");
  (*arena)->Publish(index);
  Check((*arena)->region().Protect(hostmm::Protection::kRead).ok(), "sealed for all");

  for (int reader = 0; reader < kReaders; ++reader) {
    if (fork() == 0) _exit(ReadsAll((*arena)->region()) ? 0 : 1);
  }
  int right = 0;
  for (int status = 0; wait(&status) > 0;) right += status == 0;
  Check(right == kReaders, "four processes read 10,000 entries");
}
