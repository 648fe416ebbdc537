#include "runtime/cli/command_process.h"

#include <sys/stat.h>
#include <sys/wait.h>

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/cli/testing_dir.h"

namespace hostmm {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::string Script(const TestingDir& dir, std::string_view name, std::string_view text) {
  const std::string path = dir.Write(name, text);
  fs::permissions(path, fs::perms::owner_all);
  return path;
}

std::string Found(const OrFailure<std::string>& result) {
  const Failure* failure = FailureOf(result);
  return failure == nullptr ? std::get<std::string>(result) : failure->text;
}

// Starts and waits. RETURNS the status as a shell has it, or the failure's.
int RunToEnd(const std::string& file, const std::vector<std::string>& arguments) {
  const ForwardedSignals signals;
  const std::vector<std::string> environment = {"NAME=value"};
  const auto started = StartCommand(file, arguments, environment, signals);
  if (const Failure* failure = FailureOf(started)) return ToInt(failure->status);
  int status = 0;
  waitpid(std::get<RunningCommand>(started).pid, &status, 0);
  return ShellStatus(status);
}

TEST(FindCommandTest, SearchesThePathInOrder) {
  const TestingDir dir;
  fs::create_directory(dir.Under("1"));
  fs::create_directory(dir.Under("2"));
  const std::string path = dir.Under("1") + ":" + dir.Under("2");
  const std::string second = Script(dir, "2/x", "");
  EXPECT_EQ(Found(FindCommand("x", path)), second);
  dir.Write("1/x", "not executable");
  EXPECT_EQ(Found(FindCommand("x", path)), second);
  const std::string first = Script(dir, "1/x", "");
  EXPECT_EQ(Found(FindCommand("x", path)), first);
}

TEST(FindCommandTest, NotFoundAndNotExecutableDiffer) {
  const TestingDir dir;
  const auto absent = FindCommand("no-such-command", dir.path());
  ASSERT_NE(FailureOf(absent), nullptr);
  EXPECT_EQ(FailureOf(absent)->status, ExitStatus::kNotFound);
  dir.Write("plain", "");
  const auto plain = FindCommand("plain", dir.path());
  ASSERT_NE(FailureOf(plain), nullptr);
  EXPECT_EQ(FailureOf(plain)->status, ExitStatus::kNotExecutable);
  const auto folder = FindCommand(dir.path(), "");
  ASSERT_NE(FailureOf(folder), nullptr);
  EXPECT_EQ(FailureOf(folder)->status, ExitStatus::kNotExecutable);
}

TEST(FindCommandTest, EmptyPathIsTheUsualOne) {
  EXPECT_THAT(Found(FindCommand("sh", "")), HasSubstr("/sh"));
}

TEST(StartCommandTest, EndsWithTheStatusOfTheCommand) {
  EXPECT_EQ(RunToEnd("/bin/sh", {"sh", "-c", "exit 7"}), 7);
  EXPECT_EQ(RunToEnd("/bin/sh", {"sh", "-c", "test \"$NAME\" = value"}), 0);
  EXPECT_EQ(RunToEnd("/bin/sh", {"sh", "-c", "kill -9 $$"}), 128 + 9);
}

TEST(StartCommandTest, CommandGetsTheOldSignalMask) {
  // SIGTERM is blocked in us while ForwardedSignals lives; in the command it must not be.
  EXPECT_EQ(RunToEnd("/bin/sh", {"sh", "-c", "kill -TERM $$; exit 3"}), 128 + 15);
}

TEST(StartCommandTest, ScriptsWithAndWithoutInterpreter) {
  const TestingDir dir;
  EXPECT_EQ(RunToEnd(Script(dir, "bare", "exit 5\n"), {"bare"}), 5);
  EXPECT_EQ(RunToEnd(Script(dir, "lost", "#!/no/such/interpreter\n"), {"lost"}), 127);
  EXPECT_EQ(RunToEnd(dir.path(), {"folder"}), 126);
}

TEST(WhyNotPreloadableTest, ProgramsAndScriptsAreFine) {
  const TestingDir dir;
  EXPECT_EQ(WhyNotPreloadable("/bin/sh"), "");
  EXPECT_EQ(WhyNotPreloadable(Script(dir, "script", "#!/bin/sh\n")), "");
  EXPECT_EQ(WhyNotPreloadable(dir.Under("absent")), "");
}

TEST(WhyNotPreloadableTest, StaticAndForeignPrograms) {
  const TestingDir dir;
  std::string header(64, '\0');
  header.replace(0, 4,
                 "\x7f"
                 "ELF");
  header[4] = 2;  // ELFCLASS64, and no program header at all
  EXPECT_THAT(WhyNotPreloadable(Script(dir, "static", header)), HasSubstr("statically linked"));
  header[4] = 1;  // ELFCLASS32
  EXPECT_THAT(WhyNotPreloadable(Script(dir, "narrow", header)), HasSubstr("64-bit"));
}

}  // namespace
}  // namespace hostmm
