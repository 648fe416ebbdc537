#include "runtime/cli/runtime_dir.h"

#include <sys/stat.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/testing_dir.h"

namespace hostmm {
namespace {

using ::testing::ElementsAre;

mode_t ModeOf(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 0777;
}

TEST(RuntimeDirTest, IsOpenToThoseWhoKnowItsNameOnly) {
  const TestingDir dir;
  const std::vector<std::string> bases = {dir.path()};
  const mode_t old_mask = umask(0077);
  const auto made = RuntimeDir::Create(bases, Holds::kSocketAndLibrary);
  ASSERT_EQ(FailureOf(made), nullptr);
  const RuntimeDir& runtime = std::get<RuntimeDir>(made);
  const std::string source = dir.Write("lib.so", "the library");
  const auto failure = runtime.CopyLibrary(source);
  umask(old_mask);
  ASSERT_FALSE(failure.has_value()) << failure->text;
  EXPECT_EQ(ModeOf(runtime.path()), 0711u);
  EXPECT_EQ(ModeOf(runtime.LibraryPath()), 0755u);
  EXPECT_EQ(std::filesystem::file_size(runtime.LibraryPath()), 11u);
}

TEST(RuntimeDirTest, NamesDifferAndRemoveIsComplete) {
  const TestingDir dir;
  const std::vector<std::string> bases = {dir.path()};
  const auto first = RuntimeDir::Create(bases, Holds::kSocket);
  const auto second = RuntimeDir::Create(bases, Holds::kSocket);
  ASSERT_EQ(FailureOf(first), nullptr);
  ASSERT_EQ(FailureOf(second), nullptr);
  EXPECT_NE(std::get<RuntimeDir>(first).path(), std::get<RuntimeDir>(second).path());
  dir.Write(std::get<RuntimeDir>(first).SocketPath().substr(dir.path().size() + 1), "");
  for (const auto& made : {first, second, first}) std::get<RuntimeDir>(made).Remove();
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(RuntimeDirTest, TakesTheFirstBaseThatWorks) {
  const TestingDir dir;
  const std::string deep = dir.Under(std::string(80, 'd'));
  std::filesystem::create_directory(deep);
  const std::vector<std::string> bases = {dir.Under("absent"), deep, dir.path()};
  const auto made = RuntimeDir::Create(bases, Holds::kSocket);
  ASSERT_EQ(FailureOf(made), nullptr);
  EXPECT_EQ(std::filesystem::path(std::get<RuntimeDir>(made).path()).parent_path(), dir.path());
}

TEST(RuntimeDirTest, NoBaseIsAFailureWithTheReason) {
  const TestingDir dir;
  const std::vector<std::string> bases = {dir.Under("absent")};
  const auto made = RuntimeDir::Create(bases, Holds::kSocket);
  ASSERT_NE(FailureOf(made), nullptr);
  EXPECT_EQ(FailureOf(made)->status, ExitStatus::kNoSuchDirectory);
  EXPECT_THAT(FailureOf(made)->text, ::testing::HasSubstr("No such file"));
}

TEST(RuntimeDirTest, RootAvoidsItsPrivateDirectory) {
  EXPECT_THAT(RuntimeDirBases(0, {"", "/run/user/0"}), ElementsAre("/run", "/tmp", "/var/tmp"));
  EXPECT_THAT(RuntimeDirBases(1000, {"", "/run/user/1000"}),
              ElementsAre("/run/user/1000", "/tmp", "/var/tmp"));
  EXPECT_THAT(RuntimeDirBases(1000, {}), ElementsAre("/tmp", "/var/tmp"));
}

TEST(RuntimeDirTest, ChoiceOfTheUserComesFirstAndRelativePathsDoNotCount) {
  EXPECT_THAT(RuntimeDirBases(0, {"/mine", ""}), ElementsAre("/mine", "/run", "/tmp", "/var/tmp"));
  EXPECT_THAT(RuntimeDirBases(1000, {"mine", "relative"}), ElementsAre("/tmp", "/var/tmp"));
}

}  // namespace
}  // namespace hostmm
