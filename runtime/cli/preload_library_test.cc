#include "runtime/cli/preload_library.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/testing_dir.h"
#include "runtime/cli/version.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

const std::string kContent = std::string("\0ELF-like\0", 10) + HOSTMM_PRELOAD_MARK + "tail";

TEST(PreloadLibraryTest, IsFoundBesideTheBinary) {
  const TestingDir dir;
  const std::string path = dir.Write(kPreloadFileName, kContent);
  const auto found = FindPreloadLibraryFrom(dir.path());
  ASSERT_EQ(FailureOf(found), nullptr);
  EXPECT_EQ(std::get<PreloadLibrary>(found).path, path);
  EXPECT_EQ(std::get<PreloadLibrary>(found).version, HOSTMM_VERSION);
  EXPECT_FALSE(CheckPreloadVersion(std::get<PreloadLibrary>(found)).has_value());
}

TEST(PreloadLibraryTest, IsFoundInAnInstalledTree) {
  for (const std::string folder : {"lib/", "lib/hostmm/"}) {
    const TestingDir dir;
    fs::create_directories(dir.Under(folder));
    fs::create_directory(dir.Under("bin"));
    const std::string path = dir.Write(folder + kPreloadFileName, kContent);
    const auto found = FindPreloadLibraryFrom(dir.Under("bin"));
    ASSERT_EQ(FailureOf(found), nullptr) << folder;
    EXPECT_EQ(std::get<PreloadLibrary>(found).path, path);
  }
}

TEST(PreloadLibraryTest, AbsentLibraryIsAFailureThatSaysWhere) {
  const TestingDir dir;
  const auto found = FindPreloadLibraryFrom(dir.path());
  ASSERT_NE(FailureOf(found), nullptr);
  EXPECT_EQ(FailureOf(found)->status, ExitStatus::kNoPreload);
  EXPECT_THAT(FailureOf(found)->text, HasSubstr(dir.path()));
}

TEST(PreloadLibraryTest, PathThatLdPreloadCannotCarry) {
  const TestingDir dir;
  fs::create_directory(dir.Under("a b"));
  dir.Write(std::string("a b/") + kPreloadFileName, kContent);
  const auto found = FindPreloadLibraryFrom(dir.Under("a b"));
  ASSERT_NE(FailureOf(found), nullptr);
  EXPECT_THAT(FailureOf(found)->text, HasSubstr("blank or a colon"));
}

TEST(PreloadLibraryTest, OtherVersionsAreToldApart) {
  const TestingDir dir;
  for (const std::string& content :
       {std::string(HOSTMM_PRELOAD_MARK_PREFIX "0.0.9;"), std::string("no mark"),
        std::string(HOSTMM_PRELOAD_MARK_PREFIX "unfinished"), std::string()}) {
    dir.Write(kPreloadFileName, content);
    const auto found = FindPreloadLibraryFrom(dir.path());
    ASSERT_EQ(FailureOf(found), nullptr);
    const auto failure = CheckPreloadVersion(std::get<PreloadLibrary>(found));
    ASSERT_TRUE(failure.has_value()) << content;
    EXPECT_EQ(failure->status, ExitStatus::kVersionMismatch);
  }
}

TEST(PreloadLibraryTest, ReachIsThatOfTheNarrowestFolder) {
  const TestingDir dir;  // mkdtemp makes it 0700
  dir.Write(kPreloadFileName, kContent);
  const auto closed = FindPreloadLibraryFrom(dir.path());
  ASSERT_EQ(FailureOf(closed), nullptr);
  EXPECT_EQ(std::get<PreloadLibrary>(closed).reach, Reach::kOwnerOnly);
  fs::permissions(dir.path(), fs::perms::owner_all | fs::perms::others_exec);
  fs::permissions(dir.Under(kPreloadFileName), fs::perms::owner_read | fs::perms::others_read);
  const auto open = FindPreloadLibraryFrom(dir.path());
  ASSERT_EQ(FailureOf(open), nullptr);
  EXPECT_EQ(std::get<PreloadLibrary>(open).reach, Reach::kEveryone);
}

}  // namespace
}  // namespace hostmm
