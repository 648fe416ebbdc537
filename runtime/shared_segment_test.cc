#include "runtime/shared_segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace hostmm {
namespace {

constexpr size_t kBytes = 1 << 20;

class SharedSegmentTest : public testing::Test {
 protected:
  SharedSegmentTest() : segment_(*SharedSegment::Create(kBytes)) {}
  // Through a descriptor of its own, as a guest that opens /proc/self/fd/N gets it.
  UniqueFd Reopen(int flags) const {
    const std::string path = "/proc/self/fd/" + std::to_string(segment_.fd.get());
    return UniqueFd(open(path.c_str(), flags | O_CLOEXEC));
  }
  SharedSegment segment_;
};

TEST_F(SharedSegmentTest, WeWriteAndOthersRead) {
  const UniqueFd guest(dup(segment_.fd.get()));
  const Mapping theirs(mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, guest.get(), 0), kBytes);
  ASSERT_TRUE(theirs.ok());
  segment_.memory.data()[123] = std::byte{7};
  EXPECT_EQ(theirs.data()[123], std::byte{7});
}

TEST_F(SharedSegmentTest, NobodyElseCanEverWrite) {
  for (const int flags : {O_RDWR, O_RDONLY}) {
    const UniqueFd guest = Reopen(flags);
    ASSERT_TRUE(guest.ok());
    void* writable = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, guest.get(), 0);
    EXPECT_EQ(writable, MAP_FAILED);
    void* readable = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, guest.get(), 0);
    ASSERT_NE(readable, MAP_FAILED);
    EXPECT_NE(mprotect(readable, kBytes, PROT_READ | PROT_WRITE), 0);
    munmap(readable, kBytes);
    EXPECT_LT(pwrite(guest.get(), "x", 1, 0), 0);
    EXPECT_NE(fallocate(guest.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
  }
}

TEST_F(SharedSegmentTest, ItsSizeAndItsSealsStay) {
  const UniqueFd guest = Reopen(O_RDWR);
  EXPECT_NE(ftruncate(guest.get(), 0), 0);
  EXPECT_NE(ftruncate(guest.get(), 2 * kBytes), 0);
  EXPECT_NE(fcntl(guest.get(), F_ADD_SEALS, F_SEAL_WRITE), 0);
  EXPECT_EQ(errno, EPERM);
}

TEST_F(SharedSegmentTest, OursIsWritableStill) {
  for (size_t i = 0; i < kBytes; i += 4096) segment_.memory.data()[i] = std::byte{1};
}

TEST(SharedSegmentErrorTest, ASizeThatCannotBeHadIsAnError) {
  EXPECT_FALSE(SharedSegment::Create(size_t{1} << 60).ok());
}

}  // namespace
}  // namespace hostmm
