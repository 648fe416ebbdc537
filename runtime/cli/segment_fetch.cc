#include "runtime/cli/segment_fetch.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "runtime/cli/control_socket.h"
#include "runtime/cli/pager_question.h"
#include "runtime/packet.h"
#include "runtime/protocol.h"

namespace hostmm {
namespace {

constexpr std::string_view kOneBuild = "use the hostmm that the pager was started with";

Failure AttachFailure(const std::string& name, AttachStatus status) {
  if (status == AttachStatus::kBadVersion) {
    return MakeFailure(ExitStatus::kVersionMismatch, name, "the segment is of another version",
                       kOneBuild);
  }
  std::string_view why = "the segment is damaged";
  if (status == AttachStatus::kTooSmall) why = "the segment is too small";
  if (status == AttachStatus::kBadMagic) why = "that is no segment of hostmm";
  if (status == AttachStatus::kBadGeometry)
    why = "the segment has a geometry that is not known here";
  return MakeFailure(ExitStatus::kBadSegment, name, why, kOneBuild);
}

}  // namespace

OrFailure<FetchedSegment> FetchSegment(const std::string& socket_path) {
  OrFailure<UniqueFd> connected = ConnectToPager(socket_path);
  if (const Failure* failure = FailureOf(connected)) return *failure;
  OrFailure<Packet> answered = AskPager(std::get<UniqueFd>(connected), socket_path,
                                        QuestionWithText(protocol::Kind::kInspect, "hostmm"));
  if (const Failure* failure = FailureOf(answered)) return *failure;
  Packet& answer = std::get<Packet>(answered);
  const protocol::Message& message = answer.message;
  if (message.status != protocol::Status::kOk) {
    const std::string text = TextOf(answer);
    return MakeFailure(ExitStatus::kNoPermission, socket_path,
                       "the pager refuses: " + (text.empty() ? "no reason" : text),
                       "ask as the pager's own user, or as root");
  }
  if (answer.fd_count < 1 || !answer.fds[0].ok()) {
    return MakeFailure(ExitStatus::kNoPager, socket_path, "its answer has no segment in it",
                       "check that a 'hostmm pager' serves there");
  }
  FetchedSegment fetched;
  fetched.fd = std::move(answer.fds[0]);
  fetched.opt_in = {message.va, message.length, message.offset, message.value[0]};
  return fetched;
}

OrFailure<OpenSegment> MapSegment(const UniqueFd& segment, const std::string& name) {
  struct stat info = {};
  if (fstat(segment.get(), &info) != 0 || info.st_size <= 0) {
    return AttachFailure(name, AttachStatus::kTooSmall);
  }
  const size_t bytes = static_cast<size_t>(info.st_size);
  OpenSegment open;
  open.mapping = Mapping(mmap(nullptr, bytes, PROT_READ, MAP_SHARED, segment.get(), 0), bytes);
  if (!open.mapping.ok()) {
    return MakeFailure(ExitStatus::kLimitTooLow, name, "mmap: " + ErrnoText(errno),
                       "raise 'ulimit -v'");
  }
  const AttachStatus status = TableReader::Attach(open.mapping.bytes(), &open.reader);
  if (status != AttachStatus::kOk) return AttachFailure(name, status);
  return open;
}

OrFailure<OpenSegment> OpenSegmentOf(const std::string& socket_path) {
  OrFailure<FetchedSegment> fetched = FetchSegment(socket_path);
  if (const Failure* failure = FailureOf(fetched)) return *failure;
  const FetchedSegment& segment = std::get<FetchedSegment>(fetched);
  OrFailure<OpenSegment> open = MapSegment(segment.fd, socket_path);
  if (FailureOf(open) == nullptr) std::get<OpenSegment>(open).opt_in = segment.opt_in;
  return open;
}

}  // namespace hostmm
