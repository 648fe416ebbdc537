#include "runtime/cli/snapshot_command.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/cli/control_socket.h"
#include "runtime/cli/image_file.h"
#include "runtime/cli/pager_question.h"
#include "runtime/cli/progress_line.h"
#include "runtime/image/image_format.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"

namespace hostmm {
namespace {

using protocol::Kind;

// The pager waits for each process that maps the region, half a second at most for each that does
// not answer.
constexpr int kFreezeDeadlineMs = 60000;

std::string WhyRefused(const Packet& answer) {
  const std::string text = TextOf(answer);
  if (!text.empty()) return text;
  return ErrnoOf(answer) != 0 ? ErrnoText(ErrnoOf(answer)) : "the pager refuses";
}

Failure RefusedSnapshot(std::string_view what, const Packet& answer) {
  const std::string why = WhyRefused(answer);
  switch (ErrnoOf(answer)) {
    case ENOENT:
      return MakeFailure(ExitStatus::kNoSuchRegion, what, why,
                         "'hostmm dump' shows the regions and their names");
    case EACCES:
    case EPERM:
      return MakeFailure(ExitStatus::kNoPermission, what, why,
                         "ask as the region's owner, or as root");
    case EEXIST:
      return MakeFailure(ExitStatus::kUsage, what, why,
                         "choose another name, or 'hostmm snapshot --drop' that one");
    default:
      return MakeFailure(ExitStatus::kSnapshotFailed, what, why, "");
  }
}

// A tool has one question for each connection.
OrFailure<Packet> AskAnew(const SnapshotOptions& options, Kind kind, const std::string& text) {
  OrFailure<UniqueFd> connected = ConnectToPager(options.socket_path);
  if (const Failure* failure = FailureOf(connected)) return *failure;
  return AskPager(std::get<UniqueFd>(connected), options.socket_path, QuestionWithText(kind, text),
                  kFreezeDeadlineMs);
}

OrFailure<UniqueFd> HandleOf(const SnapshotOptions& options, const std::string& region) {
  OrFailure<Packet> answered = AskAnew(options, Kind::kSnapshotOf, region);
  if (const Failure* failure = FailureOf(answered)) return *failure;
  Packet& answer = std::get<Packet>(answered);
  if (answer.message.status != protocol::Status::kOk) return RefusedSnapshot(region, answer);
  if (!answer.fds[0].ok()) {
    return MakeFailure(ExitStatus::kNoPager, options.socket_path, "its answer has no handle in it",
                       "check that a 'hostmm pager' serves there");
  }
  return std::move(answer.fds[0]);
}

int Drop(const SnapshotOptions& options) {
  const OrFailure<Packet> answered = AskAnew(options, Kind::kDropKept, options.drop);
  if (const Failure* failure = FailureOf(answered)) return Report(*failure);
  const Packet& answer = std::get<Packet>(answered);
  if (answer.message.status == protocol::Status::kOk) return ToInt(ExitStatus::kOk);
  return Report(RefusedSnapshot("@" + options.drop, answer));
}

std::optional<Failure> Keep(const SnapshotOptions& options, const UniqueFd& handle) {
  const OrFailure<Packet> answered =
      AskPager(handle, options.socket_path, QuestionWithText(Kind::kKeep, options.keep));
  if (const Failure* failure = FailureOf(answered)) return *failure;
  const Packet& answer = std::get<Packet>(answered);
  if (answer.message.status == protocol::Status::kOk) return std::nullopt;
  return RefusedSnapshot("--keep=" + options.keep, answer);
}

// "" for one that goes with this command.
std::string KeptNameOf(const SnapshotOptions& options) {
  if (!options.keep.empty()) return "@" + options.keep;
  return options.region.starts_with('@') ? options.region : "";
}

// How to go on with what stands in the file.
std::string RemedyOf(const SnapshotOptions& options, const ImageFile& file) {
  const std::string kept = KeptNameOf(options);
  if (kept.empty() || file.start() == UINT64_MAX || options.file == "-") return "";
  std::string command = "go on with: hostmm snapshot " + kept + " " + options.file + " --resume";
  if (!options.earlier.empty()) command += " --incremental-from " + options.earlier;
  return command;
}

// How the pager's line begins if it is not the file that does not fit, but the base. Both are
// EINVAL.
constexpr std::string_view kAboutBase = "the base is ";

// Why the snapshot behind `handle` is lost; nullopt: it is whole, or nobody says.
std::optional<std::string> WhyLost(const SnapshotOptions& options, const UniqueFd& handle) {
  const OrFailure<Packet> answered =
      AskPager(handle, options.socket_path, NewPacket(Kind::kSnapshotInfo));
  const Packet* answer = std::get_if<Packet>(&answered);
  if (answer == nullptr || ErrnoOf(*answer) != EIO) return std::nullopt;
  return WhyRefused(*answer);
}

// `name`: under which it is kept, or "".
Failure LostSnapshot(std::string_view what, const std::string& name, const std::string& why) {
  const std::string drop =
      name.empty() ? "" : "'hostmm snapshot --drop " + name.substr(1) + "', and ";
  return MakeFailure(ExitStatus::kSnapshotFailed, what, "the snapshot is lost: " + why,
                     drop + "take another one");
}

Failure RefusedBase(const SnapshotOptions& options, const UniqueFd& earlier,
                    const std::string& why) {
  const std::string name = "@" + options.earlier;
  if (const auto lost = WhyLost(options, earlier)) return LostSnapshot(name, name, *lost);
  // What --keep has kept stays so.
  const std::string kept = KeptNameOf(options);
  return MakeFailure(ExitStatus::kUsage, "--incremental-from=" + options.earlier, why,
                     "name one that is, or leave it out: hostmm snapshot " +
                         (kept.empty() ? options.region : kept) + " " + options.file);
}

// The disk says EIO as well as a snapshot that is lost.
Failure RefusedWithEio(const SnapshotOptions& options, const ImageFile& file,
                       const UniqueFd& handle, const std::string& why) {
  if (const auto lost = WhyLost(options, handle)) {
    return LostSnapshot(options.region, KeptNameOf(options), *lost);
  }
  const std::string go_on = RemedyOf(options, file);
  return MakeFailure(
      ExitStatus::kImageNotWritten, file.path(), why,
      "look after the disk, " + (go_on.empty() ? "and do it again" : "then " + go_on));
}

Failure RefusedExport(const SnapshotOptions& options, const ImageFile& file, const Packet& answer,
                      const UniqueFd& handle, const UniqueFd& earlier) {
  const std::string why = WhyRefused(answer);
  const int error = ErrnoOf(answer);
  if (error == EIO) return RefusedWithEio(options, file, handle, why);
  if (error == EINVAL && why.starts_with(kAboutBase)) return RefusedBase(options, earlier, why);
  if (error == EINVAL && options.begin == SnapshotOptions::Begin::kResume) {
    return MakeFailure(ExitStatus::kBadImage, file.path(), why,
                       "leave --resume out, and name a new file");
  }
  return MakeFailure(ExitStatus::kImageNotWritten, file.path(), why, RemedyOf(options, file));
}

class Export {
 public:
  Export(const SnapshotOptions& options, const ImageFile& file)
      : options_(options),
        file_(file),
        line_(isatty(STDERR_FILENO) != 0 && options.verbosity != Verbosity::kQuiet
                  ? ProgressLine::On::kYes
                  : ProgressLine::On::kNo) {}

