#include "runtime/image/image_load.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/image/fake_source.h"
#include "runtime/image/image_format.h"
#include "runtime/mapping.h"
#include "runtime/unique_fd.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;

UniqueFd FileOf(const std::string& bytes) {
  UniqueFd file(memfd_create("image", MFD_CLOEXEC));
  EXPECT_EQ(write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  EXPECT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
  return file;
}

struct Loaded {
  int error;
  std::string why;
};

Loaded Load(
    const UniqueFd& file, std::string* memory,
    RemoveMemory remove = [](void*, size_t) { return -1; }) {
  char why[256] = "";
  const int error = LoadImage(file.get(), memory->data(), memory->size(), why, sizeof(why), remove);
  return {error, why};
}

TEST(ImageLoadTest, AFullImageIsTheMemoryWhateverWasThere) {
  const FakeMemory memory = FakeMemory::Sample();
  const UniqueFd file = FileOf(ImageOf(memory));
  std::string target(memory.bytes.size() + 100, 'x');
  EXPECT_EQ(Load(file, &target).error, 0);
  EXPECT_TRUE(target.substr(0, memory.bytes.size()) == memory.bytes);
  // What is behind the image's length is not its business.
  EXPECT_EQ(target.substr(memory.bytes.size()), std::string(100, 'x'));
}

TEST(ImageLoadTest, AnIncrementalImageChangesWhatHasChanged) {
  FakeMemory changed(2 * kImageBlock);
  changed.Fill(3, 1);
  changed.Clear(4);
  changed.Clear(700);
  const UniqueFd file = FileOf(ImageOf(changed, kFakeBase));
  std::string target(changed.bytes.size(), 'x');
  EXPECT_EQ(Load(file, &target).error, 0);
  std::string expected(changed.bytes.size(), 'x');
  for (const uint64_t page : {3, 4, 700}) {
    expected.replace(page * kImagePage, kImagePage,
                     changed.bytes.substr(page * kImagePage, kImagePage));
  }
  EXPECT_TRUE(target == expected);
}

TEST(ImageLoadTest, HolesCostNoMemory) {
  const FakeMemory memory = FakeMemory::Sample();
  const UniqueFd shared(memfd_create("target", MFD_CLOEXEC));
  const size_t bytes = 16 * kImageBlock;
  ASSERT_EQ(ftruncate(shared.get(), static_cast<off_t>(bytes)), 0);
  const Mapping mapping(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, shared.get(), 0),
                        bytes);
  ASSERT_TRUE(mapping.ok());
  FakeMemory sparse(bytes);
  sparse.Fill(8 * 512 + 1, 1);
  memset(mapping.data(), 'x', bytes);
  char why[256];
  ASSERT_EQ(LoadImage(FileOf(ImageOf(sparse)).get(), mapping.data(), bytes, why, sizeof(why)), 0);
  struct stat info;
  ASSERT_EQ(fstat(shared.get(), &info), 0);
  // The block with the page, and two at the ends of the gaps if the mapping is not aligned.
  EXPECT_LE(static_cast<uint64_t>(info.st_blocks) * 512, 4 * kImageBlock);
  EXPECT_EQ(memcmp(mapping.data(), sparse.bytes.data(), bytes), 0);
}

TEST(ImageLoadTest, WhatIsBehindTheEndStaysInThePipe) {
  FakeMemory memory(kImageBlock);
  memory.Fill(1, 1);
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd out(ends[0]);
  UniqueFd in(ends[1]);
  const std::string text = ImageOf(memory) + "next";
  ASSERT_EQ(write(in.get(), text.data(), text.size()), static_cast<ssize_t>(text.size()));
  std::string target(memory.bytes.size(), 'x');
  EXPECT_EQ(Load(out, &target).error, 0);
  char rest[5] = "";
  EXPECT_EQ(read(out.get(), rest, 4), 4);
  EXPECT_STREQ(rest, "next");
}

TEST(ImageLoadTest, NoRoomIsFoundBeforeAnythingIsChanged) {
  const FakeMemory memory = FakeMemory::Sample();
  std::string target(memory.bytes.size() - 1, 'x');
  EXPECT_EQ(Load(FileOf(ImageOf(memory)), &target).error, EFBIG);
  EXPECT_TRUE(target == std::string(memory.bytes.size() - 1, 'x'));
}

