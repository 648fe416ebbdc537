#include "runtime/cli/guest_environment.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hostmm {
namespace {

using ::testing::ElementsAre;

GuestSettings Settings() {
  GuestSettings settings;
  settings.library_path = "/lib/p.so";
  settings.socket_path = "/run/s";
  return settings;
}

TEST(GuestEnvironmentTest, OnlyTheLibraryAndTheSocketByDefault) {
  EXPECT_THAT(GuestVariables(Settings(), ""),
              ElementsAre("LD_PRELOAD=/lib/p.so", "HOSTMM_SOCKET=/run/s"));
}

TEST(GuestEnvironmentTest, LibraryComesBeforeOthers) {
  EXPECT_EQ(GuestVariables(Settings(), "/lib/other.so /lib/third.so")[0],
            "LD_PRELOAD=/lib/p.so:/lib/other.so /lib/third.so");
}

TEST(GuestEnvironmentTest, LibraryThatIsFirstAlreadyIsNotRepeated) {
  EXPECT_EQ(GuestVariables(Settings(), "/lib/p.so:/lib/other.so")[0],
            "LD_PRELOAD=/lib/p.so:/lib/other.so");
  EXPECT_EQ(GuestVariables(Settings(), "/lib/p.so.1")[0], "LD_PRELOAD=/lib/p.so:/lib/p.so.1");
}

TEST(GuestEnvironmentTest, Flags) {
  GuestSettings settings = Settings();
  settings.only = "a:b";
  settings.verbosity = Verbosity::kQuiet;
  settings.strictness = Strictness::kStrict;
  EXPECT_THAT(GuestVariables(settings, ""),
              ElementsAre("LD_PRELOAD=/lib/p.so", "HOSTMM_SOCKET=/run/s", "HOSTMM_ONLY=a:b",
                          "HOSTMM_QUIET=1", "HOSTMM_STRICT=1"));
}

TEST(GuestEnvironmentTest, MergeReplacesAndForgetsWhatAnOuterRunHadSet) {
  const std::vector<std::string> base = {"PATH=/bin", "LD_PRELOAD=old", "HOSTMM_ONLY=outer",
                                         "HOSTMM_STRICT=1", "LANG=C"};
  const std::vector<std::string> changes = {"LD_PRELOAD=new", "HOSTMM_SOCKET=/run/s"};
  EXPECT_THAT(MergeEnvironment(base, changes),
              ElementsAre("PATH=/bin", "LANG=C", "LD_PRELOAD=new", "HOSTMM_SOCKET=/run/s"));
}

TEST(GuestEnvironmentTest, ShellQuoting) {
  EXPECT_EQ(ShellQuoted("/usr/bin/x-1.0=a"), "/usr/bin/x-1.0=a");
  EXPECT_EQ(ShellQuoted(""), "''");
  EXPECT_EQ(ShellQuoted("a b"), "'a b'");
  EXPECT_EQ(ShellQuoted("it's $HOME"), "'it'\\''s $HOME'");
}

}  // namespace
}  // namespace hostmm