  OrFailure<Packet> Run(const UniqueFd& handle, const UniqueFd& earlier) {
    OrFailure<UniqueFd> started = Start(handle, earlier);
    if (const Failure* failure = FailureOf(started)) return *failure;
    const UniqueFd& answers = std::get<UniqueFd>(started);
    for (;;) {
      pollfd waits[] = {{answers.get(), POLLIN, 0}, {progress_.get(), POLLIN, 0}};
      if (poll(waits, 2, -1) < 0) continue;
      if (waits[0].revents != 0) break;
      if (waits[1].revents != 0) ShowProgress();
    }
    line_.Erase();
    return ReadAnswer(answers, options_.socket_path);
  }

 private:
  OrFailure<UniqueFd> Start(const UniqueFd& handle, const UniqueFd& earlier) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
      return MakeFailure(ExitStatus::kLimitTooLow, "pipe", ErrnoText(errno), "raise 'ulimit -n'");
    }
    progress_.reset(ends[0]);
    const UniqueFd write_end(ends[1]);
    protocol::Message question = NewPacket(Kind::kExport);
    question.offset = file_.start();
    if (options_.begin == SnapshotOptions::Begin::kResume) question.value[0] = file_.bytes();
    std::vector<int> fds = {file_.fd(), write_end.get()};
    if (earlier.ok()) fds.push_back(earlier.get());
    return SendQuestion(handle, options_.socket_path, question, fds);
  }

