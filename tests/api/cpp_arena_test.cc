// Arena: where its memory is, how much of the region it can use, what a fork, a purge and a
// read-only region do to it, and that others can read what it made.
#include <jemalloc/jemalloc.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/arena.h"
#include "tests/api/cpp_session.h"
#include "tests/testing/child.h"

namespace hostmm::test {
namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kPageBytes = 4096;

using String = std::basic_string<char, std::char_traits<char>, ArenaAllocator<char>>;
using Dictionary =
    std::map<int, String, std::less<int>, ArenaAllocator<std::pair<const int, String>>>;

class ArenaTest : public testing::Test {
 protected:
  void SetUp() override {
    session_ = OpenSession();
    ASSERT_TRUE(session_.is_open());
  }

  std::unique_ptr<Arena> MakeArena(size_t bytes, ShareMode share = ShareMode::kSharedPt) {
    MapOptions options;
    options.share = share;
    absl::StatusOr<Region> region = session_.MapAnonymous(bytes, options);
    if (!region.ok()) {
      ADD_FAILURE() << region.status();
      return nullptr;
    }
    absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(*std::move(region));
    if (!arena.ok()) {
      ADD_FAILURE() << arena.status();
      return nullptr;
    }
    return *std::move(arena);
  }

  Session session_;
};

// Whether all of [at, at + bytes) is inside the arena.
bool Inside(const Arena& arena, const void* at, size_t bytes) {
  return arena.Contains(at) && arena.Contains(static_cast<const char*>(at) + bytes - 1);
}

// Allocates blocks of `bytes` until there is no room.
std::vector<void*> FillWith(Arena* arena, size_t bytes) {
  std::vector<void*> blocks;
  while (void* block = arena->Allocate(bytes)) blocks.push_back(block);
  return blocks;
}

void FreeAll(Arena* arena, const std::vector<void*>& blocks) {
  for (void* block : blocks) arena->Deallocate(block);
}

TEST_F(ArenaTest, GivesDisjointAlignedMemoryOfTheRegionOnly) {
  const auto arena = MakeArena(16 * kMiB);
  ASSERT_NE(arena, nullptr);
  std::map<uintptr_t, size_t> taken;
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{24}, size_t{4096}, size_t{5000}, kMiB}) {
    for (size_t alignment : {size_t{8}, size_t{64}, kPageBytes, 2 * kMiB}) {
      void* at = arena->Allocate(bytes, alignment);
      ASSERT_NE(at, nullptr) << bytes << " at " << alignment;
      EXPECT_TRUE(Inside(*arena, at, std::max<size_t>(bytes, 1)));
      EXPECT_EQ(reinterpret_cast<uintptr_t>(at) % alignment, 0u);
      std::memset(at, 0x5a, bytes);
      EXPECT_TRUE(
          taken.emplace(reinterpret_cast<uintptr_t>(at), std::max<size_t>(bytes, 1)).second);
    }
  }
  uintptr_t end = 0;
  for (const auto& [at, bytes] : taken) {
    EXPECT_GE(at, end);
    end = at + bytes;
  }
}

TEST_F(ArenaTest, SmallRegionIsRefused) {
  absl::StatusOr<std::unique_ptr<Arena>> none = Arena::Create(Region());
  EXPECT_EQ(ErrnoOf(none.status()), EINVAL);
  MapOptions plain;
  plain.share = ShareMode::kUnshare;
  absl::StatusOr<Region> page = session_.MapAnonymous(kPageBytes, plain);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(ErrnoOf(Arena::Create(*std::move(page)).status()), EINVAL);
}

TEST_F(ArenaTest, ExhaustionIsNullThenBadAllocThenUsableAgain) {
  const auto arena = MakeArena(16 * kMiB);
  ASSERT_NE(arena, nullptr);
  const std::vector<void*> blocks = FillWith(arena.get(), 64 << 10);
  for (void* block : blocks) EXPECT_TRUE(Inside(*arena, block, 64 << 10));
  // 64 KiB and the page that jemalloc adds to spread large blocks over cache sets: at least 9/10.
  EXPECT_GE(blocks.size() * ((64 << 10) + kPageBytes), 16 * kMiB / 10 * 9);
  ArenaAllocator<uint64_t> allocator(arena.get());
  EXPECT_THROW((void)allocator.allocate(kMiB), std::bad_alloc);
  EXPECT_THROW((void)allocator.allocate(SIZE_MAX / 4), std::bad_array_new_length);
  EXPECT_EQ(arena->Allocate(SIZE_MAX / 2), nullptr);
  FreeAll(arena.get(), blocks);
  EXPECT_GE(FillWith(arena.get(), 64 << 10).size(), blocks.size());
}

TEST_F(ArenaTest, FreedNeighboursBecomeOneBlock) {
  const auto arena = MakeArena(16 * kMiB);
  ASSERT_NE(arena, nullptr);
  FreeAll(arena.get(), FillWith(arena.get(), 64 << 10));
  EXPECT_NE(arena->Allocate(12 * kMiB), nullptr);
}