TEST(ImageLoadTest, WhatIsNoImageIsEinval) {
  std::string target(kImageBlock, 'x');
  EXPECT_EQ(Load(FileOf(""), &target).error, EINVAL);
  EXPECT_EQ(Load(FileOf("short"), &target).error, EINVAL);
  EXPECT_EQ(Load(FileOf(std::string(1 << 16, 'a')), &target).error, EINVAL);
  std::string later = ImageOf(FakeMemory(kImageBlock));
  later[8] = 2;
  const Loaded loaded = Load(FileOf(later), &target);
  EXPECT_EQ(loaded.error, EINVAL);
  EXPECT_THAT(loaded.why, HasSubstr("another version"));
  EXPECT_EQ(Load(UniqueFd(open("/dev/null", O_WRONLY | O_CLOEXEC)), &target).error, EBADF);
}

// Every byte of every part, but for the pages, where some must do.
TEST(ImageLoadTest, EveryFlippedBitIsFound) {
  FakeMemory memory(kImageBlock + 8 * kImagePage);
  memory.Fill(5, 1);
  memory.Fill(6, 2);
  memory.Fill(515, 3);
  const std::string image = ImageOf(memory);
  std::string target(memory.bytes.size(), '\0');
  ASSERT_EQ(Load(FileOf(image), &target).error, 0);
  const UniqueFd file = FileOf(image);
  for (size_t at = 0; at < image.size(); ++at) {
    const bool is_page = at >= 2 * kImagePage && at < 4 * kImagePage;
    if (is_page && at % 61 != 0) continue;
    const char flipped = static_cast<char>(image[at] ^ (1 << at % 8));
    ASSERT_EQ(pwrite(file.get(), &flipped, 1, static_cast<off_t>(at)), 1);
    ASSERT_EQ(lseek(file.get(), 0, SEEK_SET), 0);
    const int error = Load(file, &target).error;
    ASSERT_TRUE(error == EILSEQ || (error == EINVAL && at < 12)) << "byte " << at << ": " << error;
    ASSERT_EQ(pwrite(file.get(), &image[at], 1, static_cast<off_t>(at)), 1);
  }
}

TEST(ImageLoadTest, EveryTruncationIsFound) {
  const std::string image = ImageOf(FakeMemory::Sample());
  std::string target(8 * kImageBlock, '\0');
  for (size_t length = sizeof(uint64_t); length < image.size(); length += 1024) {
    ASSERT_EQ(Load(FileOf(image.substr(0, length)), &target).error, EILSEQ) << length;
  }
}

// A damaged record's pages do not reach the memory.
TEST(ImageLoadTest, MemoryGetsNothingThatWasNotChecked) {
  FakeMemory memory(kImageBlock);
  memory.Fill(5, 1);
  std::string image = ImageOf(memory);
  image[2 * kImagePage + 7] ^= 1;
  std::string target(memory.bytes.size(), 'x');
  const Loaded loaded = Load(FileOf(image), &target);
  EXPECT_EQ(loaded.error, EILSEQ);
  EXPECT_THAT(loaded.why, HasSubstr("at byte 4096"));
  EXPECT_TRUE(target == std::string(memory.bytes.size(), 'x'));
}

std::string Cut(const std::string& image, size_t from, size_t to) {
  return image.substr(from, to - from);
}

TEST(ImageLoadTest, RecordsThatAreMissingMovedOrDoubledAreFound) {
  const std::string image = ImageOf(FakeMemory::Sample());
  const std::vector<size_t> parts = PartsOf(image);
  const std::string head = image.substr(0, parts[0]);
  const std::string first = Cut(image, parts[0], parts[1]);
  const std::string second = Cut(image, parts[1], parts[2]);
  const std::string rest = image.substr(parts[2]);
  std::string target(8 * kImageBlock, '\0');
  ASSERT_EQ(Load(FileOf(head + first + second + rest), &target).error, 0);
  EXPECT_EQ(Load(FileOf(head + second + rest), &target).error, EILSEQ);
  EXPECT_EQ(Load(FileOf(head + first + rest), &target).error, EILSEQ);
  EXPECT_EQ(Load(FileOf(head + second + first + rest), &target).error, EILSEQ);
  EXPECT_EQ(Load(FileOf(head + first + first + second + rest), &target).error, EILSEQ);
  EXPECT_EQ(Load(FileOf(head + image.substr(parts.back())), &target).error, EILSEQ);
  // A record of another image of the same region.
  const std::string other = ImageOf(FakeMemory::Sample(), kFakeBase);
  EXPECT_EQ(Load(FileOf(head + Cut(other, parts[0], other.size())), &target).error, EILSEQ);
}

// Forged: the hashes are right, the fields are not.
struct Forgery {
  const char* what;
  std::function<void(ImageHeader*)> header = [](ImageHeader*) {};
  std::function<void(ImageRecord*)> record = [](ImageRecord*) {};
  std::function<void(ImageEnd*)> end = [](ImageEnd*) {};
};