  void ShowProgress() {
    ImageProgress last = {};
    ImageProgress record;
    ssize_t got;
    while ((got = read(progress_.get(), &record, sizeof(record))) == sizeof(record)) last = record;
    if (last.total != 0) line_.Show(last.done, last.total);
    if (got == 0) progress_.reset();  // the pager has closed it: the answer is near
  }

  const SnapshotOptions& options_;
  const ImageFile& file_;
  ProgressLine line_;
  UniqueFd progress_;
};

std::optional<Failure> WriteImage(const SnapshotOptions& options, const ImageFile& file) {
  UniqueFd earlier;
  if (!options.earlier.empty()) {
    OrFailure<UniqueFd> found = HandleOf(options, "@" + options.earlier);
    if (const Failure* failure = FailureOf(found)) return *failure;
    earlier = std::move(std::get<UniqueFd>(found));
  }
  const OrFailure<UniqueFd> taken = HandleOf(options, options.region);
  if (const Failure* failure = FailureOf(taken)) return *failure;
  const UniqueFd& handle = std::get<UniqueFd>(taken);
  if (!options.keep.empty()) {
    if (auto failure = Keep(options, handle)) return failure;
  }
  const auto start = std::chrono::steady_clock::now();
  const OrFailure<Packet> answered = Export(options, file).Run(handle, earlier);
  if (const Failure* failure = FailureOf(answered)) return *failure;
  const Packet& answer = std::get<Packet>(answered);
  if (answer.message.status != protocol::Status::kOk) {
    return RefusedExport(options, file, answer, handle, earlier);
  }
  if (auto failure = file.Finish(answer.message.length)) return failure;
  if (options.verbosity == Verbosity::kQuiet) return std::nullopt;
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  char seconds[32];
  std::snprintf(seconds, sizeof(seconds), "%.1f s", elapsed.count());
  PrintLine(options.region + ": " + SizeText(answer.message.length) + " in " + file.path() +
            ", in " + seconds);
  return std::nullopt;
}

}  // namespace

int RunSnapshot(const SnapshotOptions& options) {
  if (!options.drop.empty()) return Drop(options);
  const OrFailure<ImageFile> opened = ImageFile::Open(
      options.file, options.begin == SnapshotOptions::Begin::kResume ? ImageFile::Begin::kResume
                                                                     : ImageFile::Begin::kAnew);
  if (const Failure* failure = FailureOf(opened)) return Report(*failure);
  const ImageFile& file = std::get<ImageFile>(opened);
  const std::optional<Failure> failure = WriteImage(options, file);
  if (!failure.has_value()) return ToInt(ExitStatus::kOk);
  file.Abandon();
  return Report(*failure);
}

}  // namespace hostmm
