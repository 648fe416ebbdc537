#include "tests/oracle/sides.h"

#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <string_view>

#include "tests/oracle/program.h"
#include "tests/testing/deadline.h"
#include "tests/testing/scoped_fd.h"

namespace hostmm::oracle {
namespace {

// The stepper's own patience with one actor is shorter, and says more.
constexpr auto kPatience = std::chrono::seconds(60);
// For each operation, on a machine that does other work at the same time.
constexpr auto kSlowOperation = std::chrono::milliseconds(5);
constexpr auto kPagerPatience = std::chrono::seconds(20);

bool Answers(const std::string& path) {
  const test::ScopedFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  return connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

bool Holds(const std::string& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

// What was said beside what every program may say: a child of _Fork is none of hostmm's, and
// hostmm says so.
std::string Unexpected(const std::string& said) {
  std::istringstream lines(said);
  std::string unexpected;
  for (std::string line; std::getline(lines, line);) {
    if (Holds(line, "it was forked without the handlers of fork")) continue;
    unexpected += line + "\n";
  }
  return unexpected;
}

std::vector<Observation> ReadObservations(const std::string& path) {
  const std::string bytes = ReadText(path);
  std::vector<Observation> seen(bytes.size() / sizeof(Observation));
  if (!seen.empty()) memcpy(seen.data(), bytes.data(), seen.size() * sizeof(Observation));
  return seen;
}

}  // namespace

Sides::Sides(const Built& built) {
  // A short path: a socket's may have 107 bytes.
  char folder[] = "/tmp/hostmm-oracle.XXXXXX";
  if (mkdtemp(folder) == nullptr) {
    perror(folder);
    abort();
  }
  folder_ = folder;
  kept_ = {Keep(built.guest), Keep(built.hostmm), Keep(built.library)};
}

Sides::~Sides() {
  pager_.Signal(SIGTERM);
  pager_.Finish(kPagerPatience);
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
}

Transcript Sides::Plain(const Program& program) { return Run(program, {}); }

Transcript Sides::Lying(const Program& program, const std::string& wrong) {
  return Run(program, {{"HOSTMM_ORACLE_WRONG", wrong}});
}

Transcript Sides::Managed(const Program& program) {
  if (const std::string why = EnsurePager(); !why.empty()) return {{}, why};
  Transcript transcript =
      Run(program, {{"LD_PRELOAD", kept_.library}, {"HOSTMM_SOCKET", Path("socket")}});
  transcript.trouble += AuditPager();
  return transcript;
}

int64_t Sides::FaultsServed() {
  int status = 0;
  const std::string json = Ask("stats", {"--json"}, &status);
  constexpr std::string_view kKey = "\"events\":";
  const size_t at = json.find(kKey);
  return at == std::string::npos ? -1 : strtoll(json.c_str() + at + kKey.size(), nullptr, 10);
}

Transcript Sides::Run(const Program& program, const Environment& environment) {
  Transcript transcript;
  std::filesystem::remove(Path("seen"));
  if (!SaveProgram(program, Path("program"))) return {{}, "the program could not be written"};
  Command guest({kept_.guest, Path("program"), Path("seen")}, environment, Path("out"),
                Path("err"));
  const int status = guest.Finish(kPatience + kSlowOperation * program.operations.size());
  transcript.seen = ReadObservations(Path("seen"));
  transcript.trouble = Unexpected(ReadText(Path("err")));
  if (status != 0) transcript.trouble += "exit status " + std::to_string(status);
  return transcript;
}

std::string Sides::Keep(const std::string& path) {
  if (path.empty()) return "";
  const std::string kept = Path(std::filesystem::path(path).filename());
  std::filesystem::copy_file(path, kept);
  return kept;
}

std::string Sides::EnsurePager() {
  if (pager_.Runs()) return "";
  pager_ = Command({kept_.hostmm, "pager", "--socket", Path("socket")}, {}, Path("pager.out"),
                   Path("pager.err"));
  const bool serves =
      test::PollUntil(test::Deadline(kPagerPatience), [this] { return Answers(Path("socket")); });
  return serves ? "" : "the pager does not serve: " + ReadText(Path("pager.err"));
}

std::string Sides::Ask(const std::string& question, const std::vector<std::string>& more,
                       int* status) {
  std::vector<std::string> words = {kept_.hostmm, question, "--pager", Path("socket")};
  words.insert(words.end(), more.begin(), more.end());
  *status = Command(words, {}, Path("answer"), Path("answer.err")).Finish(kPagerPatience);
  return ReadText(Path("answer")) + ReadText(Path("answer.err"));
}

std::string Sides::AuditPager() {
  if (!pager_.Runs()) return "the pager has died: " + ReadText(Path("pager.err"));
  int status = 0;
  std::string stats;
  const bool clean = test::PollUntil(test::Deadline(kPagerPatience), [&] {
    stats = Ask("stats", {"--json"}, &status);
    return Holds(stats, "\"guests\":[]") && Holds(stats, "\"files\":[]") &&
           Holds(stats, "\"outstanding_faults\":0") && Holds(stats, "\"unaccounted\":0");
  });
  if (!clean) return "the pager keeps a trace: " + stats;
  const std::string check = Ask("check", {}, &status);
  return status == 0 ? "" : "hostmm check: " + check;
}

}  // namespace hostmm::oracle