// One record, of block 1, with pages 0 and 9, of a region of 2 blocks and a page less.
std::string Forge(const Forgery& forgery) {
  FakeMemory memory(2 * kImageBlock - kImagePage);
  memory.Fill(512, 1);
  memory.Fill(521, 2);
  ImageHeader header = FakeHeader(memory);
  forgery.header(&header);
  SealHeader(&header);
  std::string image = ImageOf(memory);
  ImageRecord record;
  memcpy(&record, image.data() + kImagePage, sizeof(record));
  forgery.record(&record);
  ImagePosition position = Behind(header);
  SealRecord(position.chain, &record);
  position = Behind(position, record);
  ImageEnd end;
  SealEnd(position, &end);
  forgery.end(&end);
  end.hash = ImageHash(&end, offsetof(ImageEnd, hash), position.chain);
  memcpy(image.data(), &header, sizeof(header));
  memcpy(image.data() + kImagePage, &record, sizeof(record));
  memcpy(image.data() + image.size() - sizeof(end), &end, sizeof(end));
  return image;
}

TEST(ImageLoadTest, ForgedFieldsAreRefused) {
  std::vector<Forgery> forgeries = {
      {.what = "unit", .header = [](ImageHeader* h) { h->unit = 8192; }},
      {.what = "no length", .header = [](ImageHeader* h) { h->length = 0; }},
      {.what = "odd length", .header = [](ImageHeader* h) { h->length -= 1; }},
      {.what = "endless", .header = [](ImageHeader* h) { h->length = ~uint64_t{4095}; }},
      {.what = "no id", .header = [](ImageHeader* h) { h->id = {}; }},
      {.what = "base of another",
       .header =
           [](ImageHeader* h) {
             h->base = {{1, 2}, 3};
           }},
      {.what = "later base",
       .header =
           [](ImageHeader* h) {
             h->base = h->id;
             ++h->base.sequence;
           }},
      {.what = "endless name", .header = [](ImageHeader* h) { memset(h->name, 'x', 64); }},
      {.what = "reserved", .header = [](ImageHeader* h) { h->reserved[3943] = 1; }},
      {.what = "block outside", .record = [](ImageRecord* r) { r->block = 2; }},
      {.what = "block far outside", .record = [](ImageRecord* r) { r->block = ~uint64_t{0}; }},
      {.what = "block that overflows",
       .record = [](ImageRecord* r) { r->block = uint64_t{1} << 43; }},
      {.what = "page outside",
       .record =
           [](ImageRecord* r) {
             r->data.Clear(9);
             r->data.Set(511);
           }},
      {.what = "more pages than bits", .record = [](ImageRecord* r) { r->data_pages = 600; }},
      {.what = "fewer pages than bits", .record = [](ImageRecord* r) { r->data_pages = 1; }},
      {.what = "zeros in a full image",
       .record =
           [](ImageRecord* r) {
             r->zero.Set(20);
             r->zero_pages = 1;
           }},
      {.what = "nothing in it",
       .record =
           [](ImageRecord* r) {
             r->data = {};
             r->data_pages = 0;
           }},
      {.what = "reserved", .record = [](ImageRecord* r) { r->reserved[0] = 1; }},
      {.what = "records", .end = [](ImageEnd* e) { ++e->records; }},
      {.what = "pages", .end = [](ImageEnd* e) { --e->data_pages; }},
      {.what = "zeros", .end = [](ImageEnd* e) { ++e->zero_pages; }},
      {.what = "bytes", .end = [](ImageEnd* e) { e->bytes += 4096; }},
      {.what = "reserved", .end = [](ImageEnd* e) { e->reserved[0] = 1; }},
  };
  std::string target(4 * kImageBlock, '\0');
  ASSERT_EQ(Load(FileOf(Forge({.what = "nothing"})), &target).error, 0);
  for (const Forgery& forgery : forgeries) {
    const Loaded loaded = Load(FileOf(Forge(forgery)), &target);
    EXPECT_EQ(loaded.error, EILSEQ) << forgery.what;
    EXPECT_THAT(loaded.why, HasSubstr("makes no sense")) << forgery.what;
  }
}

TEST(ImageLoadTest, DataAndZeroOfOnePageAreRefused) {
  const Loaded loaded = [] {
    std::string target(4 * kImageBlock, '\0');
    return Load(FileOf(Forge({.what = "both",
                              .header = [](ImageHeader* h) { h->base = kFakeBase; },
                              .record =
                                  [](ImageRecord* r) {
                                    r->zero.Set(9);
                                    r->zero_pages = 1;
                                  }})),
                &target);
  }();
  EXPECT_EQ(loaded.error, EILSEQ);
}

}  // namespace
}  // namespace hostmm
