#include "runtime/cli/options.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace hostmm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Words = std::vector<std::string>;

template <class Options>
Options Parse(const Words& words, std::string_view environment_socket = "") {
  const OrFailure<CommandLine> parsed = ParseCommandLine(words, environment_socket);
  if (const Failure* failure = FailureOf(parsed)) {
    ADD_FAILURE() << failure->text;
    return Options();
  }
  const Options* options = std::get_if<Options>(&std::get<CommandLine>(parsed));
  if (options != nullptr) return *options;
  ADD_FAILURE() << "another subcommand was parsed";
  return Options();
}

Failure Refuse(const Words& words) {
  const OrFailure<CommandLine> parsed = ParseCommandLine(words, "");
  const Failure* failure = FailureOf(parsed);
  if (failure != nullptr) return *failure;
  ADD_FAILURE() << "was accepted";
  return Failure{ExitStatus::kOk, ""};
}

TEST(OptionsTest, RunTakesTheFirstWordThatIsNoOptionAsItsCommand) {
  EXPECT_THAT(Parse<RunOptions>({"run", "postgres", "-D", "data"}).command,
              ElementsAre("postgres", "-D", "data"));
  EXPECT_THAT(Parse<RunOptions>({"run", "--quiet", "postgres", "--quiet"}).command,
              ElementsAre("postgres", "--quiet"));
}

TEST(OptionsTest, DoubleDashEndsTheOptions) {
  EXPECT_THAT(Parse<RunOptions>({"run", "--", "-odd", "--", "x"}).command,
              ElementsAre("-odd", "--", "x"));
}

TEST(OptionsTest, RunDefaults) {
  const RunOptions run = Parse<RunOptions>({"run", "true"});
  EXPECT_EQ(run.frames, FramesChoice::kAuto);
  EXPECT_EQ(run.pt_budget_bytes, 0u);
  EXPECT_EQ(run.snapshot_memory_bytes, 0u);
  EXPECT_EQ(run.strictness, Strictness::kFailOpen);
  EXPECT_EQ(run.verbosity, Verbosity::kNormal);
  EXPECT_EQ(run.launch, Launch::kReal);
  EXPECT_EQ(run.pager_socket, "");
}

TEST(OptionsTest, RunTakesAllItsOptionsInBothForms) {
  const RunOptions run =
      Parse<RunOptions>({"run", "--frames=base", "--pt-budget", "64m", "--snapshot-memory=1g",
                         "--only=postgres:psql", "--strict", "--quiet", "--dry-run", "true"});
  EXPECT_EQ(run.snapshot_memory_bytes, uint64_t{1} << 30);
  EXPECT_EQ(run.frames, FramesChoice::kBase);
  EXPECT_EQ(run.pt_budget_bytes, uint64_t{64} << 20);
  EXPECT_EQ(run.only, "postgres:psql");
  EXPECT_EQ(run.strictness, Strictness::kStrict);
  EXPECT_EQ(run.verbosity, Verbosity::kQuiet);
  EXPECT_EQ(run.launch, Launch::kDryRun);
}

TEST(OptionsTest, TheLastOfEqualOptionsCounts) {
  EXPECT_EQ(Parse<RunOptions>({"run", "--frames=huge", "--frames=hugetlb", "true"}).frames,
            FramesChoice::kHugetlb);
}

TEST(OptionsTest, PagerAndItsMode) {
  const ServiceOptions service =
      Parse<ServiceOptions>({"pager", "--socket", "/run/x", "--mode", "0600"});
  EXPECT_EQ(service.socket_path, "/run/x");
  EXPECT_EQ(service.socket_mode, 0600u);
  EXPECT_EQ(Parse<ServiceOptions>({"pager", "--socket=/run/x"}).socket_mode, 0660u);
}

TEST(OptionsTest, InspectTakesItsSocketFromTheEnvironmentUnlessGiven) {
  EXPECT_EQ(Parse<InspectOptions>({"stats"}, "/run/env").socket_path, "/run/env");
  EXPECT_EQ(Parse<InspectOptions>({"dump", "--pager=/run/x"}, "/run/env").socket_path, "/run/x");
  EXPECT_EQ(Parse<InspectOptions>({"check", "--pager=/run/x"}).question, Question::kCheck);
  EXPECT_EQ(Parse<InspectOptions>({"stats", "--json"}, "/run/env").format, OutputFormat::kJson);
}

