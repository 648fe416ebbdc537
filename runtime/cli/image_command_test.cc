#include "runtime/cli/image_command.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/testing_dir.h"
#include "runtime/image/fake_source.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Outcome {
  int status;
  std::string out;
  std::string err;
};

Outcome RunWith(const std::vector<std::string>& files, const std::string& raw = "") {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int status = RunImage({files, raw});
  std::fflush(stdout);
  return {status, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// As ImageOf, with another identity: nothing but the header names it, so only its hash and what is
// chained to it change.
std::string Reidentify(FakeMemory memory, const ImageId& id, const ImageId& base) {
  std::string image = ImageOf(memory, base);
  ImageHeader header = FakeHeader(memory, base);
  header.id = id;
  SealHeader(&header);
  std::memcpy(image.data(), &header, sizeof(header));
  ImagePosition position = Behind(header);
  for (const size_t at : PartsOf(image)) {
    ImageRecord record;
    std::memcpy(&record, image.data() + at, sizeof(record));
    if (record.magic == kRecordMagic) {
      SealRecord(position.chain, &record);
      position = Behind(position, record);
      std::memcpy(image.data() + at, &record, sizeof(record));
    } else {
      ImageEnd end;
      SealEnd(position, &end);
      std::memcpy(image.data() + at, &end, sizeof(end));
    }
  }
  return image;
}

class ImageCommandTest : public ::testing::Test {
 protected:
  const TestingDir dir_;
  const FakeMemory memory_ = FakeMemory::Sample();
  const std::string full_ = dir_.Write("full", ImageOf(memory_));
};

TEST_F(ImageCommandTest, SaysWhatItIs) {
  const Outcome run = RunWith({full_});
  EXPECT_EQ(run.status, 0);
  EXPECT_EQ(run.err, "");
  EXPECT_THAT(run.out,
              StartsWith(full_ + ": full image of 'fake region', 12.0 MiB, 11 pages in 5 "));
  EXPECT_THAT(run.out, HasSubstr("snapshot 00000000000012340000000000005678.7\n"));
  const std::string later = dir_.Write("later", ImageOf(memory_, kFakeBase));
  EXPECT_THAT(RunWith({later}).out, HasSubstr("incremental image"));
  EXPECT_THAT(RunWith({later}).out, HasSubstr(".7 since 00000000000012340000000000005678.5"));
}

TEST_F(ImageCommandTest, ALineForEachThatIsNotWhole) {
  const std::string image = ImageOf(memory_);
  std::string damaged = image;
  damaged[2 * kImagePage] ^= 1;
  const std::vector<std::string> bad = {
      dir_.Under("missing"),
      dir_.Write("empty", ""),
      dir_.Write("other", std::string(5000, 'x')),
      dir_.Write("torn", image.substr(0, image.size() - kImagePage)),
      dir_.Write("damaged", damaged),
      dir_.Write("longer", image + "x"),
      dir_.path(),
  };
  for (const std::string& path : bad) {
    const Outcome run = RunWith({path});
    EXPECT_EQ(run.status, ToInt(ExitStatus::kBadImage)) << path;
    EXPECT_EQ(run.out, "");
    EXPECT_THAT(run.err, StartsWith("hostmm: " + path + ": "));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
  // One bad one does not hide the others.
  const Outcome run = RunWith({bad[1], full_});
  EXPECT_EQ(run.status, ToInt(ExitStatus::kBadImage));
  EXPECT_THAT(run.out, StartsWith(full_));
}

TEST_F(ImageCommandTest, MakesTheMemoryOfAChain) {
  FakeMemory changed(memory_.bytes.size());
  changed.Fill(1, 100);
  changed.Clear(511);
  changed.Fill(4 * 512, 101);
  FakeMemory changed_again(memory_.bytes.size());
  changed_again.Fill(0, 102);
  const ImageId second = {{kFakeId.random[0], kFakeId.random[1]}, 8};
  const ImageId third = {{kFakeId.random[0], kFakeId.random[1]}, 12};
  const std::string tue = dir_.Write("tue", Reidentify(changed, second, kFakeId));
  const std::string wed = dir_.Write("wed", Reidentify(changed_again, third, second));
  const std::string raw = dir_.Under("raw");
  const Outcome run = RunWith({full_, tue, wed}, raw);
  EXPECT_EQ(run.status, 0) << run.err;
  std::string expected = memory_.bytes;
  for (const uint64_t page : {1, 511, 4 * 512}) {
    expected.replace(page * kImagePage, kImagePage, changed.bytes, page * kImagePage, kImagePage);
  }
  expected.replace(0, kImagePage, changed_again.bytes, 0, kImagePage);
  EXPECT_TRUE(Read(raw) == expected);
  struct stat info;
  ASSERT_EQ(stat(raw.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_LT(info.st_blocks * 512, 1 << 20) << "it has no holes";

  for (const auto& [files, why] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{tue}, "give the full image first"},
           {{full_, wed}, "in the order"},
           {{full_, wed, tue}, "in the order"},
           {{full_, full_}, "one full image"}}) {
    const std::string other = dir_.Under("other");
    const Outcome refused = RunWith(files, other);
    EXPECT_EQ(refused.status, ToInt(ExitStatus::kBadImage));
    EXPECT_THAT(refused.err, HasSubstr(why));
    EXPECT_NE(access(other.c_str(), F_OK), 0) << "was left behind";
  }
}

TEST_F(ImageCommandTest, WritesOverNothing) {
  const std::string precious = dir_.Write("precious", "content");
  const Outcome run = RunWith({full_}, precious);
  EXPECT_EQ(run.status, ToInt(ExitStatus::kImageNotWritten));
  EXPECT_THAT(run.err, HasSubstr("exists already"));
  EXPECT_EQ(Read(precious), "content");
  EXPECT_EQ(RunWith({full_}, dir_.path()).status, ToInt(ExitStatus::kImageNotWritten));
  EXPECT_EQ(RunWith({full_}, "/dev/null").status, ToInt(ExitStatus::kImageNotWritten));
}

}  // namespace
}  // namespace hostmm