TEST_F(ArenaTest, TwoArenasAndMallocStayApart) {
  const auto first = MakeArena(4 * kMiB);
  const auto second = MakeArena(4 * kMiB);
  ASSERT_TRUE(first != nullptr && second != nullptr);
  for (int round = 0; round < 1000; ++round) {
    EXPECT_TRUE(Inside(*first, first->Allocate(100), 100));
    EXPECT_TRUE(Inside(*second, second->Allocate(100), 100));
    const auto plain = std::make_unique<char[]>(100);
    EXPECT_FALSE(first->Contains(plain.get()) || second->Contains(plain.get()));
  }
}

TEST_F(ArenaTest, EndedArenasLeaveRoomForOthers) {
  // More than jemalloc has arenas (4095).
  for (int round = 0; round < 5000; ++round) {
    const auto arena = MakeArena(2 * kMiB, ShareMode::kUnshare);
    ASSERT_NE(arena, nullptr) << round;
    ASSERT_NE(arena->Allocate(10), nullptr) << round;
  }
}

TEST_F(ArenaTest, ThreadsAllocateAndFreeForEachOther) {
  const auto arena = MakeArena(32 * kMiB);
  ASSERT_NE(arena, nullptr);
  constexpr int kThreads = 4;
  constexpr int kEach = 2000;
  std::vector<uint64_t*> made[kThreads];
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      for (int i = 0; i < kEach; ++i) {
        made[id].push_back(arena->New<uint64_t>(uint64_t{1000000} * id + i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  threads.clear();
  int wrong[kThreads] = {};
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      const int other = (id + 1) % kThreads;
      for (int i = 0; i < kEach; ++i) {
        if (*made[other][i] != uint64_t{1000000} * other + i) ++wrong[id];
        arena->Deallocate(made[other][i]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int count : wrong) EXPECT_EQ(count, 0);
}

TEST_F(ArenaTest, ContainerIsReadByForkedChild) {
  const auto arena = MakeArena(8 * kMiB);
  ASSERT_NE(arena, nullptr);
  auto* dictionary = arena->New<Dictionary>(ArenaAllocator<Dictionary::value_type>(arena.get()));
  dictionary->emplace(1, String("before the fork", ArenaAllocator<char>(arena.get())));
  Child child(Identity::kSame, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    // Made by the parent after the fork: seen because the memory is shared.
    if (dictionary->size() != 100) return 2;
    if (dictionary->at(1) != "before the fork") return 3;
    if (dictionary->at(100).size() != 100 + 64) return 4;
    // Not the owner: nothing to be had, and nothing freed.
    if (arena->Allocate(1) != nullptr) return 5;
    arena->Deallocate(&dictionary->at(1));
    arena->Purge();
    return 0;
  });
  for (int key = 2; key <= 100; ++key) {
    dictionary->emplace(key, String(key + 64, 'x', ArenaAllocator<char>(arena.get())));
  }
  ASSERT_TRUE(child.channel().Signal());
  EXPECT_EQ(child.Wait(), 0);
  EXPECT_EQ(dictionary->at(1), "before the fork");
}

TEST_F(ArenaTest, ChildCannotPurgeWhatTheParentHasReused) {
  // Below 8 MiB: from there on jemalloc purges at once.
  constexpr size_t kBytes = 6 * kMiB;
  const auto arena = MakeArena(16 * kMiB);
  ASSERT_NE(arena, nullptr);
  arena->Deallocate(arena->Allocate(kBytes));
  Child child(Identity::kSame, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    // Its copy of jemalloc's records says that the 6 MiB are free.
    const std::string all = "arena." + std::to_string(MALLCTL_ARENAS_ALL) + ".purge";
    return mallctl(all.c_str(), nullptr, nullptr, nullptr, 0) == 0 ? 0 : 2;
  });
  auto* again = static_cast<unsigned char*>(arena->Allocate(kBytes));
  ASSERT_NE(again, nullptr);
  std::memset(again, 7, kBytes);
  ASSERT_TRUE(child.channel().Signal());
  ASSERT_EQ(child.Wait(), 0);
  EXPECT_EQ(std::count(again, again + kBytes, 7), static_cast<ptrdiff_t>(kBytes));
}

TEST_F(ArenaTest, PurgeGivesWholeGranulesBack) {
  const auto arena = MakeArena(32 * kMiB);
  ASSERT_NE(arena, nullptr);
  auto* kept = static_cast<unsigned char*>(arena->Allocate(kMiB));
  auto* freed = static_cast<unsigned char*>(arena->Allocate(16 * kMiB));
  ASSERT_TRUE(kept != nullptr && freed != nullptr);
  std::memset(kept, 1, kMiB);
  std::memset(freed, 2, 16 * kMiB);
  arena->Deallocate(freed);
  arena->Purge();
  EXPECT_EQ(std::count(kept, kept + kMiB, 1), static_cast<ptrdiff_t>(kMiB));
  // At least 7 of the 9 granules that it may touch are whole.
  EXPECT_GE(std::count(freed, freed + 16 * kMiB, 0), static_cast<ptrdiff_t>(14 * kMiB));
}

// jemalloc's records hold its locks: a fork, and a protected region, must not touch them.
TEST_F(ArenaTest, RegionMayBeReadOnlyWhileOthersForkAndAllocate) {
  const auto arena = MakeArena(8 * kMiB);
  ASSERT_NE(arena, nullptr);
  auto* number = arena->New<int>(42);
  ASSERT_TRUE(arena->region().Protect(Protection::kRead).ok());
  Child child(Identity::kSame, [&](Channel&) {
    const std::vector<int> plain(1000, *number);
    return plain[999] == 42 ? 0 : 1;
  });
  EXPECT_EQ(child.Wait(), 0);
  // Allocating is not writing.
  auto* later = static_cast<int*>(arena->Allocate(sizeof(int)));
  EXPECT_NE(later, nullptr);
  ASSERT_TRUE(arena->region().Protect(Protection::kReadWrite).ok());
  *later = 1;
  arena->Deallocate(number);
}

TEST(NamedArenaTest, IsReadAtTheSameAddressByAnother) {
  const TestPager pager;
  Child reader(Identity::kSame, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    Options options;
    options.socket = pager.socket();
    absl::StatusOr<Session> session = Session::Open(options);
    if (!session.ok()) return 2;
    absl::StatusOr<Region> region = OpenArena(*session, "arena");
    if (!region.ok()) return 3;
    absl::StatusOr<const Dictionary*> root = RootOf<Dictionary>(*region);
    if (!root.ok()) return 4;
    if ((*root)->size() != 3 || (*root)->at(2) != std::string(100, 'b').c_str()) return 5;
    // A second mapping cannot be at the same address.
    if (ErrnoOf(OpenArena(*session, "arena").status()) != EEXIST) return 6;
    if (ErrnoOf(OpenArena(*session, "none").status()) != ENOENT) return 7;
    return ErrnoOf(OpenArena(*session, "empty").status()) == EINVAL ? 0 : 8;
  });
  Options options;
  options.socket = pager.socket();
  absl::StatusOr<Session> session = Session::Open(options);
  ASSERT_TRUE(session.ok()) << session.status();
  absl::StatusOr<Region> empty = session->CreateNamed("empty", 2 * kMiB, S_IRUSR | S_IWUSR);
  absl::StatusOr<Region> region = session->CreateNamed("arena", 8 * kMiB, S_IRUSR | S_IWUSR);
  ASSERT_TRUE(empty.ok() && region.ok()) << region.status();
  absl::StatusOr<std::unique_ptr<Arena>> arena = Arena::Create(*std::move(region));
  ASSERT_TRUE(arena.ok()) << arena.status();
  EXPECT_EQ(RootOf<int>((*arena)->region()).status().code(), absl::StatusCode::kNotFound);
  const ArenaAllocator<char> chars(arena->get());
  auto* dictionary = (*arena)->New<Dictionary>(ArenaAllocator<Dictionary::value_type>(chars));
  for (int key = 1; key <= 3; ++key) dictionary->emplace(key, String(100, 'a' + key - 1, chars));
  (*arena)->Publish(dictionary);
  ASSERT_TRUE(reader.channel().Signal());
  EXPECT_EQ(reader.Wait(), 0);
}

TEST_F(ArenaTest, RootIsBelievedOnlyWithinTheRegion) {
  const auto arena = MakeArena(2 * kMiB);
  ASSERT_NE(arena, nullptr);
  arena->Publish(arena->New<int>(1));
  EXPECT_TRUE(RootOf<int>(arena->region()).ok());
  // A type that does not fit behind the root, and a root that others have written: the third word
  // of the header.
  struct Large {
    char bytes[2 << 20];
  };
  EXPECT_EQ(ErrnoOf(RootOf<Large>(arena->region()).status()), EINVAL);
  auto* words = reinterpret_cast<uint64_t*>(arena->region().data());
  const uint64_t base = reinterpret_cast<uint64_t>(words);
  for (uint64_t wrong : {uint64_t{8}, base, base + kPageBytes + 1, base + 2 * kMiB - 2,
                         base + 2 * kMiB, ~uint64_t{3}}) {
    words[2] = wrong;
    EXPECT_EQ(ErrnoOf(RootOf<int>(arena->region()).status()), EINVAL) << std::hex << wrong;
  }
  words[0] = 0;
  EXPECT_EQ(ErrnoOf(RootOf<int>(arena->region()).status()), EINVAL);
}

TEST_F(ArenaTest, DestructorLeavesWhatOthersRead) {
  auto arena = MakeArena(16 * kMiB);
  ASSERT_NE(arena, nullptr);
  auto* data = static_cast<unsigned char*>(arena->Allocate(8 * kMiB));
  ASSERT_NE(data, nullptr);
  std::memset(data, 9, 8 * kMiB);
  Child reader(Identity::kSame, [&](Channel& channel) {
    if (!channel.Await()) return 1;
    return std::count(data, data + 8 * kMiB, 9) == static_cast<ptrdiff_t>(8 * kMiB) ? 0 : 2;
  });
  arena.reset();
  ASSERT_TRUE(reader.channel().Signal());
  EXPECT_EQ(reader.Wait(), 0);
}

}  // namespace
}  // namespace hostmm::test