TEST(OptionsTest, SnapshotTakesItsOptionsBeforeBetweenAndBehindItsWords) {
  const auto snapshot =
      Parse<SnapshotOptions>({"snapshot", "--pager=/run/x", "@mon", "--incremental-from", "@sun",
                              "out.img", "--resume", "--quiet"});
  EXPECT_EQ(snapshot.socket_path, "/run/x");
  EXPECT_EQ(snapshot.region, "@mon");
  EXPECT_EQ(snapshot.earlier, "sun");
  EXPECT_EQ(snapshot.file, "out.img");
  EXPECT_EQ(snapshot.begin, SnapshotOptions::Begin::kResume);
  EXPECT_EQ(snapshot.verbosity, Verbosity::kQuiet);
  EXPECT_EQ(snapshot.keep, "");
  const auto kept = Parse<SnapshotOptions>({"snapshot", "#12", "-", "--keep=mon"}, "/run/env");
  EXPECT_EQ(kept.socket_path, "/run/env");
  EXPECT_EQ(kept.region, "#12");
  EXPECT_EQ(kept.file, "-");
  EXPECT_EQ(kept.keep, "mon");
  EXPECT_EQ(kept.begin, SnapshotOptions::Begin::kAnew);
  EXPECT_EQ(Parse<SnapshotOptions>({"snapshot", "--drop=mon"}, "/run/env").drop, "mon");
  // Behind "--" nothing is an option.
  EXPECT_EQ(Parse<SnapshotOptions>({"snapshot", "--", "-r", "--keep"}, "/run/env").file, "--keep");
}

TEST(OptionsTest, ImageTakesFilesAndMakesOne) {
  const auto image = Parse<ImageOptions>({"image", "full", "--to", "raw", "tue"});
  EXPECT_THAT(image.files, ElementsAre("full", "tue"));
  EXPECT_EQ(image.raw, "raw");
  EXPECT_EQ(Parse<ImageOptions>({"image", "-"}).raw, "");
}

TEST(OptionsTest, HelpFromEverywhere) {
  EXPECT_EQ(Parse<HelpOptions>({"help"}).topic, "");
  EXPECT_EQ(Parse<HelpOptions>({"--help"}).topic, "");
  EXPECT_EQ(Parse<HelpOptions>({"help", "run"}).topic, "run");
  EXPECT_EQ(Parse<HelpOptions>({"run", "--help"}).topic, "run");
  EXPECT_EQ(Parse<HelpOptions>({"stats", "-h"}).topic, "stats");
  EXPECT_EQ(Parse<HelpOptions>({"snapshot", "a", "--help"}).topic, "snapshot");
  EXPECT_EQ(Parse<HelpOptions>({"image", "-h"}).topic, "image");
  // Behind the command it is the command's.
  EXPECT_THAT(Parse<RunOptions>({"run", "ls", "--help"}).command, ElementsAre("ls", "--help"));
}

struct BadLine {
  Words words;
  std::string in_text;
};

TEST(OptionsTest, EveryBadLineNamesWhatIsWrong) {
  const std::vector<BadLine> lines = {
      {{}, "no subcommand"},
      {{"frobnicate"}, "frobnicate: unknown subcommand"},
      {{"--frobnicate"}, "--frobnicate: unknown option"},
      {{"--version", "now"}, "now: unexpected word"},
      {{"run"}, "no command"},
      {{"run", "--"}, "no command"},
      {{"run", "--quiet"}, "no command"},
      {{"run", ""}, "empty"},
      {{"run", "--loud", "true"}, "--loud: unknown option"},
      {{"run", "--loud=1", "true"}, "--loud: unknown option"},
      {{"run", "-q", "true"}, "-q: unknown option"},
      {{"run", "--quiet=yes", "true"}, "--quiet: takes no value"},
      {{"run", "--frames"}, "--frames: needs a value"},
      {{"run", "--frames=", "true"}, "--frames"},
      {{"run", "--frames=tiny", "true"}, "'tiny' is none of"},
      {{"run", "--pt-budget=1g", "true"}, "--frames=base only"},
      {{"run", "--frames=base", "--pt-budget=lots", "true"}, "'lots' is no size"},
      {{"run", "--snapshot-memory=some", "true"}, "'some' is no size"},
      {{"pager", "--socket=s", "--snapshot-memory=0"}, "'0' is no size"},
      {{"run", "--frames=base", "--pt-budget=0", "true"}, "'0' is no size"},
      {{"run", "--only=", "true"}, "--only"},
      {{"run", "--only=/bin/ls", "true"}, "without their folders"},
      {{"run", "--only=a::b", "true"}, "empty name"},
      {{"run", "--pager=", "true"}, "--pager"},
      {{"run", "--pager=/run/x", "--frames=base", "true"}, "leave --frames"},
      {{"pager"}, "--socket PATH is missing"},
      {{"pager", "--socket=/run/x", "more"}, "more: unexpected word"},
      {{"pager", "--socket=/run/x", "--mode=rw"}, "no octal mode"},
      {{"pager", "--socket=/run/x", "--mode=888"}, "no octal mode"},
      {{"pager", "--socket=/run/x", "--mode=1777"}, "no octal mode"},
      {{"pager", "--socket=/run/x", "--ready-fd=2"}, "no descriptor above"},
      {{"pager", "--socket=/run/x", "--ready-fd=5x"}, "no descriptor above"},
      {{"pager", "--socket=x", "--ready-fd=5"}, "an absolute path"},
      {{"doctor", "--yaml"}, "--yaml: unknown option"},
      {{"doctor", "who"}, "who: unexpected word"},
      {{"stats"}, "which pager?"},
      {{"dump", "--json", "--pager=/run/x"}, "--json: unknown option"},
      {{"help", "run", "more"}, "more: unexpected word"},
      {{"snapshot"}, "REGION and FILE"},
      {{"snapshot", "r"}, "REGION and FILE"},
      {{"snapshot", "r", "f"}, "which pager?"},
      {{"snapshot", "r", "f", "g"}, "g: unexpected word"},
      {{"snapshot", "r", "f", "--all"}, "--all: unknown option"},
      {{"snapshot", "r", ""}, "file is empty"},
      {{"snapshot", "a/b", "f"}, "has a '/'"},
      {{"snapshot", "", "f"}, "needs a name"},
      {{"snapshot", "@", "f"}, "needs a name"},
      {{"snapshot", "#", "f"}, "number before the dot"},
      {{"snapshot", "#1.1", "f"}, "number before the dot"},
      {{"snapshot", std::string(64, 'x'), "f"}, "longer than 63"},
      {{"snapshot", "r", "f", "--resume"}, "give @NAME"},
      {{"snapshot", "@r", "-", "--resume"}, "takes a file"},
      {{"snapshot", "@r", "f", "--keep=s"}, "kept already"},
      {{"snapshot", "r", "f", "--keep=a/b"}, "has a '/'"},
      {{"snapshot", "r", "f", "--keep="}, "needs a name"},
      {{"snapshot", "r", "f", "--incremental-from"}, "needs a value"},
      {{"snapshot", "--drop=r", "f"}, "unexpected word beside --drop"},
      {{"image"}, "no FILE"},
      {{"image", "--to=raw"}, "no FILE"},
      {{"image", "f", "--to=-"}, "takes a file"},
      {{"image", "f", ""}, "empty"},
  };
  for (const BadLine& line : lines) {
    const Failure failure = Refuse(line.words);
    EXPECT_EQ(failure.status, ExitStatus::kUsage) << failure.text;
    EXPECT_THAT(failure.text, HasSubstr(line.in_text));
    EXPECT_THAT(failure.text, HasSubstr("; see 'hostmm help"));
  }
}

TEST(OptionsTest, APagerOfAProgramsOwn) {
  const auto service =
      Parse<ServiceOptions>({"pager", "--socket=/run/x", "--until-last-guest", "--ready-fd", "5"});
  EXPECT_EQ(service.lifetime, PagerOptions::Lifetime::kUntilLastGuest);
  EXPECT_EQ(service.ready_fd, 5);
  const auto plain = Parse<ServiceOptions>({"pager", "--socket=/run/x"});
  EXPECT_EQ(plain.lifetime, PagerOptions::Lifetime::kService);
  EXPECT_EQ(plain.ready_fd, -1);
}

TEST(OptionsTest, SocketPathsThatDoNotFitAreRefusedEverywhere) {
  const std::string longest = "/" + std::string(106, 'x');
  const std::string too_long = longest + "x";
  EXPECT_EQ(Parse<ServiceOptions>({"pager", "--socket", longest}).socket_path, longest);
  for (const Words& words :
       {Words{"pager", "--socket", too_long}, Words{"run", "--pager", too_long, "true"},
        Words{"stats", "--pager", too_long}, Words{"check", "--pager", too_long},
        Words{"snapshot", "r", "f", "--pager", too_long}}) {
    const Failure failure = Refuse(words);
    EXPECT_EQ(failure.status, ExitStatus::kPathTooLong);
    EXPECT_THAT(failure.text, HasSubstr("108 bytes"));
  }
}

TEST(OptionsTest, Sizes) {
  EXPECT_EQ(ParseSize("1"), 1u);
  EXPECT_EQ(ParseSize("3k"), 3072u);
  EXPECT_EQ(ParseSize("2M"), uint64_t{2} << 20);
  EXPECT_EQ(ParseSize("1g"), uint64_t{1} << 30);
  EXPECT_EQ(ParseSize("17179869183g"), uint64_t{17179869183} << 30);
  for (const char* bad :
       {"", "0", "k", "-1", "1kb", "1.5g", " 1", "17179869184g", "18446744073709551616"}) {
    EXPECT_EQ(ParseSize(bad), std::nullopt) << bad;
  }
}

TEST(OptionsTest, EveryFramesNameIsReadBack) {
  for (const FramesChoice frames :
       {FramesChoice::kAuto, FramesChoice::kHuge, FramesChoice::kHugetlb, FramesChoice::kBase}) {
    const std::string option = "--frames=" + std::string(FramesName(frames));
    EXPECT_EQ(Parse<RunOptions>({"run", option, "true"}).frames, frames);
  }
}

}  // namespace
}  // namespace hostmm
